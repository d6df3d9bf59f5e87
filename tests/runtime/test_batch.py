"""Several texts together are equal to those one after the other, whenever each of them ends."""

from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime import Completion, Model
from dgpt2_quant.runtime.decode_loop import Engine
from dgpt2_quant.runtime.sequence import Sequence
from dgpt2_quant.runtime.slot import CHUNK

PROMPTS = [
    "Once upon a time",
    "The wolf",
    "There was once a poor woodcutter who lived",
    "",
    "A king had three sons; the youngest",
    "She said to the bird",
    "“Mother,” cried",
]
STORY = (Path(__file__).parents[2] / "demo" / "evaluation.txt").read_text("utf-8")


def alone(model: Model, prompt: str | list[int], **options: Any) -> Completion:
    generation = model.stream(prompt, **options)
    for _ in generation:
        pass
    assert generation.completion is not None
    return generation.completion


def details(completion: Completion) -> tuple[Any, ...]:
    """All of it, also what `==` leaves out."""
    return tuple(vars(completion).values())


class TestTheSameTexts:
    @pytest.mark.parametrize("parallel", [2, 3, 256])
    def test_as_alone(self, storybook: Model, parallel: int) -> None:
        options: dict[str, Any] = {"temperature": 0, "max_tokens": 20}
        found = storybook.generate(PROMPTS, parallel=parallel, **options)
        assert found == [[alone(storybook, prompt, **options)] for prompt in PROMPTS]

    @pytest.mark.parametrize("parallel", [2, 4])
    def test_sequences_that_end_at_different_times(self, storybook: Model, parallel: int) -> None:
        # whoever ends leaves a gap, which another one moves into
        options: dict[str, Any] = {"temperature": 0, "max_tokens": 40, "stop": [" and", ".", " beautiful", "king"]}
        found = [completion for (completion,) in storybook.generate(PROMPTS, parallel=parallel, **options)]
        assert found == [alone(storybook, prompt, **options) for prompt in PROMPTS]
        assert len({completion.tokens for completion in found}) > 4
        assert {completion.finish_reason for completion in found} >= {"stop"}

    def test_with_prompts_of_several_chunks_among_them(self, storybook: Model) -> None:
        tokens = storybook.tokenize(STORY)
        prompts = [tokens[10 * number : 10 * number + length] for number, length in enumerate([3, 200, 64, 1, 330, 65])]
        options: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
        found = storybook.generate(prompts, parallel=3, **options)
        assert found == [[alone(storybook, prompt, **options)] for prompt in prompts]

    def test_to_the_end_of_the_context(self, storybook: Model) -> None:
        tokens = storybook.tokenize(STORY)
        options: dict[str, Any] = {"temperature": 0, "max_tokens": 20}
        found = storybook.generate([tokens[:500], tokens[:5], tokens[:512]], **options)
        assert [completion.tokens for (completion,) in found] == [13, 20, 1]
        assert found == [[alone(storybook, tokens[:length], **options)] for length in (500, 5, 512)]

    def test_the_same_prompt_several_times(self, storybook: Model) -> None:
        (found,) = storybook.generate(PROMPTS[0], num_return_sequences=7, temperature=0, max_tokens=30, parallel=4)
        assert len(set(found)) == 1
        assert found[0] == alone(storybook, PROMPTS[0], temperature=0, max_tokens=30)

    def test_parallel_1_equals_streams_bit_by_bit(self, storybook: Model) -> None:
        options: dict[str, Any] = {"max_tokens": 20, "logprobs": 2, "echo": True}
        found = storybook.generate(PROMPTS[:4], parallel=1, num_return_sequences=2, seed=5, **options)
        for prompt, completions in zip(PROMPTS, found, strict=False):
            expected = [alone(storybook, prompt, seed=seed, **options) for seed in (5, 6)]
            assert [details(completion) for completion in completions] == [details(each) for each in expected]

    @pytest.mark.parametrize("parallel", [1, 3])
    def test_the_same_call_gives_the_same_result(self, storybook: Model, parallel: int) -> None:
        calls = [
            storybook.generate(PROMPTS, parallel=parallel, seed=3, max_tokens=20, logprobs=1, temperature=1)
            for _ in range(2)
        ]
        first, second = ([details(completion) for (completion,) in found] for found in calls)
        assert first == second

    def test_larger_and_smaller_batches_by_turns(self, storybook: Model) -> None:
        options: dict[str, Any] = {"temperature": 0, "max_tokens": 8}
        expected = [[alone(storybook, prompt, **options)] for prompt in PROMPTS]
        for count in (2, 7, 3, 1):
            assert storybook.generate(PROMPTS[:count], parallel=count, **options) == expected[:count]


WRONG = [{"num_return_sequences": number} for number in (0, 1.5)] + [{"parallel": n} for n in (0, 257, -1, 1.5)]


