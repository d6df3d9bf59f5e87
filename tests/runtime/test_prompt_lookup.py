"""Draft tokens from earlier in the text: they save decodes and change no text."""

import itertools
from collections import abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime import Completion, Model, Scheduler
from dgpt2_quant.runtime.native.context import CELLS
from dgpt2_quant.runtime.prompt_lookup import Lookup
from dgpt2_quant.runtime.sequence import Sequence

PROMPT = "Once upon a time"
STORY = (Path(__file__).parents[2] / "demo" / "evaluation.txt").read_text("utf-8")


def write(model: Model, prompt: str | list[int] = PROMPT, **options: Any) -> tuple[Completion, int]:
    """A text, greedy unless `options` differ, and the number of its decodes after the prompt."""
    before = model._single.totals.steps
    ((found,),) = model.generate([prompt], **{"temperature": 0, "max_tokens": 80, "ignore_eos": True, **options})
    return found, model._single.totals.steps - before


@pytest.fixture(scope="module")
def storybook(storybook_files: dict[str, Path]) -> Iterator[Model]:
    """In 8 bits: thousands of decodes read a quarter of the bytes."""
    with Model.load(storybook_files["Q8_0"], threads=1) as model:
        yield model


def check_likeliest(model: Model, prompt: str | list[int], completion: Completion) -> None:
    """Each token is the most likely after those before it, up to the last bits of the logits."""
    begin = model.tokenize(prompt) if isinstance(prompt, str) else prompt
    rows = model.logits([*begin, *completion.token_ids[:-1]])[len(begin) - 1 :]
    lead = rows.max(axis=1) - rows[np.arange(len(rows)), list(completion.token_ids)]
    assert lead.max() < 0.3


