"""The blocks' matrices, one after the other, each rounded for what those before it have left over.

Two streams of activations go through the model over the calibration text: one as it was trained, one through what is
quantized already, activations rounded as llama.cpp rounds them. Each matrix is rounded so that its outputs for the
second stream come nearest to its outputs for the first; its bias takes what is left of their mean.
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
from .passage import Array, Passage
from .progress import Progress
from .quant_types import TensorType
from .reference import Reference, gelu


@dataclass(frozen=True)
class Made:
    """A tensor as it goes to the file: blocks, shape (rows, bytes of a row), and the weights they stand for."""

    tensor_type: TensorType
    blocks: Bytes
    values: npt.NDArray[np.float32]


def as_made(name: str, blocks: Bytes, tensor_type: TensorType, shape: tuple[int, ...]) -> Made:
    return Made(tensor_type, blocks, dequantize(name, blocks, tensor_type, shape))


class Streams(Passage):
    """The residual stream of the trained and of the quantized model, both of the shape (tokens, width)."""

    def __init__(self, trained: Reference, lookup: Mapping[str, Array], chunks: Sequence[Sequence[int]]) -> None:
        """`lookup` has the quantized embedding and position table."""
        super().__init__(trained, chunks)
        self.wanted: Array
        self.found: Array
        self.wanted, self.found = (np.asarray(self.looked_up(t), np.float32) for t in (trained.weights, lookup))

    def both(self, norm: str) -> tuple[Array, Array]:
        """Both through one of the layer norms."""
        return self.reference.norm(norm, self.wanted), self.reference.norm(norm, self.found)


def quantize_body(
    trained: Reference,
    lookup: Mapping[str, Array],
    chunks: Sequence[Sequence[int]],
    types: Mapping[str, TensorType],
    outputs: Mapping[str, Factor],
    steps: Steps,
    progress: Progress | None = None,
) -> dict[str, Made | Array]:
    """All matrices of the blocks, and their biases, by name. `outputs` are the factors of their outputs' side."""
    streams = Streams(trained, lookup, chunks)
    made: dict[str, Made | Array] = {}
    layers = trained.sizes.layers

    def pass_through(name: str, wanted: Array, found: Array) -> tuple[Array, Array]:
        matrix, bias, results = quantize_linear(trained, name, wanted, found, types[f"{name}.weight"], outputs, steps)
        made[f"{name}.weight"], made[f"{name}.bias"] = matrix, bias
        if progress:
            progress(sum(isinstance(part, Made) for part in made.values()), 4 * layers, name)
        return results

    for block in range(layers):
        name = f"blk.{block}"
        fused = pass_through(f"{name}.attn_qkv", *streams.both(f"{name}.attn_norm"))
        wanted, found = pass_through(f"{name}.attn_output", *map(streams.attend, fused))
        streams.wanted, streams.found = streams.wanted + wanted, streams.found + found
        inner = pass_through(f"{name}.ffn_up", *streams.both(f"{name}.ffn_norm"))
        wanted, found = pass_through(f"{name}.ffn_down", *map(gelu, inner))
        streams.wanted, streams.found = streams.wanted + wanted, streams.found + found
    return made


def quantize_linear(
    trained: Reference,
    name: str,
    wanted: Array,
    found: Array,
    tensor_type: TensorType,
    outputs: Mapping[str, Factor],
    steps: Steps,
) -> tuple[Made, Array, tuple[Array, Array]]:
    """A matrix and its bias, from its inputs in both streams, shape (tokens, columns); and its outputs in both."""
    weights, bias = trained.weights[f"{name}.weight"], trained.weights[f"{name}.bias"]
    met = as_multiplied(found, tensor_type)
    blocks = _rounded(f"{name}.weight", weights, wanted, met, tensor_type, outputs, steps)
    matrix = as_made(name, blocks, tensor_type, weights.shape)
    should = wanted @ weights.T + bias
    gives = met @ matrix.values.T + bias
    if steps.bias:
        moved = (should.mean(axis=0, dtype=np.float64) - gives.mean(axis=0, dtype=np.float64)).astype(np.float32)
        bias = bias + moved
        gives += moved
    return matrix, bias, (should, gives)


def _rounded(
    name: str,
    weights: Array,
    wanted: Array,
    met: Array,
    tensor_type: TensorType,
    outputs: Mapping[str, Factor],
    steps: Steps,
) -> Bytes:
    if not tensor_type.is_quantized:
        return quantize(name, weights, [tensor_type])[0]
    if not steps.feedback or tensor_type not in ROUNDABLE:
        return quantize(name, weights, [tensor_type], np.square(met).mean(axis=0, dtype=np.float64))[0]
    # what the bias makes good is taken off first: a difference of products would be noise for inputs that hardly change
    centred = _centred(met) if steps.bias else met
    gram = centred.T @ centred / np.float32(len(met))
    inputs = factor(gram)
    if steps.compensation:
        # the least-squares matrix for these inputs: W + W E[(wanted - met) cᵀ] (E[c cᵀ])⁻¹, damped, of the centred c
        late = _centred(wanted - met) if steps.bias else wanted - met
        cross = late.T @ centred / np.float32(len(met))
        weights = weights + weights @ cross @ inputs.inverse
    sweeps = SWEEPS if steps.sweeps else 0
    return round_matrix(name, np.asarray(weights, np.float32), tensor_type, inputs, outputs.get(name), sweeps=sweeps)


def _centred(x: Array) -> Array:
    """Less its mean, which is exact where nothing ever changes."""
    centred: Array = x - x.mean(axis=0, dtype=np.float64).astype(np.float32)
    return centred
