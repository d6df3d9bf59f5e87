"""The blocks' matrices, one after the other, each rounded for what those before it have left over.

Two streams of activations go through the model over the calibration text: one as it was trained, one through what is
quantized already, activations rounded as llama.cpp rounds them. Each matrix is rounded so that its outputs for the
second stream come nearest to its outputs for the first.
"""

from collections.abc import Mapping, Sequence
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

_TOKENS = 4096  # whose products are summed at once


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
) -> dict[str, Made]:
    """All matrices of the blocks, by name.

    `lookup` has the quantized embedding and position table, `outputs` the factors of the matrices' outputs' side.
    """
    passage = Passage(trained, chunks)
    inputs = ahead(passage.inputs())
    state = passage.looked_up(lookup)
    made: dict[str, Made] = {}

    def pass_through(name: str, found: Array) -> Array:
        weight, bias = f"{name}.weight", trained.weights[f"{name}.bias"]
        made[weight] = matrix = quantize_matrix(
            weight, trained.weights[weight], (next(inputs), found), types[weight], outputs.get(weight), steps
        )
        if progress:
            progress(len(made), 2 * passage.halves, name)
        return by_rows(lambda part: as_multiplied(part, types[weight]) @ matrix.values.T + bias, found, len(bias))

    for half in range(passage.halves):
        norm, first, second = names_of(half)
        inner = pass_through(first, passage.normed(norm, state))
        state += pass_through(second, passage.between(half, inner))
    return made


def quantize_matrix(
    name: str,
    weights: Array,
    streams: tuple[Array, Array],
    tensor_type: TensorType,
    outputs: Factor | None,
    steps: Steps,
) -> Made:
    """A matrix, from its inputs as trained and as met, each of the shape (tokens, columns)."""
    return as_made(name, _rounded(name, weights, streams, tensor_type, outputs, steps), tensor_type, weights.shape)


def _rounded(
    name: str,
    weights: Array,
    streams: tuple[Array, Array],
    tensor_type: TensorType,
    outputs: Factor | None,
    steps: Steps,
) -> Bytes:
    if not tensor_type.is_quantized:
        return quantize(name, weights, [tensor_type])[0]
    if not steps.feedback or tensor_type not in ROUNDABLE:
        return quantize(name, weights, [tensor_type], _mean_squares(streams[1], tensor_type))[0]
    gram, late = _second_moments(weights, streams, tensor_type, compensation=steps.compensation)
    inputs = factor(gram)
    if late is not None:
        # the least-squares matrix for these inputs: W + W E[(wanted - met) metᵀ] (E[met metᵀ])⁻¹, damped
        weights = weights + inputs.solved(late)
    sweeps = SWEEPS if steps.sweeps else 0
    return round_matrix(name, np.asarray(weights, np.float32), tensor_type, inputs, outputs, sweeps=sweeps)


def _second_moments(
    weights: Array, streams: Sequence[Array], tensor_type: TensorType, *, compensation: bool
) -> tuple[Array, Array | None]:
    """E[met metᵀ], and W E[(wanted - met) metᵀ].

    The difference is taken first: one of products would be noise for inputs that hardly change.
    """
    wanted, found = streams
    few_rows = 2 * weights.shape[0] < weights.shape[1]  # then W goes first, which is less work

    def of_piece(piece: slice) -> list[Array]:
        met = as_multiplied(found[piece], tensor_type)
        if not compensation:
            return [met.T @ met]
        late = wanted[piece] - met
        return [met.T @ met, (weights @ late.T if few_rows else late.T) @ met]

    gram, *late = mean_of(in_parallel(of_piece, pieces(len(found), _TOKENS)), len(found))
    if not late:
        return gram, None
    return gram, late[0] if few_rows else weights @ late[0]


def _mean_squares(x: Array, tensor_type: TensorType) -> Array:
    """By column, of what a matrix of the type meets."""

    def of_piece(piece: slice) -> list[Array]:
        return [np.square(as_multiplied(x[piece], tensor_type)).sum(axis=0, dtype=np.float64)]

    (mean,) = mean_of(in_parallel(of_piece, pieces(len(x))), len(x))
    return mean
