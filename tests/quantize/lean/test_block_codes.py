"""Replacing codes in ggml's blocks: the C library decodes them to the intended values."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.core.ggml import dequantize, quantize
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.lean.block_codes import Grid, read_grid, with_codes
from dgpt2_quant.quantize.recipes.tensor_types import ROUNDABLE

ROWS, COLUMNS = 6, 512
SHAPE = (ROWS, COLUMNS)
WEIGHTS = np.random.default_rng(0).normal(0.02, 0.1, SHAPE).astype(np.float32)
WEIGHTS[4] *= np.repeat([1, 30], 256)  # blocks of one row with very different scales
# the number of levels by format; Q8_0 can also hold -128, which C never writes
LEVELS = {"Q4_0": 16, "Q4_1": 16, "Q5_0": 32, "Q5_1": 32, "Q8_0": 255, "Q2_K": 4, "Q3_K": 8, "Q4_K": 16, "Q5_K": 32}
LEVELS |= {"Q6_K": 64, "IQ4_NL": 16, "IQ4_XS": 16}

each_type = pytest.mark.parametrize("kind", ROUNDABLE, ids=lambda kind: kind.name)
Codes = npt.NDArray[np.int16]


def made(kind: TensorType, weights: npt.NDArray[np.float32] = WEIGHTS) -> tuple[npt.NDArray[np.uint8], Grid]:
    (blocks,) = quantize("w", weights, [kind])
    return blocks, read_grid("w", blocks, kind, weights.shape, np.arange(COLUMNS))  # type: ignore[arg-type]


def nearest(grid: Grid, wanted: npt.NDArray[np.float32]) -> tuple[Any, npt.NDArray[np.float32]]:
    """Codes and their values, both of shape (columns, rows)."""
    levels = np.empty(SHAPE[::-1], np.float32)
    for column in range(COLUMNS):
        steps = (wanted[:, column] - grid.offset[column]) * grid.inverse[column]
        grid.nearest(steps, levels[column])
    return grid.codes(levels), grid.offset + grid.scale * levels


def all_codes(kind: TensorType) -> range:
    return range(-127, 128) if kind is TensorType.Q8_0 else range(LEVELS[kind.name])


def decoded(kind: TensorType, blocks: npt.NDArray[np.uint8], codes: Any) -> npt.NDArray[np.float32]:
    return dequantize("w", with_codes(kind, blocks, codes), kind, SHAPE)


def test_roundable_types_are_supported() -> None:
    assert {kind.name for kind in ROUNDABLE} == LEVELS.keys()


@each_type
def test_grid_equals_the_c_decoder(kind: TensorType) -> None:
    blocks, grid = made(kind)
    wanted = np.random.default_rng(1).normal(0, 0.2, SHAPE).astype(np.float32)
    codes, values = nearest(grid, wanted)
    assert len(np.unique(codes)) == LEVELS[kind.name]  # all are tested
    found = decoded(kind, blocks, np.ascontiguousarray(codes.T))
    np.testing.assert_allclose(found, values.T, rtol=1e-5, atol=1e-6 * float(np.abs(values).max()))


@each_type
def test_nearest_level(kind: TensorType) -> None:
    blocks, grid = made(kind)
    wanted = np.random.default_rng(2).normal(0, 0.15, SHAPE).astype(np.float32)
    levels = np.stack([decoded(kind, blocks, np.full(SHAPE, code, np.int16)) for code in all_codes(kind)])
    least = np.abs(levels - wanted).min(axis=0)
    _, found = nearest(grid, wanted)
    np.testing.assert_allclose(np.abs(found.T - wanted), least, rtol=1e-4, atol=2e-6)


@each_type
def test_column_order(kind: TensorType) -> None:
    blocks, grid = made(kind)
    order = np.random.default_rng(4).permutation(COLUMNS)
    found = read_grid("w", blocks, kind, SHAPE, order)
    assert np.array_equal(found.scale, grid.scale[order])
    assert np.array_equal(found.offset, grid.offset[order])
    assert np.array_equal(found.inverse, grid.inverse[order])


@each_type
def test_every_code_has_its_place(kind: TensorType) -> None:
    """Neighbouring codes all differ; the C library decodes each as when it is alone."""
    blocks, _ = made(kind)
    codes = np.random.default_rng(3).choice(np.array(all_codes(kind), np.int16), SHAPE)
    alone = {code: decoded(kind, blocks, np.full(SHAPE, code, np.int16)) for code in all_codes(kind)}
    expected = np.array([[alone[int(codes[r, c])][r, c] for c in range(COLUMNS)] for r in range(ROWS)])
    assert np.array_equal(decoded(kind, blocks, codes), expected)
    assert len({values[0, 0] for values in alone.values()}) == LEVELS[kind.name]  # all differ


@each_type
def test_scales_are_unchanged(kind: TensorType) -> None:
    blocks, _ = made(kind)
    before = blocks.copy()
    low, high = (with_codes(kind, blocks, np.full(SHAPE, code, np.int16)) for code in (all_codes(kind)[0], 1))
    again = with_codes(kind, low, np.full(SHAPE, 1, np.int16))
    assert np.array_equal(again, high)  # no trace of the former codes
    assert np.array_equal(blocks, before)
    assert low.shape == blocks.shape


@each_type
@pytest.mark.parametrize("zeros", [slice(None), slice(256, None)], ids=["all", "half"])
def test_zero_blocks(kind: TensorType, zeros: slice) -> None:
    weights = WEIGHTS.copy()
    weights[:, zeros] = 0
    blocks, grid = made(kind, weights)
    with np.errstate(all="raise"):
        codes, values = (found.T for found in nearest(grid, np.full(SHAPE, 0.3, np.float32)))
    assert codes.min() >= all_codes(kind)[0]
    assert codes.max() <= all_codes(kind)[-1]
    assert not values[:, zeros].any()
    assert not decoded(kind, blocks, codes)[:, zeros].any()
