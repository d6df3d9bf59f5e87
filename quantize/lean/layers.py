"""Quantizes the matrices of all blocks in order; each compensates for the errors of those before it.

Two streams of activations pass through the model over the calibration text: one of the original model, and one of the
matrices quantized so far, with activations rounded as in llama.cpp. Each matrix is rounded so that its outputs for the
second stream are closest to its outputs for the first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.ggml import dequantize
from dgpt2_quant.core.parallel import by_rows, in_parallel, mean_of, pieces
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.calibration.numpy_gpt2 import Reference
from dgpt2_quant.quantize.recipes.lean_steps import Steps
from dgpt2_quant.quantize.recipes.tensor_types import ROUNDABLE

from .activation_rounding import round_activations
from .block_codes import Bytes
from .gptq import SWEEPS, Factor, factor, quantize_rows, round_matrix
from .layerwise import Array, LayerwiseForward, half_block_names

_TOKENS = 8192  # per task


@dataclass(frozen=True)
class QuantizedTensor:
    """A quantized tensor: blocks, shape (rows, bytes of a row), and the weights that they decode to."""

    tensor_type: TensorType
    blocks: Bytes
    values: npt.NDArray[np.float32]


def as_quantized(name: str, blocks: Bytes, tensor_type: TensorType, shape: tuple[int, ...]) -> QuantizedTensor:
    return QuantizedTensor(tensor_type, blocks, dequantize(name, blocks, tensor_type, shape))


def quantize_layers(
    trained: Reference,
    lookup: Mapping[str, Array],
    chunks: Sequence[Sequence[int]],
    types: Mapping[str, TensorType],
    outputs: Mapping[str, Factor],
    steps: Steps,
    progress: Progress | None = None,
) -> dict[str, QuantizedTensor]:
    """Quantizes all matrices of the blocks, by name.

    `lookup` has the quantized embedding and position table, `outputs` the factors of G by matrix.
    """
    forward = LayerwiseForward(trained, chunks)
    inputs = forward.inputs()
    state = forward.embed(lookup)
    quantized: dict[str, QuantizedTensor] = {}

    def quantize_and_apply(name: str, x: Array) -> Array:
        weight, bias, kind = f"{name}.weight", trained.weights[f"{name}.bias"], types[f"{name}.weight"]
        met = by_rows(lambda part: round_activations(part, kind), x, x.shape[1], out=x)
        quantized[weight] = matrix = quantize_matrix(
            weight, trained.weights[weight], (next(inputs), met), kind, outputs.get(weight), steps
        )
        if progress:
            progress(len(quantized), 2 * forward.halves, name)

        def outputs_of(part: Array) -> Array:
            y: Array = part @ matrix.values.T
            y += bias
            return y

        return by_rows(outputs_of, met, len(bias))

    for half in range(forward.halves):
        norm, first, second = half_block_names(half)
        inner = quantize_and_apply(first, forward.norm(norm, state))
        state += quantize_and_apply(second, forward.second_input(half, inner))
    return quantized


def quantize_matrix(
    name: str,
    weights: Array,
    streams: tuple[Array, Array],
    tensor_type: TensorType,
    outputs: Factor | None,
    steps: Steps,
) -> QuantizedTensor:
    """Quantizes a matrix, given its inputs in the original and in the quantized model, each (tokens, columns).

    The latter are rounded for the tensor type already (activation_rounding.py).
    """
    if not tensor_type.is_quantized:
        blocks = quantize_rows(name, weights, tensor_type)
    elif not steps.feedback or tensor_type not in ROUNDABLE:
        blocks = quantize_rows(name, weights, tensor_type, _mean_squares(streams[1]))
    else:
        gram, late = _second_moments(weights, streams, compensation=steps.compensation)
        inputs = factor(gram)
        if late is not None:
            # least squares for these inputs: W + W E[(wanted - met) metᵀ] (E[met metᵀ])⁻¹, damped
            weights = weights + inputs.solve(late)
        sweeps = SWEEPS if steps.sweeps else 0
        blocks = round_matrix(name, np.asarray(weights, np.float32), tensor_type, inputs, outputs, sweeps=sweeps)
    return as_quantized(name, blocks, tensor_type, weights.shape)


def _second_moments(weights: Array, streams: Sequence[Array], *, compensation: bool) -> tuple[Array, Array | None]:
    """E[met metᵀ], and W E[(wanted - met) metᵀ].

    The difference is taken before the products: afterwards it would be noise for inputs that hardly change.
    """
    wanted, met = streams
    few_rows = 2 * weights.shape[0] < weights.shape[1]  # then multiplying by W first is less work

    def gram(piece: slice) -> list[Array]:
        return [met[piece].T @ met[piece]]

    def late(piece: slice) -> list[Array]:
        off = wanted[piece] - met[piece]
        return [(weights @ off.T if few_rows else off.T) @ met[piece]]

    some = pieces(len(met), _TOKENS)
    parts = [partial(gram, piece) for piece in some] + [partial(late, piece) for piece in some if compensation]
    sums = in_parallel(lambda part: part(), parts)
    (grams,) = mean_of(islice(sums, len(some)), len(met))
    if not compensation:
        return grams, None
    (lates,) = mean_of(sums, len(met))
    return grams, lates if few_rows else weights @ lates


def _mean_squares(x: Array) -> Array:
    """The mean squares of the columns."""

    def of_piece(piece: slice) -> list[Array]:
        return [np.square(x[piece]).sum(axis=0, dtype=np.float64)]

    (mean,) = mean_of(in_parallel(of_piece, pieces(len(x))), len(x))
    return mean