class TestOrder:
    def test_sequences_of_each_prompt_with_their_seeds(self, storybook: Model) -> None:
        options: dict[str, Any] = {"max_tokens": 3, "temperature": 2, "echo": True}
        found = storybook.generate(PROMPTS[:3], num_return_sequences=3, seed=11, parallel=4, **options)
        expected = [[alone(storybook, p, seed=11 + n, **options) for n in range(3)] for p in PROMPTS[:3]]
        assert found == expected
        assert len({completion.text for completions in found for completion in completions}) == 9

    @pytest.mark.parametrize("stop", [(), (" and", "the king")])
    @pytest.mark.parametrize("parallel", [1, 4])
    def test_the_events_of_a_number_are_its_text(self, storybook: Model, parallel: int, stop: tuple[str, ...]) -> None:
        batch = storybook.batch(PROMPTS, parallel=parallel, seed=2, max_tokens=12, stop=stop, echo=True)
        assert batch.completions == [None] * len(PROMPTS)
        texts, order = [""] * len(PROMPTS), []
        for event in batch:
            assert event or event.completion
            assert event.completion == batch.completions[event.number]
            texts[event.number] += event
            order.append(event.number)
        assert texts == [completion.text for completion in batch.completions if completion]
        assert texts == [
            c.text for (c,) in storybook.generate(PROMPTS, parallel=1, seed=2, max_tokens=12, stop=stop, echo=True)
        ]
        assert (order == sorted(order)) == (parallel == 1)

    def test_a_batch_counts_its_tokens(self, storybook: Model) -> None:
        batch = storybook.batch(PROMPTS[:3], num_return_sequences=2, max_tokens=10, ignore_eos=True)
        assert len(batch.run()) == 6
        assert (batch.timing.decode_tokens, batch.timing.decoded) == (60, 54)

    def test_the_random_seeds_reproduce_the_texts(self, storybook: Model) -> None:
        batch = storybook.batch(PROMPTS[:2], num_return_sequences=2, max_tokens=4)
        prompts = [prompt for prompt in PROMPTS[:2] for _ in range(2)]
        again = [
            alone(storybook, prompt, max_tokens=4, seed=seed) for prompt, seed in zip(prompts, batch.seeds, strict=True)
        ]
        assert batch.run() == again

    def test_sequences_with_different_settings(self, storybook: Model) -> None:
        settings: list[dict[str, Any]] = [
            {"temperature": 0, "max_tokens": 20},
            {"seed": 3, "max_tokens": 4, "top_k": 0},
            {"temperature": 0, "repeat_penalty": 1.5, "echo": True, "max_tokens": 30},
            {"max_tokens": 0},
            {"temperature": 0, "stop": " daughter", "logit_bias": {12: 5.0}},
        ]
        sequences = [storybook.new_sequence(PROMPTS[0], **options) for options in settings]
        found = storybook.write(sequences, parallel=2).run()
        assert found == [alone(storybook, PROMPTS[0], **options) for options in settings]

    def test_no_input(self, storybook: Model) -> None:
        assert list(storybook.batch([])) == storybook.generate([]) == []
        assert storybook.batch([]).timing.decode_tokens == 0

    @pytest.mark.parametrize("options", WRONG, ids=str)
    def test_numbers_out_of_range(self, storybook: Model, options: dict[str, Any]) -> None:
        (wrong,) = options.values()
        with pytest.raises(UsageError, match=f"must be an integer, .*, not {wrong}"):
            storybook.batch(PROMPTS, **options)

    def test_one_wrong_prompt_refuses_the_batch(self, storybook: Model) -> None:
        with pytest.raises(UsageError, match="at most 512 tokens to fit the context, not 513"):
            storybook.batch([[5], [5] * 513])


class TestEngine:
    """What a server does: sequences come and go while others are in the making."""

    def sequence(self, model: Model, prompt: str | list[int], **options: Any) -> Sequence:
        return model.new_sequence(prompt, **{"temperature": 0, "max_tokens": 30, **options})

    def steps(self, engine: Engine, count: int) -> None:
        for _ in range(count):
            engine.step()

    def finish(self, engine: Engine) -> None:
        while not engine.idle:
            engine.step()

    def test_a_sequence_joins_others(self, storybook: Model) -> None:
        engine = storybook.new_engine(3, storybook.positions)
        sequences = []
        for number, prompt in enumerate([*PROMPTS, storybook.tokenize(STORY)[: 3 * CHUNK + 5]]):
            sequences.append(self.sequence(storybook, prompt))
            engine.add(sequences[-1])
            self.steps(engine, 3 * number)
        assert engine.active <= 3
        self.finish(engine)
        assert engine.idle
        expected = [alone(storybook, sequence.request.prompt, temperature=0, max_tokens=30) for sequence in sequences]
        assert [sequence.completion for sequence in sequences] == expected

    def test_cancel_in_every_state(self, storybook: Model) -> None:
        engine = storybook.new_engine(3, storybook.positions)
        long = storybook.tokenize(STORY)[: 3 * CHUNK + 5]
        written, staying, other, entering, waiting = (
            self.sequence(storybook, prompt) for prompt in (PROMPTS[0], PROMPTS[1], PROMPTS[2], long, PROMPTS[4])
        )
        engine.add(written)
        engine.add(staying)
        self.steps(engine, 6)
        engine.add(entering)
        self.steps(engine, 2)
        assert entering.completion is None
        assert not entering.token_ids
        engine.add(other)
        engine.add(waiting)
        for sequence in (entering, waiting, written):
            engine.cancel(sequence)
            assert sequence.completion.finish_reason == "cancelled"
        assert written.completion
        assert alone(storybook, PROMPTS[0], temperature=0, max_tokens=30).text.startswith(written.completion.text)
        again = self.sequence(storybook, long)
        engine.add(again)
        self.finish(engine)
        expected = [alone(storybook, prompt, temperature=0, max_tokens=30) for prompt in (PROMPTS[1], PROMPTS[2], long)]
        assert [staying.completion, other.completion, again.completion] == expected

    def test_prompts_and_tokens_take_turns(self, storybook: Model) -> None:
        engine = storybook.new_engine(2, storybook.positions)
        first, second = (
            self.sequence(storybook, PROMPTS[0]),
            self.sequence(storybook, storybook.tokenize(STORY)[: 4 * CHUNK]),
        )
        engine.add(first)
        self.steps(engine, 2)
        before = len(first.token_ids)
        engine.add(second)
        while not second.token_ids:
            engine.step()
        assert len(first.token_ids) - before >= 3
