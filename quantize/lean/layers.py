"""Quantizes the matrices of all blocks in order; each compensates for the errors of those before it.

The calibration text runs through two models: the original one, and one with the matrices quantized so far, whose
activations are rounded as in llama.cpp. Each matrix is rounded so that its outputs in the second model are close to
its outputs in the first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.ggml import dequantize
from dgpt2_quant.core.parallel import by_rows, in_parallel, mean_of, pieces
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.core.scratch import Rarely, Store
from dgpt2_quant.quantize.calibration.numpy_gpt2 import Reference
from dgpt2_quant.quantize.recipes.lean_steps import Steps
from dgpt2_quant.quantize.recipes.tensor_types import ROUNDABLE

from .activation_rounding import round_activations
from .block_codes import Bytes
from .gptq import SWEEPS, Factor, factor, quantize_rows, round_matrix
from .layerwise import Array, LayerwiseForward, half_block_names

_STREAMS = "streams."  # and the number of the half block after them
_TOKENS = 8192  # per task


@dataclass(frozen=True)
class QuantizedTensor:
    """A quantized tensor: blocks, shape (rows, bytes of a row), of weights of the given shape."""

    name: str
    tensor_type: TensorType
    blocks: Bytes
    shape: tuple[int, ...]

    @cached_property
    def values(self) -> npt.NDArray[np.float32]:
        """The weights that the blocks decode to."""
        return dequantize(self.name, self.blocks, self.tensor_type, self.shape)


def quantize_layers(
    trained: Reference,
    lookup: Callable[[], Mapping[str, Array]],
    chunks: Sequence[Sequence[int]],
    types: Mapping[str, TensorType],
    outputs: Mapping[str, Factor],
    steps: Steps,
    store: Store,
    progress: Progress | None = None,
) -> None:
    """Quantizes all matrices of the blocks, and puts their blocks into `store`, by name.

    `lookup` returns the quantized embedding and position table, `outputs` has the factors of G by matrix. Matrices
    that `store` has are not quantized again.
    """
    forward = LayerwiseForward(trained, chunks)
    if f"{half_block_names(forward.halves - 1)[2]}.weight" in store:  # the last one
        return
    begin = max((int(name.removeprefix(_STREAMS)) for name in store if name.startswith(_STREAMS)), default=0)
    wanted, state = store[f"{_STREAMS}{begin}"] if begin else map(forward.embed, (trained.weights, lookup()))
    inputs, is_due = forward.inputs(wanted, begin), Rarely()

    def report(done: int, name: str) -> None:
        if progress:
            progress(done, 2 * forward.halves, name)

    def quantize_and_apply(name: str, x: Array) -> Array:
        weight, bias, kind = f"{name}.weight", trained.weights[f"{name}.bias"], types[f"{name}.weight"]
        met = by_rows(lambda part: round_activations(part, kind), x, x.shape[1], out=x)
        weights, original = trained.weights[weight], next(inputs)
        if weight in store:
            matrix = QuantizedTensor(weight, kind, store[weight], weights.shape)
        else:
            matrix = quantize_matrix(weight, weights, (original, met), kind, outputs.get(weight), steps)
            store[weight] = matrix.blocks
        del original
        values = matrix.values

        def outputs_of(part: Array) -> Array:
            y: Array = part @ values.T
            y += bias
            return y

        return by_rows(outputs_of, met, len(bias))

    for half in range(begin, forward.halves):
        norm, first, second = half_block_names(half)
        for name in (f"{norm}.weight", f"{norm}.bias", f"{first}.bias", f"{second}.bias"):
            store[name] = trained.weights[name]
        inner = quantize_and_apply(first, forward.norm(norm, state))
        report(2 * half + 1, first)
        if half > begin and is_due():  # both streams are before this half
            store[f"{_STREAMS}{half}"] = np.stack([wanted, state])
            store.pop(f"{_STREAMS}{begin}", None)
            begin = half
        state += quantize_and_apply(second, forward.second_input(half, inner))
        report(2 * half + 2, second)
    store.pop(f"{_STREAMS}{begin}", None)


def quantize_matrix(
    name: str,
    weights: Array,
    streams: tuple[Array, Array],
    tensor_type: TensorType,
    outputs: Factor | None,
    steps: Steps,
) -> QuantizedTensor:
    """Quantizes a matrix, given its inputs in the original and in the quantized model, each (tokens, columns).

    The latter are already rounded for the tensor type (activation_rounding.py).
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
    return QuantizedTensor(name, tensor_type, blocks, weights.shape)


def _second_moments(weights: Array, streams: Sequence[Array], *, compensation: bool) -> tuple[Array, Array | None]:
    """E[met metᵀ], and W E[(wanted - met) metᵀ].

    Subtracts before it multiplies: the other order loses precision if the inputs are nearly equal.
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
    """The mean squares of the columns of x, shape (columns,)."""

    def of_piece(piece: slice) -> list[Array]:
        return [np.square(x[piece]).sum(axis=0, dtype=np.float64)]

    (mean,) = mean_of(in_parallel(of_piece, pieces(len(x))), len(x))
    return mean
