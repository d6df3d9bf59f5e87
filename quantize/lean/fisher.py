"""Fisher information of activations, from gradients of the log-likelihood (backpropagation in NumPy).

A small change Δy of an activation y changes the distribution of the next token by a KL divergence of ½ Δyᵀ F Δy, where
F = E[g gᵀ], and g is the gradient by y of the log-likelihood of tokens drawn from the model's own distribution (tokens
of the text would give the "empirical" Fisher; Kunstner et al. 2019, arXiv:1905.12558). The mean of g is 0, so the
difference of two draws' gradients, over √2, has the same F at less cost: by the logits it is 1 for one token and -1 for
the other, without probabilities.

The formulas are those of backpropagation through numpy_gpt2.py.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import pi, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.parallel import in_parallel, pieces
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.workers import check_cancelled
from dgpt2_quant.quantize.calibration.numpy_gpt2 import Reference, attention_probabilities, gelu, softmax
from dgpt2_quant.quantize.calibration.sample_text import draw

Array = npt.NDArray[np.floating[Any]]
Gram = npt.NDArray[np.float64]
LOOKUP = "lookup"
"""The name of the sum of token and position embedding, among the matrices' names."""

_HIDDEN = "hidden"
_CHUNKS = 2  # chunks per task
_SEED = 1
_AT_ONCE = 128  # positions whose predictions are computed together, so that they fit the cache


@dataclass(frozen=True)
class Fisher:
    """E[g gᵀ] for the embedding sum (`LOOKUP`) and for the outputs of each block's matrices, by the matrix's name.

    `ffn_up` is left out: the gradients of its many outputs are nearly uncorrelated (docs/quantization.md).

    `hidden` is E[h hᵀ] of the final norm's outputs, the inputs of the output matrix.
    """

    grams: Mapping[str, Gram]
    hidden: Gram

    @property
    def lookup(self) -> Gram:
        return self.grams[LOOKUP]


def fisher(reference: Reference, chunks: Iterable[Sequence[int]], progress: Progress | None = None) -> Fisher:
    """Computes the Fisher information over chunks of tokens, each a separate text; deterministic."""
    texts = list(chunks)
    sums: dict[str, Array] = {}

    def of_some(some: slice) -> dict[str, Array]:
        each = [
            gradients(reference, tokens, np.random.default_rng([_SEED, number]))
            for number, tokens in list(enumerate(texts))[some]
        ]
        rows = {name: np.concatenate([found[name] for found, _ in each]) for name in each[0][0]}
        rows[_HIDDEN] = np.concatenate([hidden for _, hidden in each])
        return {name: part.T @ part for name, part in rows.items()}

    some = pieces(len(texts), _CHUNKS)
    for number, grams in enumerate(in_parallel(of_some, some)):
        for name, gram in grams.items():
            if name in sums:
                sums[name] += gram
            else:
                sums[name] = gram
        if progress:
            progress(number + 1, len(some), "gradients")
    means = {name: gram.astype(np.float64) / sum(map(len, texts)) for name, gram in sums.items()}
    return Fisher(means, means.pop(_HIDDEN))


def gradients(reference: Reference, tokens: Sequence[int], rng: np.random.Generator) -> tuple[dict[str, Array], Array]:
    """Gradients by each matrix's outputs and by the embedding sum, (tokens, outputs); the final norm's outputs.

    Gradients of the log-likelihood of drawn tokens minus that of other drawn tokens, over √2, summed over positions.
    """
    weights, sizes = reference.weights, reference.sizes
    x: Array = weights["token_embd.weight"][list(tokens)] + weights["position_embd.weight"][: len(tokens)]
    passed: list[_Attention | _MLP] = []
    for block in range(sizes.layers):
        check_cancelled()
        attention = _Attention(reference, f"blk.{block}", x)
        x = x + attention.y
        mlp = _MLP(reference, f"blk.{block}", x)
        x = x + mlp.y
        passed += [attention, mlp]
    final = _Norm(reference, "output_norm", x)
    g = final.backward(_by_hidden(final.y, weights[reference.head], rng))
    found: dict[str, Array] = {}
    for part in reversed(passed):
        check_cancelled()
        g = g + part.backward(g, found)
    found[LOOKUP] = g
    return found, final.y


