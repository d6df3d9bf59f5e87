"""`decode_each` returns the logits of the last decode, also after llama.cpp has moved them."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from dgpt2_quant.runtime.native.context import NativeContext
from dgpt2_quant.runtime.native.model import NativeModel


@pytest.fixture
def context(storybook_files: dict[str, Path]) -> Iterator[NativeContext]:
    model = NativeModel(storybook_files["Q4_0"])
    context = NativeContext(model, 128, slots=3)
    yield context
    context.close()
    model.close()


def tokens(count: int, position: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(token=40 + slot + position, next_position=position, slot=slot) for slot in range(count)]


def test_rows_are_those_of_the_last_decode(context: NativeContext) -> None:
    # single and several rows in turns, so that rows are taken from the cached view and from llama.cpp in every order
    for position, count in enumerate((1, 1, 3, 1, 1, 2, 3, 3, 1)):
        rows = context.decode_each(tokens(count, position))
        assert len(rows) >= count
        for row, expected in zip(rows, context.logits(count), strict=False):
            assert np.array_equal(row, expected[: len(row)])
        for slot in range(count, 3):  # the other slots need a token at each position too
            context.decode([40 + slot + position], position, slot)


def test_a_row_that_moved_is_found(context: NativeContext) -> None:
    before = context.decode_each(tokens(1, 0))[0].copy()
    context.keep(0)
    context.decode(list(range(100, 200)), 0, scored_from=0)  # more rows than llama.cpp had memory for
    context.keep(0)
    after = context.decode_each(tokens(1, 0))[0]
    assert np.array_equal(after, before)
    assert np.array_equal(after, context.logits(1)[0][: len(after)])
