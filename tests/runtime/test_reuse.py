"""A prompt gives the same bits whether it is computed or reused from another prompt."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.runtime import Completion, Model
from dgpt2_quant.runtime.decode_loop import Engine
from dgpt2_quant.runtime.native.context import CELLS
from dgpt2_quant.runtime.native.depth_context import FLASH_POSITIONS
from dgpt2_quant.runtime.sequence import Sequence
from dgpt2_quant.runtime.slot import CHUNK

STORY = (Path(__file__).parents[2] / "demo" / "evaluation.txt").read_text("utf-8")
LEVELS = ["F32", "Q4_K_M", "Q4_0"]  # 8 bits: with every kind of cache
LENGTH = 3 * CHUNK + 30
SHARED = [1, CHUNK - 1, CHUNK, CHUNK + 5, 2 * CHUNK, LENGTH - 1]
CACHES: list[dict[str, Any]] = [
    {"flash_attention": False},
    {"flash_attention": True},
    {"kv_type": "f32"},
    {"kv_type": "bf16"},
    {"kv_type": "q8_0", "flash_attention": True},
]

Told = tuple[Any, ...]


@pytest.fixture(scope="module", params=LEVELS)
def level(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(level: str, short_files: dict[str, Path]) -> Iterator[Model]:
    with Model.load(short_files[level], threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def prompt(model: Model) -> list[int]:
    return model.tokenize(STORY)[:LENGTH]


@pytest.fixture(scope="module")
def fresh(model: Model, prompt: list[int]) -> Told:
    """What comes of the prompt when nothing was before it."""
    forget(model)
    told, computed = write(model, prompt)
    assert computed == LENGTH
    return told


def details(completion: Completion | None) -> Told:
    """The text, and all probabilities bit by bit."""
    assert completion is not None
    return tuple(vars(completion).values())


def write(model: Model, prompt: list[int], **options: Any) -> tuple[Told, int]:
    """What came, and how many tokens of the prompt were computed for it."""
    generation = model.stream(prompt, **{"seed": 1, "max_tokens": 5, "logprobs": 5, "temperature": 1, **options})
    for _ in generation:
        pass
    return details(generation.completion), generation.timing.prompt_computed


def forget(model: Model) -> None:
    """Computes another prompt, so that nothing of earlier ones is reused."""
    write(model, [9, 9, 9])


def other(prompt: list[int], shared: int, more: int = 30) -> list[int]:
    """A prompt with the same beginning, and another token after it."""
    return [*prompt[:shared], (prompt[shared] + 1) % 8000, *range(100, 100 + more)]


class TestOneSlot:
    @pytest.mark.parametrize("shared", SHARED)
    def test_after_another_prompt(self, model: Model, prompt: list[int], fresh: Told, shared: int) -> None:
        write(model, other(prompt, shared))
        assert write(model, prompt) == (fresh, LENGTH - shared // CHUNK * CHUNK)

    def test_after_itself(self, model: Model, prompt: list[int], fresh: Told) -> None:
        write(model, prompt, max_tokens=40, seed=9)
        assert write(model, prompt) == (fresh, 0)

    def test_after_a_longer_prompt(self, model: Model, prompt: list[int], fresh: Told) -> None:
        write(model, [*prompt, 5, 6])
        assert write(model, prompt) == (fresh, 30)

    @pytest.mark.parametrize("length", [CHUNK, 3 * CHUNK])
    def test_after_a_shorter_prompt(self, model: Model, prompt: list[int], fresh: Told, length: int) -> None:
        write(model, prompt[:length], max_tokens=CHUNK)  # of its text nothing may be taken for the prompt
        assert write(model, prompt) == (fresh, LENGTH - length)

    @pytest.mark.parametrize("length", [FLASH_POSITIONS - 5, FLASH_POSITIONS, CELLS - 5])
    def test_where_the_text_goes_on_into_another_context(self, model: Model, prompt: list[int], length: int) -> None:
        forget(model)
        told, computed = write(model, prompt[:length], max_tokens=12)
        assert computed == length
        for before in (prompt, other(prompt, 2 * CHUNK), prompt[:length]):
            write(model, before, max_tokens=12)
            assert write(model, prompt[:length], max_tokens=12)[0] == told

    def test_after_a_dropped_or_scored_prompt(self, model: Model, prompt: list[int], fresh: Told) -> None:
        next(model.stream(other(prompt, CHUNK + 36)))
        assert write(model, prompt) == (fresh, LENGTH - CHUNK)
        for tokens in (other(prompt, 100), prompt, [1]):
            model.score(tokens)
            assert write(model, prompt)[0] == fresh

    def test_after_a_scored_prompt(self, model: Model, prompt: list[int], fresh: Told) -> None:
        write(model, prompt, echo=True)
        assert write(model, prompt) == (fresh, LENGTH % CHUNK)

    @pytest.mark.parametrize("length", [CHUNK - 2, CHUNK - 1, CHUNK, CHUNK + 40])
    @pytest.mark.parametrize("echo", [False, True])
    def test_of_a_healed_prompt(self, model: Model, prompt: list[int], length: int, echo: bool) -> None:
        # the row before each of the last two tokens counts; they may be in two chunks
        healed = [*prompt[:length], *model.tokenize(" relate")]
        plain = [healed, healed[:-1], healed[:-2]]
        forget(model)
        told, computed = write(model, healed, echo=echo, token_healing=True)
        assert computed == length + 1
        assert write(model, healed, echo=echo, token_healing=True) == (told, 0)
        for before in plain:
            forget(model)
            of_plain, _ = write(model, before, echo=echo)
            assert write(model, healed, echo=echo, token_healing=True)[0] == told
            assert write(model, before, echo=echo)[0] == of_plain

    def test_letters_of_one_word_share_their_prompt(self, model: Model, prompt: list[int]) -> None:
        words = [[*prompt, *model.tokenize(word)] for word in (" b", " be")]
        forget(model)
        assert [write(model, word, token_healing=True)[1] for word in words] == [LENGTH, 0]

    def test_a_conversation(self, model: Model, prompt: list[int]) -> None:
        said, steps = prompt[:180], []
        for _ in range(4):
            told, computed = write(model, said, max_tokens=25)
            steps.append((list(said), told))
            said += [*told[3], 10]
        assert len(said) > CELLS > FLASH_POSITIONS
        assert computed < 2 * CHUNK
        for said, told in reversed(steps):
            forget(model)
            assert write(model, said, max_tokens=25) == (told, len(said))

    def test_with_two_threads(self, level: str, short_files: dict[str, Path], prompt: list[int], fresh: Told) -> None:
        with Model.load(short_files[level], threads=2) as model:
            assert write(model, prompt) == (fresh, LENGTH)
            write(model, other(prompt, CHUNK + 5))
            assert write(model, prompt) == (fresh, LENGTH - CHUNK)


@pytest.mark.parametrize("cache", CACHES, ids=str)
def test_with_every_kind_of_cache(short_files: dict[str, Path], cache: dict[str, Any]) -> None:
    with Model.load(short_files["Q8_0"], threads=1, **cache) as model:
        prompt = model.tokenize(STORY)[:LENGTH]
        fresh, computed = write(model, prompt)
        assert computed == LENGTH
        for shared in (1, CHUNK + 5, 2 * CHUNK):
            write(model, other(prompt, shared))
            assert write(model, prompt) == (fresh, LENGTH - shared // CHUNK * CHUNK)


class TestSeveralSlots:
    @pytest.fixture
    def engine(self, model: Model) -> Iterator[Engine]:
        engine = model.new_engine(3, model.positions)
        yield engine
        engine.context.close()

    @pytest.fixture
    def fresh(self, model: Model, engine: Engine, prompt: list[int]) -> Told:
        ((told, computed),) = self.write(engine, self.sequence(model, prompt))
        assert computed == LENGTH
        engine.reset()
        return told

    def sequence(self, model: Model, prompt: list[int], **options: Any) -> Sequence:
        return model.new_sequence(prompt, **{"seed": 1, "max_tokens": 5, "logprobs": 5, "temperature": 1, **options})

    def write(self, engine: Engine, *sequences: Sequence) -> list[tuple[Told, int]]:
        for sequence in sequences:
            engine.add(sequence)
        while not engine.idle:
            engine.step()
        return [(details(sequence.completion), sequence.timing.prompt_computed) for sequence in sequences]

    @pytest.mark.parametrize("shared", [2 * CHUNK + 5])
    def test_alone_after_others(
        self, model: Model, engine: Engine, prompt: list[int], fresh: Told, shared: int
    ) -> None:
        others = [other(prompt, shared), prompt[200:230], other(prompt, shared, more=5)]
        self.write(engine, *(self.sequence(model, each) for each in others))
        assert self.write(engine, self.sequence(model, prompt)) == [(fresh, LENGTH - shared // CHUNK * CHUNK)]
        assert self.write(engine, self.sequence(model, prompt)) == [(fresh, 0)]

    def test_the_same_prompt_in_all_slots_is_computed_once(
        self, model: Model, engine: Engine, prompt: list[int], fresh: Told
    ) -> None:
        found = self.write(engine, *(self.sequence(model, prompt) for _ in range(3)))
        assert [computed for _, computed in found] == [LENGTH, 0, 0]
        assert {told[3][0] for told, _ in found} == {fresh[3][0]}
        assert {told[4][0].logprob for told, _ in found} == {fresh[4][0].logprob}  # of the prompt's own last row
        assert self.write(engine, self.sequence(model, prompt)) == [(fresh, 0)]

    def test_of_a_prompt_that_is_being_continued(
        self, model: Model, engine: Engine, prompt: list[int], fresh: Told
    ) -> None:
        # the slot that has it is at work, so it is copied to another one
        busy = self.sequence(model, prompt, max_tokens=60)
        engine.add(busy)
        while len(busy.token_ids) < 20:
            engine.step()
        late = self.sequence(model, prompt, max_tokens=1)
        engine.add(late)
        while late.completion is None:
            engine.step()
        assert late.timing.prompt_computed == 0
        assert details(late.completion)[4][0] == fresh[4][0]
        engine.cancel(busy)
        assert self.write(engine, self.sequence(model, prompt)) == [(fresh, 0)]

    def test_after_a_prompt_that_was_cancelled(
        self, model: Model, engine: Engine, prompt: list[int], fresh: Told
    ) -> None:
        begun = self.sequence(model, prompt)
        engine.add(begun)
        engine.step()
        engine.step()
        engine.cancel(begun)
        assert engine.idle
        assert self.write(engine, self.sequence(model, prompt)) == [(fresh, LENGTH - 2 * CHUNK)]
