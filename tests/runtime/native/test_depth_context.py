"""A `DepthContext`: the logits do not depend on which of its two contexts has a sequence, or since when."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from dgpt2_quant.runtime.native.batch_token import Logits
from dgpt2_quant.runtime.native.context import CELLS, F16, F32, NativeContext
from dgpt2_quant.runtime.native.depth_context import FLASH_POSITIONS, DepthContext, transpose
from dgpt2_quant.runtime.native.model import NativeModel

LENGTH = CELLS + 20
TOKENS = [(31 * index) % 8000 for index in range(2 * CELLS)]

Make = Callable[[bool], NativeContext]


@pytest.fixture(params=[F16, F32], ids=["f16", "f32"])
def make(request: pytest.FixtureRequest, short_files: dict[str, Path]) -> Iterator[Make]:
    model = NativeModel(short_files["Q4_0"])
    made = []

    def make(flash_attention: bool) -> NativeContext:
        options = {"flash_attention": flash_attention, "kv_type": request.param}
        made.append(NativeContext(model, 512, slots=3, batch=FLASH_POSITIONS, **options))
        return made[-1]

    yield make
    for context in made:
        context.close()
    model.close()


@pytest.fixture
def context(make: Make) -> DepthContext:
    return DepthContext(make)


def feed(slot: int, position: int) -> SimpleNamespace:
    """Different tokens for each slot."""
    return SimpleNamespace(token=TOKENS[position] + slot, next_position=position, slot=slot)


def one(context: NativeContext | DepthContext, slot: int, position: int) -> Logits:
    return context.decode_each([feed(slot, position)])[0].copy()


def prompt(context: NativeContext | DepthContext, slot: int, length: int) -> None:
    for begin in range(0, length, FLASH_POSITIONS):
        context.decode([TOKENS[at] + slot for at in range(begin, min(begin + FLASH_POSITIONS, length))], begin, slot)


@pytest.fixture
def expected(make: Make) -> list[list[Logits]]:
    """For two slots: rows of single tokens after a prompt of 100, from position 100 to `LENGTH`."""
    flash, plain = make(True), make(False)
    found = []
    for slot in (0, 1):
        prompt(flash, slot, 100)
        rows = [one(flash, slot, position) for position in range(100, FLASH_POSITIONS)]
        plain.restore(slot, transpose(flash.save(slot)))
        found.append(rows + [one(plain, slot, position) for position in range(FLASH_POSITIONS, LENGTH)])
    return found


def same(found: list[Logits], expected: list[Logits]) -> bool:
    return all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


def test_the_plain_context_is_made_when_it_is_needed_and_kept(
    context: DepthContext, expected: list[list[Logits]]
) -> None:
    prompt(context, 0, 100)
    found = [one(context, 0, position) for position in range(100, FLASH_POSITIONS)]
    assert context._plain is None
    found += [one(context, 0, position) for position in range(FLASH_POSITIONS, LENGTH)]
    made = context._plain
    assert same(found, expected[0])
    context.keep(100)
    end = FLASH_POSITIONS + 9
    assert same([one(context, 0, position) for position in range(100, end)], expected[0][: end - 100])
    assert context._plain is made


def test_forget_after_an_interrupt(context: DepthContext, expected: list[list[Logits]]) -> None:
    prompt(context, 0, 200)
    one(context, 0, 200)
    context._both[0] = 150  # in the middle of a change nothing is consistent
    context.forget()
    for slot in (0, 1):
        prompt(context, slot, 100)
    assert same([one(context, 0, position) for position in range(100, LENGTH)], expected[0])
    assert same([one(context, 1, position) for position in range(100, LENGTH)], expected[1])


def test_several_sequences_move_to_the_plain_context(context: DepthContext, expected: list[list[Logits]]) -> None:
    found: list[list[Logits]] = [[], []]
    for slot in (0, 1):
        prompt(context, slot, 100)
    for first, position in enumerate(range(100, LENGTH)):  # one after the other, the second much later than the first
        found[0].append(one(context, 0, position))
        if first % 4 == 0:
            found[1].append(one(context, 1, 100 + first // 4))
    assert same(found[0], expected[0])
    assert same(found[1], expected[1][: len(found[1])])
    context.keep(0, 0)
    for position in range(100 + len(found[1]), LENGTH):  # and after the other one has gone
        found[1].append(one(context, 1, position))
    assert same(found[1], expected[1])


def test_a_short_sequence_that_moved_with_a_long_one_stays(context: DepthContext) -> None:
    for slot, length in ((0, 200), (1, 10)):
        prompt(context, slot, length)
    together = [row.copy() for row in context.decode_each([feed(0, 200), feed(1, 10)])[:2]]
    assert context._left == {0: 200, 1: 10}
    row = one(context, 1, 11)
    context.keep(10, 1)
    assert context._left == {0: 200}
    again = [row.copy() for row in context.decode_each([feed(0, 201), feed(1, 10)])[:2]]
    assert np.array_equal(again[1], together[1])
    assert np.array_equal(one(context, 1, 11), row)


def test_unchanged_cells_are_not_copied_again(
    context: DepthContext, expected: list[list[Logits]], monkeypatch: pytest.MonkeyPatch
) -> None:
    carried = []
    real = NativeContext.restore
    monkeypatch.setattr(NativeContext, "restore", lambda *given: (carried.append(given[1]), real(*given)))
    prompt(context, 0, 200)
    rows = [one(context, 0, position) for position in range(200, 203)]
    assert carried == [0]
    for kept in (200, 200, 201):
        context.keep(kept)
        assert same([one(context, 0, position) for position in range(kept, 203)], rows[kept - 200 :])
    assert carried == [0]
    context.keep(100)  # and then single tokens in the flash one
    assert same([one(context, 0, position) for position in range(100, 203)], expected[0][: 203 - 100])
    assert carried == [0, 0]
    context.keep(0)  # the prompt anew, to where the far one is still known to have had cells
    prompt(context, 0, 200)
    assert same([one(context, 0, position) for position in range(200, 203)], rows)
    assert carried == [0, 0, 0]


@pytest.mark.parametrize("length", [100, 200])
def test_copy_copies_both_contexts(context: DepthContext, length: int) -> None:
    prompt(context, 2, length + 1)  # so that it has to go
    prompt(context, 0, length)
    for position in range(length, length + 3):
        one(context, 0, position)
    context.copy(0, 2)
    context.keep(length + 2, 2)
    before = one(context, 0, length + 3)
    context.decode([TOKENS[length + 2]], length + 2, 2)
    after = context.decode_each([SimpleNamespace(token=TOKENS[length + 3], next_position=length + 3, slot=2)])[0]
    assert np.array_equal(before, after)


def test_a_prompt_of_one_token_more_than_its_chunks(context: DepthContext) -> None:
    prompt(context, 0, FLASH_POSITIONS + 1)
    whole = context.logits(1)[0].copy()
    context.keep(FLASH_POSITIONS)
    context.decode([TOKENS[FLASH_POSITIONS]], FLASH_POSITIONS)
    assert np.array_equal(context.logits(1)[0], whole)
    context.decode(TOKENS[FLASH_POSITIONS + 1 : FLASH_POSITIONS + 5], FLASH_POSITIONS + 1)  # and goes on where that is
    assert context._left == {0: FLASH_POSITIONS}
