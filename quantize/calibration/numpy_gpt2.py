"""GPT-2's forward pass in NumPy: slow, simple, and independent of llama.cpp.

The tests compare llama.cpp with it, and calibration observes the input of each matrix in it. Formulas: Radford et al.
2019 as implemented in Transformers' `modeling_gpt2.py`: pre-norm blocks, learned positions, tanh GELU, an output matrix
that may be the embedding.
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
"""Called with a matrix's name and its input, shape (tokens, columns)."""

_QUERIES = 128  # positions whose attention is computed together, with keys only up to the last of them


@dataclass(frozen=True)
class Reference:
    """A GPT-2 and its weights by llama.cpp's names, matrices as (outputs, inputs), all of one dtype."""

    sizes: Hyperparameters
    weights: Mapping[str, Array]

    @property
    def head(self) -> str:
        """The name of the output matrix."""
        return "output.weight" if "output.weight" in self.weights else "token_embd.weight"

    def hidden(self, tokens: Sequence[int], observe: Observer | None = None) -> Array:
        """The final norm's outputs, shape (len(tokens), width): GPT2Model's last_hidden_state."""
        (x,) = self.hidden_of([tokens], [observe])
        return x

    def hidden_of(self, texts: Sequence[Sequence[int]], observers: Sequence[Observer | None]) -> list[Array]:
        """`hidden` of several texts, which pass each block together, so that its weights are read once."""
        for tokens in texts:
            if not 0 < len(tokens) <= self.sizes.context:
                raise ValueError(f"`tokens` must have 1 to {self.sizes.context} items, not {len(tokens)}")
        states = list(map(self.embed, texts))
        for block in range(self.sizes.layers):
            for number, observe in enumerate(observers):
                check_cancelled()
                states[number] = self._block(f"blk.{block}", states[number], observe)
        for number, observe in enumerate(observers):
            states[number] = self.norm("output_norm", states[number])
            if observe:
                observe(self.head, states[number])
        return states

    def embed(self, tokens: Sequence[int]) -> Array:
        """The sum of token and position embedding, the first state."""
        x: Array = self.weights["token_embd.weight"][list(tokens)] + self.weights["position_embd.weight"][: len(tokens)]
        return x

    def _block(self, name: str, x: Array, observe: Observer | None) -> Array:
        fused = self._linear(f"{name}.attn_qkv", self.norm(f"{name}.attn_norm", x), observe)
        x = x + self._linear(f"{name}.attn_output", attention(fused, self.sizes.heads), observe)
        inner = gelu(self._linear(f"{name}.ffn_up", self.norm(f"{name}.ffn_norm", x), observe))
        return x + self._linear(f"{name}.ffn_down", inner, observe)

    def logits(self, tokens: Sequence[int]) -> Array:
        """The logits, shape (len(tokens), vocabulary)."""
        return self.hidden(tokens) @ self.weights[self.head].T

    def _linear(self, name: str, x: Array, observe: Observer | None) -> Array:
        if observe:
            observe(f"{name}.weight", x)
        return self.linear(name, x)

    def linear(self, name: str, x: Array) -> Array:
        """Applies a matrix and its bias, named without `.weight`, to inputs of shape (tokens, columns)."""
        y: Array = x @ self.weights[f"{name}.weight"].T
        y += self.weights[f"{name}.bias"]
        return y

    def norm(self, name: str, x: Array) -> Array:
        """Applies a layer norm, named without `.weight`."""
        return normalize(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], self.sizes.norm_epsilon)


def normalize(x: Array, gain: Array, bias: Array, epsilon: float) -> Array:
    """Layer norm along the last axis."""
    y: Array = x - x.mean(axis=-1, keepdims=True)
    y /= np.sqrt(np.square(y).mean(axis=-1, keepdims=True) + epsilon)
    y *= gain
    y += bias
    return y


def attention(fused: Array, heads: int) -> Array:
    """Causal attention of one sequence: fused QKV, shape (length, 3 x width), to shape (length, width)."""
    length, width = len(fused), fused.shape[1] // 3
    # (3, heads, length, head width)
    query, key, value = fused.reshape(length, 3, heads, width // heads).transpose(1, 2, 0, 3)
    mixed = np.empty((length, heads, width // heads), fused.dtype)
    for first in range(0, length, _QUERIES):
        end = min(length, first + _QUERIES)
        mixed[first:end] = (attention_probabilities(query[:, first:end], key[:, :end]) @ value[:, :end]).transpose(
            1, 0, 2
        )
    return mixed.reshape(length, width)


def attention_probabilities(query: Array, key: Array) -> Array:
    """Causal attention probabilities, shape (heads, queries, keys); queries are those of the last positions.

    `query` and `key` have shape (heads, length, head width).
    """
    scores: Array = query @ key.transpose(0, 2, 1)
    scores /= sqrt(query.shape[-1])
    asked, known = scores.shape[1:]
    np.copyto(scores, -np.inf, where=~np.tri(asked, known, known - asked, dtype=bool))
    return softmax(scores)


def gelu(x: Array) -> Array:
    """GELU, tanh approximation (`gelu_new`): x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    y: Array = x * x  # in place from here: allocating large arrays costs more than their arithmetic
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
    """Softmax along the last axis."""
    y: Array = x - x.max(axis=-1, keepdims=True)
    np.exp(y, out=y)
    y /= y.sum(axis=-1, keepdims=True)
    return y


def from_source(source: ModelSource, dtype: npt.DTypeLike = np.float32) -> Reference:
    """Loads an opened source in float32 or float64. Raises `DgptQuantError`."""
    return Reference(source.sizes, {t.name: np.ascontiguousarray(t.read(), dtype) for t in source.tensors})


def from_checkpoint(folder: str | Path, dtype: npt.DTypeLike = np.float32) -> Reference:
    """Loads a checkpoint folder. Raises `CheckpointError`."""
    return from_source(open_model(str(folder)), dtype)


def from_gguf(path: str | Path, dtype: npt.DTypeLike = np.float32) -> Reference:
    """Loads a GGUF file of this tool; gguf-py dequantizes its tensors. Raises `GGUFError`."""
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
