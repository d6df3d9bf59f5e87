"""GPTQ: rounds a matrix column by column and spreads each error over the remaining columns.

For a matrix W with inputs x, rounded to Q, the loss is E[tr((W - Q) x xᵀ (W - Q)ᵀ G)]. H = E[x xᵀ] couples the errors
of columns; G = E[g gᵀ] those of rows, where g is the gradient of the log-likelihood with respect to the outputs.
After a column is rounded, its error is spread over the remaining columns through the Cholesky factor of H⁻¹
(GPTQ, Frantar et al. 2022, arXiv:2210.17323); after a group of rows, over the remaining rows through that of G⁻¹ (both
sides: YAQA, Tseng et al. 2025, arXiv:2505.22988). Then sweeps of coordinate descent round every column again, given
all others (Behdin et al. 2023, arXiv:2309.01885). Scales and block formats are those of the C quantizer.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.core.ggml import quantize
from dgpt2_quant.core.parallel import by_rows, evenly, in_parallel
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.core.workers import check_cancelled

from .block_codes import Bytes, Grid, read_grid, with_codes

Array = npt.NDArray[np.float32]
Matrix = npt.NDArray[np.floating]

DAMPING = 0.03  # times the mean of the diagonal, added to it: for directions rare in the calibration text
_COLUMNS = 64  # rounded before their errors are applied to later blocks
_GROUPS = 16  # of rows; a gain from more is within the noise
_STEPS = 24_576  # columns over all groups, one step each: wide matrices get fewer groups
_LEAST_ROWS = 16  # per group
_SOLVED = 256  # rows per task
_QUANTIZED = 1 << 15  # weights per task
_AT_ONCE = 1 << 21  # weights per task, so that its columns fit the cache
SWEEPS = 2  # of coordinate descent; a third gains a quarter as much as the first


@dataclass(frozen=True)
class Factor:
    """The Cholesky factor of the inverse of a damped Gram matrix (H or G).

    It is permuted by `order`, the order of rounding.
    """

    order: npt.NDArray[np.intp]
    upper: Array

    @cached_property
    def column_weights(self) -> Array:
        """1 / diagonal of the inverse: the loss of a unit error after all others compensate for it."""
        weights: Array = 1 / np.square(self.upper).sum(axis=0)
        return weights[np.argsort(self.order)]

    def solve(self, left: Array) -> Array:
        """Solves X · gram = `left` for X, shape (rows, n)."""
        ordered = left[:, self.order]
        solved = by_rows(lambda rows: (rows @ self.upper.T) @ self.upper, ordered, left.shape[1], _SOLVED)
        return solved[:, np.argsort(self.order)]


@dataclass(frozen=True)
class GramFactor(Factor):
    """With the damped Gram matrix itself, permuted too."""

    gram: Array


def factor(gram: Matrix) -> GramFactor:
    """Factors a symmetric positive semidefinite matrix, shape (n, n), ordered by decreasing diagonal.

    Raises `CheckpointError` for values that are not finite.
    """
    diagonal = np.diag(gram).astype(np.float64)
    if not np.isfinite(diagonal).all():  # no element is larger than the diagonal's largest
        raise CheckpointError(
            "the model's activations on the calibration text are not finite",
            "Its weights are damaged: does it generate sensible text?",
        )
    weight = diagonal.mean()
    order = np.argsort(-diagonal, kind="stable")
    damped = np.asarray(gram[np.ix_(order, order)], np.float64)
    damped[np.diag_indices_from(damped)] += DAMPING * weight if weight > 0 else 1.0
    # H = R Rᵀ with R upper (the lower factor of the reversed matrix, reversed), so that H⁻¹ = (R⁻¹)ᵀ R⁻¹
    lower = np.linalg.cholesky(damped[::-1, ::-1])
    single = damped.astype(np.float32)
    del damped  # the matrices are large
    root = np.ascontiguousarray(lower[::-1, ::-1], np.float32)
    del lower
    return GramFactor(order, _inverse_of_upper(root), single)


def _inverse_of_upper(matrix: Array) -> Array:
    """Inverts an upper triangular matrix by quarters, in a tenth of the time of a general inverse."""
    inverse = np.zeros_like(matrix)

    def fill(first: int, end: int) -> None:
        own = slice(first, end)
        if end - first <= _COLUMNS:
            inverse[own, own] = np.triu(np.linalg.inv(matrix[own, own]))
            return
        middle = (first + end) // 2
        fill(first, middle)
        fill(middle, end)
        upper, lower = slice(first, middle), slice(middle, end)
        inverse[upper, lower] = -(inverse[upper, upper] @ (matrix[upper, lower] @ inverse[lower, lower]))

    fill(0, len(matrix))
    return inverse


def round_matrix(
    name: str,
    weights: Array,
    tensor_type: TensorType,
    inputs: GramFactor,
    outputs: Factor | None = None,
    *,
    sweeps: int = SWEEPS,
    progress: Progress | None = None,
) -> Bytes:
    """Rounds a matrix to any of `tensor_types.ROUNDABLE`; returns its blocks, shape (rows, bytes of a row).

    `weights` has shape (rows, columns), `inputs` is the factor of H and `outputs` that of G (None: rows are rounded
    independently; only then `progress` is called). Raises the errors of `ggml.quantize`.
    """
    rows, columns = weights.shape
    blocks = np.empty((rows, tensor_type.row_bytes(columns)), np.uint8)
    if outputs is None:

        def round_piece(piece: slice) -> None:
            blocks[piece], _ = _round_rows(name, weights[piece], tensor_type, inputs, sweeps)

        some = evenly(rows, max(1, _AT_ONCE // columns))
        for number, _ in enumerate(in_parallel(round_piece, some)):
            if progress:
                progress(number + 1, len(some), name)
        return blocks
    left = weights[outputs.order]
    size = max(_LEAST_ROWS, -(-rows // max(1, min(_GROUPS, _STEPS // columns))))
    for first in range(0, rows, size):
        end = min(rows, first + size)
        blocks[outputs.order[first:end]], error = _round_rows(name, left[first:end], tensor_type, inputs, sweeps)
        if end < rows:
            own = outputs.upper[first:end, first:end].astype(np.float64)
            share = np.linalg.solve(own, outputs.upper[first:end, end:]).astype(np.float32)
            left[end:] -= share.T @ error
    return blocks


def quantize_rows(name: str, weights: Array, tensor_type: TensorType, weighing: Array | None = None) -> Bytes:
    """Quantizes with the C quantizer, some rows per task: a large matrix takes minutes in some types."""
    some = evenly(len(weights), max(1, _QUANTIZED // weights.shape[1]))
    return np.concatenate(
        [*in_parallel(lambda piece: quantize(name, weights[piece], [tensor_type], weighing)[0], some)]
    )


def _round_rows(
    name: str, weights: Array, tensor_type: TensorType, inputs: GramFactor, sweeps: int
) -> tuple[Bytes, Array]:
    """Rounds rows; returns the blocks and their error, weights minus decoded weights."""
    blocks = quantize_rows(name, weights, tensor_type, inputs.column_weights)
    grid = read_grid(name, blocks, tensor_type, (len(weights), weights.shape[1]), inputs.order)
    wanted = weights.T[inputs.order]
    wanted -= grid.offset
    levels = _gptq_pass(wanted, grid, inputs.upper)
    off = grid.scale * levels
    off -= wanted
    if sweeps:
        step = np.divide(grid.inverse, np.diag(inputs.gram)[:, None], dtype=np.float32)
        for _ in range(sweeps):
            _coordinate_descent(levels, off, step, grid, inputs.gram)
    back = np.argsort(inputs.order)
    rounded = with_codes(tensor_type, blocks, grid.codes(levels)[back].T)
    return rounded, -off[back].T


def _gptq_pass(wanted: Array, grid: Grid, upper: Array) -> Array:
    """Runs GPTQ once; returns levels, shape (columns, rows), for `wanted`, the weights minus the grid's offset."""
    columns, rows = wanted.shape
    levels, errors = np.empty_like(wanted), np.empty_like(wanted)
    buffer = np.empty(rows, np.float32)
    for first in range(0, columns, _COLUMNS):
        check_cancelled()
        end = min(columns, first + _COLUMNS)
        left = wanted[first:end] - upper[:first, first:end].T @ errors[:first]
        within = np.ascontiguousarray(upper[first:end, first:end].T)
        for at, column in enumerate(range(first, end)):
            remaining = left[at]
            if at:
                remaining -= np.dot(within[at, :at], errors[first:column], out=buffer)
            np.multiply(remaining, grid.inverse[column], out=buffer)
            grid.nearest(buffer, levels[column])
            error = errors[column]
            np.multiply(levels[column], grid.scale[column], out=error)
            np.subtract(remaining, error, out=error)
            error /= within[at, at]
    return levels


def _coordinate_descent(levels: Array, off: Array, step: Array, grid: Grid, gram: Array) -> None:
    """Makes one sweep of coordinate descent: sets each column to its best level, given all others.

    `off`, decoded minus wanted weights, is updated; `step` is the change of a level that cancels a slope of 1.
    """
    columns, rows = levels.shape
    best = np.empty(rows, np.float32)
    for first in range(0, columns, _COLUMNS):
        check_cancelled()
        end = min(columns, first + _COLUMNS)
        slopes = gram[first:end] @ off
        changes = np.empty_like(slopes)
        for at, column in enumerate(range(first, end)):
            slope, level, change = slopes[at], levels[column], changes[at]
            if at:
                slope += np.dot(gram[column, first:column], changes[:at], out=best)
            np.multiply(slope, step[column], out=best)
            np.subtract(level, best, out=best)
            grid.nearest(best, best)
            np.subtract(best, level, out=change)
            change *= grid.scale[column]
            level[:] = best
        off[first:end] += changes
