"""The blocks' matrices, one after the other, each rounded for what those before it have left over.

Two streams of activations go through the model over the calibration text: one as it was trained, one through what is
quantized already, activations rounded as llama.cpp rounds them. Each matrix is rounded so that its outputs for the
second stream come nearest to its outputs for the first; its bias takes what is left of their mean.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .activations import as_multiplied
from .blocks import ROUNDABLE, Bytes
from .feedback import SWEEPS, Factor, factor, round_matrix
from .ggml import dequantize, quantize
from .lean_steps import Steps
from .parallel import ahead, by_rows, in_parallel, mean_of, pieces
from .passage import Array, Passage, names_of
from .progress import Progress
from .quant_types import TensorType
from .reference import Reference

_TOKENS = 5120  # whose products are summed at once


@dataclass(frozen=True)
class Made:
    """A tensor as it goes to the file: blocks, shape (rows, bytes of a row), and the weights they stand for."""

    tensor_type: TensorType
    blocks: Bytes
    values: npt.NDArray[np.float32]


def as_made(name: str, blocks: Bytes, tensor_type: TensorType, shape: tuple[int, ...]) -> Made:
    return Made(tensor_type, blocks, dequantize(name, blocks, tensor_type, shape))


def quantize_body(
    trained: Reference,
    lookup: Mapping[str, Array],
    chunks: Sequence[Sequence[int]],
    types: Mapping[str, TensorType],
    outputs: Mapping[str, Factor],
    steps: Steps,
    progress: Progress | None = None,
) -> dict[str, Made | Array]:
    """All matrices of the blocks, and their biases, by name.

    `lookup` has the quantized embedding and position table, `outputs` the factors of the matrices' outputs' side.
    """
    passage = Passage(trained, chunks)
    inputs = ahead(passage.inputs())
    state = passage.looked_up(lookup)
    made: dict[str, Made | Array] = {}

    def pass_through(name: str, found: Array) -> Array:
        kind = types[f"{name}.weight"]
        matrix, bias = quantize_linear(trained, name, next(inputs), found, kind, outputs, steps)
        made[f"{name}.weight"], made[f"{name}.bias"] = matrix, bias
        if progress:
            progress(sum(isinstance(part, Made) for part in made.values()), 2 * passage.halves, name)
        return by_rows(lambda part: as_multiplied(part, kind) @ matrix.values.T + bias, found, len(bias))

    for half in range(passage.halves):
        norm, first, second = names_of(half)
        inner = pass_through(first, passage.normed(norm, state))
        state += pass_through(second, passage.between(half, inner))
    return made


def quantize_linear(
    trained: Reference,
    name: str,
    wanted: Array,
    found: Array,
    tensor_type: TensorType,
    outputs: Mapping[str, Factor],
    steps: Steps,
) -> tuple[Made, Array]:
    """A matrix and its bias, from its inputs in both streams, shape (tokens, columns)."""
    weights, bias = trained.weights[f"{name}.weight"], trained.weights[f"{name}.bias"]
    means = _mean(wanted), _mean(found, tensor_type)
    blocks = _rounded(f"{name}.weight", weights, (wanted, found), means, tensor_type, outputs, steps)
    matrix = as_made(name, blocks, tensor_type, weights.shape)
    if steps.bias:
        bias = bias + (weights @ means[0] - matrix.values @ means[1]).astype(np.float32)
    return matrix, bias


def _rounded(
    name: str,
    weights: Array,
    streams: tuple[Array, Array],
    means: tuple[Array, Array],
    tensor_type: TensorType,
    outputs: Mapping[str, Factor],
    steps: Steps,
) -> Bytes:
    if not tensor_type.is_quantized:
        return quantize(name, weights, [tensor_type])[0]
    if not steps.feedback or tensor_type not in ROUNDABLE:
        return quantize(name, weights, [tensor_type], _mean(streams[1], tensor_type, np.square))[0]
    taken = means if steps.bias else tuple(np.zeros_like(mean) for mean in means)
    gram, late = _second_moments(weights, streams, taken, tensor_type, compensation=steps.compensation)
    inputs = factor(gram)
    if late is not None:
        # the least-squares matrix for these inputs: W + W E[(wanted - met) cᵀ] (E[c cᵀ])⁻¹, damped, of the centred c
        weights = weights + inputs.solved(late)
    sweeps = SWEEPS if steps.sweeps else 0
    return round_matrix(name, np.asarray(weights, np.float32), tensor_type, inputs, outputs.get(name), sweeps=sweeps)


def _second_moments(
    weights: Array, streams: Sequence[Array], means: Sequence[Array], tensor_type: TensorType, *, compensation: bool
) -> tuple[Array, Array | None]:
    """E[c cᵀ] of what is met, and W E[(wanted - met) cᵀ], both less their means, which are the bias's business.

    They are taken off first: a difference of products would be noise for inputs that hardly change.
    """
    wanted, found = streams
    mean, behind = np.float32(means[1]), np.float32(means[0] - means[1])
    few_rows = 2 * weights.shape[0] < weights.shape[1]  # then W goes first, which is less work

    def of_piece(piece: slice) -> list[Array]:
        met = as_multiplied(found[piece], tensor_type)
        c = met - mean
        if not compensation:
            return [c.T @ c]
        late = wanted[piece] - met
        late -= behind
        return [c.T @ c, (weights @ late.T if few_rows else late.T) @ c]

    gram, *late = mean_of(in_parallel(of_piece, pieces(len(found), _TOKENS)), len(found))
    if not late:
        return gram, None
    return gram, late[0] if few_rows else weights @ late[0]


def _mean(x: Array, tensor_type: TensorType = TensorType.F32, of: Callable[[Array], Array] = np.asarray) -> Array:
    """By column, of what a matrix of the type meets."""

    def of_piece(piece: slice) -> list[Array]:
        return [of(as_multiplied(x[piece], tensor_type)).sum(axis=0, dtype=np.float64)]

    (mean,) = mean_of(in_parallel(of_piece, pieces(len(x))), len(x))
    return mean
