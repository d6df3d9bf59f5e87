"""GPTQ: its loss is below the C quantizer's, and each part lowers it."""

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.core.ggml import dequantize, quantize
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.lean.block_codes import read_grid
from dgpt2_quant.quantize.lean.gptq import DAMPING, Factor, factor, round_matrix
from dgpt2_quant.quantize.recipes.tensor_types import ROUNDABLE

ROWS, COLUMNS = 24, 256
RANDOM = np.random.default_rng(0)
WEIGHTS = RANDOM.normal(0, 0.1, (ROWS, COLUMNS)).astype(np.float32)
Gram = npt.NDArray[np.float64]


def correlated(size: int, seed: int) -> Gram:
    """The Gram matrix of correlated inputs of different sizes."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(4 * size, size // 4)) @ random.normal(size=(size // 4, size))
    x = (x + 2 * random.normal(size=x.shape)) * random.gamma(1, 1, size)
    return np.asarray(x.T @ x / len(x))


H, G = correlated(COLUMNS, 1), correlated(ROWS, 2)
each_type = pytest.mark.parametrize("kind", ROUNDABLE, ids=lambda kind: kind.name)


def values(blocks: npt.NDArray[np.uint8], kind: TensorType, weights: Any = WEIGHTS) -> Gram:
    return dequantize("w", np.ascontiguousarray(blocks), kind, weights.shape).astype(np.float64)


def loss(blocks: npt.NDArray[np.uint8], kind: TensorType, h: Gram = H, g: Gram | None = None) -> float:
    """tr((W - Q) H (W - Q)' G)."""
    off = WEIGHTS - values(blocks, kind)
    return float(np.trace(off @ h @ off.T @ (np.eye(ROWS) if g is None else g)))


def by_c(kind: TensorType) -> npt.NDArray[np.uint8]:
    return quantize("w", WEIGHTS, [kind], np.diag(H).astype(np.float32))[0]


@each_type
def test_loss_is_below_the_c_quantizer(kind: TensorType) -> None:
    ours = loss(round_matrix("w", WEIGHTS, kind, factor(H)), kind)
    assert 0 < ours < 0.75 * loss(by_c(kind), kind)


@pytest.mark.parametrize("kind", [TensorType.Q4_K, TensorType.Q4_0, TensorType.IQ4_NL], ids=lambda kind: kind.name)
def test_row_feedback_lowers_the_loss(kind: TensorType) -> None:
    one = round_matrix("w", WEIGHTS, kind, factor(H))
    both = round_matrix("w", WEIGHTS, kind, factor(H), factor(G))
    assert loss(both, kind, g=G) < 0.9 * loss(one, kind, g=G)
    assert loss(one, kind) < loss(both, kind)  # rows alone get worse


@each_type
def test_sweeps_never_raise_the_loss(kind: TensorType) -> None:
    inputs = factor(H)
    damped = H + DAMPING * np.diag(H).mean() * np.eye(COLUMNS)  # the matrix that the sweeps use
    losses = [loss(round_matrix("w", WEIGHTS, kind, inputs, sweeps=n), kind, damped) for n in range(4)]
    assert losses[1] < losses[0]
    assert all(after <= before * (1 + 1e-6) for before, after in pairwise(losses))


def test_error_is_spread_over_remaining_columns() -> None:
    """Without sweeps, each column is rounded from its best value, given the errors before it."""
    kind, inputs = TensorType.Q4_0, factor(H)
    (blocks,) = quantize("w", WEIGHTS[:3], [kind], inputs.column_weights)
    grid = read_grid("w", blocks, kind, (3, COLUMNS), inputs.order)
    h, wanted = inputs.gram.astype(np.float64), WEIGHTS[:3].T[inputs.order].astype(np.float64)
    expected = np.empty((COLUMNS, 3))
    for at in range(COLUMNS):
        before = wanted[:at] - expected[:at]
        best = wanted[at] + np.linalg.solve(h[at:, at:], h[at:, :at] @ before)[0]
        steps = ((best - grid.offset[at]) * grid.inverse[at]).astype(np.float32)
        grid.nearest(steps, steps)
        expected[at] = grid.offset[at] + grid.scale[at] * steps
    found = values(round_matrix("w", WEIGHTS[:3], kind, inputs, sweeps=0), kind, WEIGHTS[:3])
    same = np.isclose(found.T[inputs.order], expected, atol=1e-6)
    assert same[:128].all()
    assert same.mean() > 0.98  # a tie rounded the other way affects all columns after it


@each_type
def test_scales_are_those_of_the_c_quantizer(kind: TensorType) -> None:
    """For uncorrelated columns no error is spread: values are the nearest possible."""
    inputs = factor(np.eye(COLUMNS))
    (blocks,) = quantize("w", WEIGHTS, [kind], inputs.column_weights)
    ours, theirs = (np.abs(WEIGHTS - values(b, kind)) for b in (round_matrix("w", WEIGHTS, kind, inputs), blocks))
    assert (ours <= theirs + 1e-6).all()


@pytest.mark.parametrize("outputs", [None, G], ids=["one side", "both sides"])
def test_deterministic(outputs: Gram | None) -> None:
    def rounded() -> bytes:
        other = None if outputs is None else factor(outputs)
        return round_matrix("w", WEIGHTS.copy(), TensorType.Q4_K, factor(H.copy()), other).tobytes()

    assert rounded() == rounded()


def test_arguments_are_not_modified() -> None:
    weights, h, g = WEIGHTS.copy(), H.copy(), G.copy()
    round_matrix("w", weights, TensorType.Q4_0, factor(h), factor(g))
    assert np.array_equal(weights, WEIGHTS)
    assert np.array_equal(h, H)
    assert np.array_equal(g, G)


def test_rows_are_independent_without_outputs() -> None:
    inputs = factor(H)
    whole = round_matrix("w", WEIGHTS, TensorType.Q5_K, inputs)
    parts = [round_matrix("w", WEIGHTS[n : n + 1], TensorType.Q5_K, inputs) for n in range(0, ROWS, 3)]
    apart = sum(not np.array_equal(one[0], row) for one, row in zip(parts, whole[::3], strict=True))
    assert apart <= 1  # except ties, which sums in another order may round differently


@each_type
def test_unused_columns_are_rounded(kind: TensorType) -> None:
    """Inputs that are all zero, or nearly; of one column only; and of a single token."""
    one = np.zeros((COLUMNS, COLUMNS))
    one[7, 7] = 4.0
    token = RANDOM.normal(size=(1, COLUMNS))
    few = WEIGHTS[:3]
    scale = float(np.abs(few).max())
    outputs = factor(np.zeros((3, 3)))
    for gram in (0 * H, 1e-30 * H, one, token.T @ token):
        found = values(round_matrix("w", few, kind, factor(gram), outputs, sweeps=1), kind, few)
        assert np.isfinite(found).all()
        assert np.abs(found).max() < 3 * scale


def test_zero_matrix_stays_zero() -> None:
    weights = np.zeros((5, COLUMNS), np.float32)
    for kind in ROUNDABLE:
        assert not values(round_matrix("w", weights, kind, factor(H)), kind, weights).any()


class TestFactor:
    """The factor of a Gram matrix."""

    found: Factor = factor(H)
    damped = H + DAMPING * np.diag(H).mean() * np.eye(COLUMNS)

    def test_solve(self) -> None:
        assert np.array_equal(self.found.upper, np.triu(self.found.upper))
        np.testing.assert_allclose(self.found.gram, self.damped[np.ix_(self.found.order, self.found.order)], rtol=1e-5)
        left = np.random.default_rng(5).normal(size=(7, COLUMNS)).astype(np.float32)
        np.testing.assert_allclose(self.found.solve(left) @ self.damped, left, atol=2e-3)

    def test_largest_diagonal_first(self) -> None:
        assert (np.diff(np.diag(self.found.gram)) <= 0).all()

    def test_column_weights(self) -> None:
        expected = 1 / np.diag(np.linalg.inv(self.damped))
        np.testing.assert_allclose(self.found.column_weights, expected, rtol=1e-3)