class TestDraft:
    @pytest.mark.parametrize(
        ("tokens", "expected"),
        [
            ([], []),
            ([1, 2, 3, 4, 5], []),
            ([1, 2, 3, 4, 5, 6, 7, 8, 2, 3, 4, 5], []),
            ([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 3, 4, 5], [6, 7, 8]),
            ([1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 7, 9, 9, 1, 2, 3, 4, 5], [7, 9, 9]),  # the last time counts
            ([7] * 5, []),
            ([7] * 6, [7, 7, 7]),
            ([1, 2] * 4, [1, 2, 1]),
            ([1, 2, 3, 4] * 2 + [1], [2, 3, 4]),
        ],
    )
    def test_tokens_after_the_same_five(self, tokens: list[int], expected: list[int]) -> None:
        for cut in {0, len(tokens) // 2, len(tokens)}:  # of the prompt, or chosen since
            lookup, chosen = Lookup(tokens[:cut]), tokens[cut:]
            lookup.draft(chosen[: len(chosen) // 2], 3)  # asked before, or not
            assert list(lookup.draft(chosen, 3)) == expected
            assert list(lookup.draft(chosen, 1)) == expected[:1]
            assert list(lookup.draft(chosen, 0)) == list(lookup.draft(chosen, -1)) == []


class TestTexts:
    def test_a_text_that_repeats_itself_takes_fewer_decodes(self, storybook: Model) -> None:
        plain, steps = write(storybook, lookup=0)
        assert steps == 79
        guessed, fewer = write(storybook)
        assert fewer < 60
        assert guessed == plain
        assert guessed.token_ids == plain.token_ids

    def test_only_greedy_texts_use_it_by_default(self, storybook: Model, storybook_files: dict[str, Path]) -> None:
        assert write(storybook, temperature=0.8, seed=1)[1] == 79
        assert write(storybook, temperature=0.8, top_k=1)[1] < 60
        prompt = storybook.tokenize("The king said that the queen was here, and the king said that the queen was") * 2
        with Model.load(storybook_files["F32"], threads=1) as exact:  # rounding must not change a sampled token
            plain, _ = write(exact, prompt, temperature=0.5, seed=1, lookup=0)
            guessed, fewer = write(exact, prompt, temperature=0.5, seed=1, lookup=3)
        assert (guessed.token_ids, fewer < 79) == (plain.token_ids, True)

    @pytest.mark.parametrize("flash_attention", ["auto", True, False])
    @pytest.mark.parametrize("length", [1, 120, 126, CELLS - 3, 400])
    def test_at_every_depth(self, short_files: dict[str, Path], flash_attention: Any, length: int) -> None:
        with Model.load(short_files["Q8_0"], threads=1, flash_attention=flash_attention) as model:
            prompt = [(31 * index) % 997 for index in range(length)]
            found, fewer = write(model, prompt)
            assert len(found.token_ids) == 80
            assert fewer < 79
            check_likeliest(model, prompt, found)
            assert write(model, prompt) == (found, fewer)

    @pytest.mark.parametrize("lookup", [1, 3, 31])
    @pytest.mark.parametrize("right", [0.0, 0.7, 1.0])
    def test_right_and_wrong_drafts_give_the_same_text(
        self, storybook: Model, monkeypatch: pytest.MonkeyPatch, lookup: int, right: float
    ) -> None:
        plain, _ = write(storybook, lookup=0)
        draft_from(monkeypatch, plain.token_ids, right)
        guessed, steps = write(storybook, lookup=lookup)
        assert guessed.token_ids == plain.token_ids
        assert guessed.text == plain.text
        if right == 0:
            assert steps == 79
        if right == 1:
            assert steps == -(-79 // (1 + lookup))
        assert write(storybook, lookup=0) == (plain, 79)

    @pytest.mark.parametrize("begin", [125, 126, 127, 128, CELLS - 3, CELLS - 2, CELLS - 1, 2 * CELLS - 6])
    def test_right_and_wrong_drafts_where_contexts_change(
        self, storybook: Model, monkeypatch: pytest.MonkeyPatch, begin: int
    ) -> None:
        prompt = storybook.tokenize(STORY)[:begin]
        plain, _ = write(storybook, prompt, lookup=0, max_tokens=14)
        draft_from(monkeypatch, plain.token_ids, 0.6)
        found = [write(storybook, prompt, max_tokens=14)[0] for _ in range(3)]
        assert len({completion.token_ids for completion in found}) == 1
        check_likeliest(storybook, prompt, found[0])

    def test_a_shorter_text_is_the_beginning_of_a_longer_one(self, short_files: dict[str, Path]) -> None:
        with Model.load(short_files["Q4_0"], threads=1) as model:
            whole = write(model)[0].token_ids
            for count in range(1, 80, 9):
                assert write(model, max_tokens=count)[0].token_ids == whole[:count]

    def test_threads_and_earlier_texts_change_nothing(self, short_files: dict[str, Path]) -> None:
        found = []
        for threads in (1, 2):
            with Model.load(short_files["Q4_K_M"], threads=threads) as model:
                found.append(write(model, max_tokens=300))
                write(model, "The king", max_tokens=50)
                found.append(write(model, max_tokens=300))
        assert found[1:] == found[:1] * 3
        assert len({completion.token_ids for completion, _ in found}) == 1

    def test_a_scheduler_of_one_writes_the_same(self, storybook: Model) -> None:
        texts = [write(storybook, prompt)[0] for prompt in (PROMPT, "The king")]
        with Scheduler(storybook, parallel=1) as scheduler:
            handles = [scheduler.submit(p, temperature=0, max_tokens=80, ignore_eos=True) for p in (PROMPT, "The king")]
            for handle, text in zip(handles, texts, strict=True):
                events = list(handle)
                assert events[-1].completion == text
                assert "".join(event.text for event in events) == text.text
                assert [token for event in events for token in event.token_ids] == list(text.token_ids)
            assert scheduler.stats.totals.decode_tokens == 2 * 79
            assert scheduler.stats.totals.steps < 2 * 60

    def test_several_sequences_together_do_not_use_it(self, storybook: Model) -> None:
        storybook.generate([PROMPT, "The king"], max_tokens=40)  # creates the engine for several
        assert storybook._several is not None
        totals = storybook._several.totals
        before = totals.steps, totals.decode_tokens
        storybook.generate([PROMPT, "The king"], temperature=0, max_tokens=40, ignore_eos=True)
        assert (totals.steps - before[0], totals.decode_tokens - before[1]) == (39, 2 * 39)

    @pytest.mark.parametrize("steps", range(30, 42, 2))
    def test_sequences_that_join_and_leave(self, storybook: Model, steps: int) -> None:
        def sequence(prompt: str, max_tokens: int) -> Sequence:
            return storybook.new_sequence(prompt, temperature=0, max_tokens=max_tokens, ignore_eos=True)

        engine = storybook.new_engine(3, storybook.positions)
        first, second, given_up = sequence(PROMPT, 100), sequence("The king", 12), sequence("My dear", 60)
        engine.add(first)
        for _ in range(steps):
            engine.step()
        engine.add(second)
        engine.add(given_up)
        for _ in range(4):
            engine.step()
        engine.cancel(given_up)
        while not engine.idle:
            engine.step()
        assert engine.totals.steps < 100
        assert engine.totals.decode_tokens == 99 + 11 + max(0, len(given_up.token_ids) - 1)
        for found, count in (first, 100), (second, 12):
            assert found.completion is not None
            assert found.completion.tokens == count
            check_likeliest(storybook, found.request.prompt, found.completion)
        engine.context.close()


class TestEnds:
    @pytest.fixture(autouse=True)
    def _all_draft_tokens_are_right(self, storybook: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        plain, _ = write(storybook, lookup=0, max_tokens=120)
        draft_from(monkeypatch, plain.token_ids, 1)

    @pytest.mark.parametrize("max_tokens", range(1, 7))
    def test_max_tokens(self, storybook: Model, max_tokens: int) -> None:
        found, _ = write(storybook, max_tokens=max_tokens)
        assert (found.tokens, found.finish_reason) == (max_tokens, "length")
        assert found == write(storybook, max_tokens=max_tokens, lookup=0)[0]

    @pytest.mark.parametrize("stop", [" daughter", "King's d", "was so", "beautiful that she was"])
    def test_stop_texts(self, storybook: Model, stop: str) -> None:
        found, _ = write(storybook, stop=stop)
        assert found.finish_reason == "stop"
        assert found == write(storybook, stop=stop, lookup=0)[0]

    def test_each_token_is_an_event(self, storybook: Model) -> None:
        before = storybook._single.totals.steps
        generation = storybook.stream(PROMPT, temperature=0, max_tokens=80, logprobs=2)
        events = list(generation)
        assert generation.completion is not None
        assert "".join(events) == generation.completion.text
        assert [event.token_ids for event in events] == [(token,) for token in generation.completion.token_ids]
        assert storybook._single.totals.steps - before == 20
        plain, _ = write(storybook, lookup=0, logprobs=2)
        assert generation.completion.logprobs is not None
        assert plain.logprobs is not None
        for one, other in zip(generation.completion.logprobs, plain.logprobs, strict=True):
            assert (one.token, list(one.top)) == (other.token, list(other.top))
            assert one.logprob == pytest.approx(other.logprob, abs=0.01)
        timing = generation.timing
        assert (timing.decode_tokens, timing.decoded) == (80, 79)
        assert timing.decode_tps == pytest.approx(79 / timing.decode_seconds)

    def test_penalties_and_a_grammar_know_each_token_once(self, storybook: Model) -> None:
        for settings in (
            {"repeat_penalty": 1.3},
            {"grammar": 'root ::= [ a-zA-Z,.\']{1,60} "!"'},
            {"logit_bias": {5: 2.0}},
        ):
            assert write(storybook, **settings)[0] == write(storybook, **settings, lookup=0)[0]

    def test_the_last_position(self, short_files: dict[str, Path]) -> None:
        for size in (20, 21, 22, 23, 24):
            with Model.load(short_files["F32"], ctx_size=size, threads=1) as model:
                found, _ = write(model, max_tokens=100)
                assert found.tokens == size - len(model.tokenize(PROMPT)) + 1
                assert found == write(model, max_tokens=100, lookup=0)[0]

    def test_a_failure_between_draft_tokens(self, storybook: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        expected = write(storybook)[0]

        def fails(sequence: Sequence, logits: Any) -> str:
            raise OSError("no more")

        stream = storybook.stream(PROMPT, temperature=0, max_tokens=80)
        with Scheduler(storybook, parallel=1) as scheduler:
            for engine in (storybook._single, scheduler._worker.engine):
                with monkeypatch.context() as patch:
                    if engine is storybook._single:
                        next(stream), next(stream)
                        assert engine._drafted
                        patch.setattr(Sequence, "advance", fails)
                        with pytest.raises(OSError, match="no more"):
                            next(stream)
                    else:
                        handle = scheduler.submit(PROMPT, temperature=0, max_tokens=200)
                        next(handle), next(handle)
                        patch.setattr(Sequence, "advance", fails)
                        with pytest.raises(OSError, match="no more"):
                            handle.result(10)
                        assert handle.timing.to_json()["decode_tps"] is None  # nobody knows how long
                assert not engine._settled or not engine._drafted
            handle = scheduler.submit(PROMPT, temperature=0, max_tokens=80, ignore_eos=True)
            assert handle.result(10) == write(storybook)[0] == expected

    def test_a_cancelled_text_leaves_nothing(self, storybook: Model) -> None:
        expected = write(storybook)[0]
        for count in range(1, 6):
            for _ in itertools.islice(storybook.stream(PROMPT, temperature=0, max_tokens=80), count):
                pass
            assert write(storybook)[0] == expected
        with Scheduler(storybook, parallel=1) as scheduler:
            handle = scheduler.submit(PROMPT, temperature=0, max_tokens=120, ignore_eos=True)
            next(handle)
            handle.cancel()
            assert expected.text.startswith(handle.result(20).text[: len(expected.text)])


@pytest.mark.parametrize("lookup", [-1, 32, 1.5, "3", True, 10**30])
def test_numbers_out_of_range(storybook: Model, lookup: Any) -> None:
    with pytest.raises(UsageError, match="`lookup` must be a whole number, 0-31, not "):
        storybook.generate(PROMPT, lookup=lookup)


def draft_from(monkeypatch: pytest.MonkeyPatch, tokens: abc.Sequence[int], right: float) -> None:
    """Drafts the text's own next tokens, each with the probability `right`, otherwise wrong ones."""
    generator = np.random.default_rng(5)

    def draft(_lookup: Lookup, chosen: abc.Sequence[int], count: int) -> abc.Sequence[int]:
        following = tokens[len(chosen) :][:count] if count > 0 else ()
        return [token if generator.random() < right else (token + 7) % 1000 for token in following]

    monkeypatch.setattr(Lookup, "draft", draft)