def _by_hidden(hidden: Array, head: Array, rng: np.random.Generator) -> Array:
    """Gradients by the final norm's outputs."""
    g = np.empty_like(hidden)
    for piece in pieces(len(hidden), _AT_ONCE):
        check_cancelled()
        probabilities = softmax(hidden[piece] @ head.T)
        one, other = draw(probabilities, rng), draw(probabilities, rng)
        g[piece] = (head[one] - head[other]) * sqrt(0.5)
    return g


class _Norm:
    def __init__(self, reference: Reference, name: str, x: Array) -> None:
        self.gain = reference.weights[f"{name}.weight"]
        centered = x - x.mean(axis=-1, keepdims=True)
        self.deviation = np.sqrt(np.square(centered).mean(axis=-1, keepdims=True) + reference.sizes.norm_epsilon)
        self.normal = centered / self.deviation
        self.y: Array = self.normal * self.gain + reference.weights[f"{name}.bias"]

    def backward(self, g: Array) -> Array:
        g = g * self.gain
        along = (g * self.normal).mean(axis=-1, keepdims=True)
        back: Array = (g - g.mean(axis=-1, keepdims=True) - self.normal * along) / self.deviation
        return back


class _Attention:
    def __init__(self, reference: Reference, name: str, x: Array) -> None:
        self.name, self.weights = name, reference.weights
        length, width = x.shape
        self.split = (length, 3, reference.sizes.heads, width // reference.sizes.heads)
        self.norm = _Norm(reference, f"{name}.attn_norm", x)
        fused = reference.linear(f"{name}.attn_qkv", self.norm.y)
        self.query, self.key, self.value = fused.reshape(self.split).transpose(1, 2, 0, 3)
        self.probabilities = attention_probabilities(self.query, self.key)
        mixed = (self.probabilities @ self.value).transpose(1, 0, 2).reshape(length, width)
        self.y: Array = reference.linear(f"{name}.attn_output", mixed)

    def backward(self, g: Array, found: dict[str, Array]) -> Array:
        found[f"{self.name}.attn_output.weight"] = g
        length, _, heads, size = self.split
        g = (g @ self.weights[f"{self.name}.attn_output.weight"]).reshape(length, heads, size).transpose(1, 0, 2)
        by_probabilities = g @ self.value.transpose(0, 2, 1)
        p = self.probabilities
        by_scores = p * (by_probabilities - (by_probabilities * p).sum(axis=-1, keepdims=True)) / sqrt(size)
        three = by_scores @ self.key, by_scores.transpose(0, 2, 1) @ self.query, p.transpose(0, 2, 1) @ g
        fused = np.stack(three).transpose(2, 0, 1, 3).reshape(length, -1)
        found[f"{self.name}.attn_qkv.weight"] = fused
        return self.norm.backward(fused @ self.weights[f"{self.name}.attn_qkv.weight"])


class _MLP:
    def __init__(self, reference: Reference, name: str, x: Array) -> None:
        self.name, self.weights = name, reference.weights
        self.norm = _Norm(reference, f"{name}.ffn_norm", x)
        self.inner = reference.linear(f"{name}.ffn_up", self.norm.y)
        self.y: Array = reference.linear(f"{name}.ffn_down", gelu(self.inner))

    def backward(self, g: Array, found: dict[str, Array]) -> Array:
        found[f"{self.name}.ffn_down.weight"] = g
        inner = (g @ self.weights[f"{self.name}.ffn_down.weight"]) * _gelu_slope(self.inner)
        return self.norm.backward(inner @ self.weights[f"{self.name}.ffn_up.weight"])


def _gelu_slope(x: Array) -> Array:
    """The derivative of `gelu`."""
    curved = np.tanh(sqrt(2 / pi) * (x + 0.044715 * x * x * x))
    y: Array = 0.5 * (1 + curved) + 0.5 * x * (1 - curved * curved) * sqrt(2 / pi) * (1 + 3 * 0.044715 * x * x)
    return y
