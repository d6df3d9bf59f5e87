"""GPT-2's forward pass in plain NumPy: slow, obvious, and independent of llama.cpp.

It is the oracle of the tests (a converted file through llama.cpp must give the same distribution) and shows the input
of each matrix to those who calibrate. Formulas: Radford et al. 2019 as implemented in Transformers' `modeling_gpt2.py`:
pre-norm blocks, learned positions, tanh GELU, an output matrix that may be the embedding.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import GGUFError
from dgpt2_quant.core.gguf_file import TensorInfo, read_header
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.core.workers import check_cancelled
from dgpt2_quant.quantize.checkpoint.source import ModelSource, open_model

Array = npt.NDArray[np.floating[Any]]
Observer = Callable[[str, Array], None]
"""Called with a matrix's name and what it is about to be multiplied with, shape (tokens, columns)."""

_QUERIES = 128  # positions whose attention is computed together: up to the last of them, not to the sequence's end


@dataclass(frozen=True)
class Reference:
    """A GPT-2 with its weights under llama.cpp's names, matrices as (outputs, inputs), all of one dtype."""

    sizes: Hyperparameters
    weights: Mapping[str, Array]

    @property
    def head(self) -> str:
        """The name of the output matrix."""
        return "output.weight" if "output.weight" in self.weights else "token_embd.weight"

    def hidden(self, tokens: Sequence[int], observe: Observer | None = None) -> Array:
        """The final norm's output for each position, shape (len(tokens), width): GPT2Model's last_hidden_state."""
        if not 0 < len(tokens) <= self.sizes.context:
            raise ValueError(f"{len(tokens)} tokens; this model has {self.sizes.context} positions")
        weights = self.weights
        x: Array = weights["token_embd.weight"][list(tokens)] + weights["position_embd.weight"][: len(tokens)]
        for block in range(self.sizes.layers):
            check_cancelled()
            name = f"blk.{block}"
            x = x + self._attention(name, self.norm(f"{name}.attn_norm", x), observe)
            inner = gelu(self._linear(f"{name}.ffn_up", self.norm(f"{name}.ffn_norm", x), observe))
            x = x + self._linear(f"{name}.ffn_down", inner, observe)
        x = self.norm("output_norm", x)
        if observe:
            observe(self.head, x)
        return x

    def logits(self, tokens: Sequence[int]) -> Array:
        """Shape (len(tokens), vocabulary)."""
        return self.hidden(tokens) @ self.weights[self.head].T

    def _attention(self, name: str, x: Array, observe: Observer | None) -> Array:
        mixed = attend(self._linear(f"{name}.attn_qkv", x, observe), self.sizes.heads)
        return self._linear(f"{name}.attn_output", mixed, observe)

    def _linear(self, name: str, x: Array, observe: Observer | None) -> Array:
        if observe:
            observe(f"{name}.weight", x)
        return self.linear(name, x)

    def linear(self, name: str, x: Array) -> Array:
        """A matrix and its bias, by the matrix's name without `.weight`, on inputs of the shape (tokens, columns)."""
        y: Array = x @ self.weights[f"{name}.weight"].T
        y += self.weights[f"{name}.bias"]
        return y

    def norm(self, name: str, x: Array) -> Array:
        """One of the layer norms, by its name without `.weight`."""
        return normalize(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.sizes.norm_epsilon)


def normalize(x: Array, gain: Array, bias: Array, epsilon: float) -> Array:
    """The layer norm, along the last axis."""
    y: Array = x - x.mean(axis=-1, keepdims=True)
    y /= np.sqrt(np.square(y).mean(axis=-1, keepdims=True) + epsilon)
    y *= gain
    y += bias
    return y


def attend(fused: Array, heads: int) -> Array:
    """Causal attention of one sequence, shape (length, 3 x width) to (length, width)."""
    length, width = len(fused), fused.shape[1] // 3
    # (3, heads, length, head width)
    query, key, value = fused.reshape(length, 3, heads, width // heads).transpose(1, 2, 0, 3)
    mixed = np.empty((length, heads, width // heads), fused.dtype)
    for first in range(0, length, _QUERIES):
        end = min(length, first + _QUERIES)
        mixed[first:end] = (shares(query[:, first:end], key[:, :end]) @ value[:, :end]).transpose(1, 0, 2)
    return mixed.reshape(length, width)


def shares(query: Array, key: Array) -> Array:
    """What each position takes of itself and those before it, shape (heads, queries, keys); queries are of the last.

    Both have the shape (heads, length, head width).
    """
    scores: Array = query @ key.transpose(0, 2, 1)
    scores /= sqrt(query.shape[-1])
    asked, known = scores.shape[1:]
    np.copyto(scores, -np.inf, where=~np.tri(asked, known, known - asked, dtype=bool))
    return softmax(scores)


def gelu(x: Array) -> Array:
    """The tanh approximation (`gelu_new`): x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    y: Array = x * x  # in place from here on: large arrays cost more than their arithmetic
    y *= 0.044715
    y += 1
    y *= x
    y *= sqrt(2 / pi)
    np.tanh(y, out=y)
    y += 1
    y *= x
    y *= 0.5
    return y


def softmax(x: Array) -> Array:
    """Along the last axis."""
    y: Array = x - x.max(axis=-1, keepdims=True)
    np.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)
    return y


def from_source(source: ModelSource, dtype: npt.DTypeLike = np.float32) -> Reference:
    """The model of an opened source, computed in float32 or float64. Raises `DgptQuantError`."""
    return Reference(source.sizes, {t.name: np.ascontiguousarray(t.read(), dtype) for t in source.tensors})


def from_checkpoint(folder: str | Path, dtype: npt.DTypeLike = np.float32) -> Reference:
    """The model of a checkpoint folder. Raises `CheckpointError`."""
    return from_source(open_model(str(folder)), dtype)


def from_gguf(path: str | Path, dtype: npt.DTypeLike = np.float32) -> Reference:
    """The model of a GGUF file of ours, its tensors dequantized by gguf-py. Raises `GGUFError`."""
    header = read_header(Path(path))
    sizes = Hyperparameters.from_metadata(header.metadata)
    weights = {t.name: _dequantized(header.path, t).astype(dtype) for t in header.tensors.values()}
    return Reference(sizes, weights)


def _dequantized(path: Path, tensor: TensorInfo) -> npt.NDArray[np.float32]:
    from gguf import GGMLQuantizationType, dequantize

    if tensor.type in (TensorType.Q1_0, TensorType.Q2_0):
        raise GGUFError(f"{path}: gguf-py has no decoder for {tensor.type.name}")
    rows = tensor.shape[0] if len(tensor.shape) == 2 else 1
    data = np.fromfile(path, np.uint8, tensor.nbytes, offset=tensor.start).reshape(rows, -1)
    values: npt.NDArray[np.float32] = dequantize(data, GGMLQuantizationType(tensor.type))
    return values.reshape(tensor.shape)
