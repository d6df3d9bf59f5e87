"""Fisher information of activations, from gradients of the log-likelihood (backpropagation in NumPy).

A small change Δy of an activation y changes the distribution of the next token by a KL divergence of ½ Δyᵀ F Δy, where
F = E[g gᵀ], and g is the gradient by y of the log-likelihood of tokens drawn from the model's own distribution (tokens
of the text would give the "empirical" Fisher; Kunstner et al. 2019, arXiv:1905.12558). The mean of g is 0, so the
difference of two draws' gradients, over √2, has the same F at less cost: by the logits it is 1 for one token and -1 for
the other, without probabilities.

The formulas are those of backpropagation through numpy_gpt2.py.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial, reduce
from math import pi, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.parallel import in_parallel, pieces
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.scratch import Rarely, Store
from dgpt2_quant.core.workers import check_cancelled
from dgpt2_quant.quantize.calibration.block_weights import KEPT_BYTES
from dgpt2_quant.quantize.calibration.numpy_gpt2 import Reference, attention_probabilities, gelu, softmax
from dgpt2_quant.quantize.calibration.sample_text import draw

from .gptq import Factor, factor

Array = npt.NDArray[np.floating[Any]]
Gram = npt.NDArray[np.float64]

_LOOKUP, _HIDDEN = "lookup", "hidden"
_STATE, _GRADIENT = "state.", "gradient."  # and the number of the half after it
_CHUNKS = 2  # chunks per task
_SEED = 1
_AT_ONCE = 128  # positions whose predictions are computed together, so that they fit the cache


class Fisher:
    """Fisher information over chunks of tokens of equal length, each a separate text; deterministic.

    The text passes the blocks forwards and backwards, half a block at a time. Only the states between the halves are
    kept; the backward pass computes the inside of a half again. Results are kept in `store`, from which an interrupted
    computation continues.
    """

    def __init__(
        self, reference: Reference, chunks: Sequence[Sequence[int]], store: Store, progress: Progress | None = None
    ) -> None:
        self._reference, self._chunks, self._store, self._progress = reference, chunks, store, progress
        self._halves = 2 * reference.sizes.layers
        self._tokens = sum(map(len, chunks))
        fit = 4 * self._tokens * reference.sizes.width * self._halves <= KEPT_BYTES
        self._states: Store = {} if fit else store

    @cached_property
    def hidden(self) -> Gram:
        """E[h hᵀ] of the final norm's outputs, the inputs of the output matrix."""
        if _HIDDEN not in self._store:
            rows = self._by_chunk(lambda x: _Norm(self._reference, "output_norm", x).y, self._forward())
            self._store[_HIDDEN] = self._mean_gram(rows)
        return self._store[_HIDDEN]

    @cached_property
    def lookup(self) -> Gram:
        """E[g gᵀ] for the sum of token and position embedding."""
        if _LOOKUP not in self._store:
            _ = self.hidden  # from the same states
            self._store[_LOOKUP] = self._mean_gram(self._backward())
            for store in (self._states, self._store):
                for name in [name for name in store if name.startswith((_STATE, _GRADIENT))]:
                    del store[name]
        return self._store[_LOOKUP]

    @cached_property
    def outputs(self) -> Mapping[str, Factor]:
        """The factors of E[g gᵀ] for the outputs of the blocks' matrices, by the matrix's name.

        `ffn_up` is left out: the gradients of its many outputs are nearly uncorrelated (docs/quantization.md).
        """
        _ = self.lookup  # the end of the same pass
        return StoredFactors(self._store)

    def _forward(self) -> Array:
        """Keeps the state before each half, and returns the one after the last."""
        states = self._states
        if f"{_STATE}0" not in states:
            states[f"{_STATE}0"] = np.concatenate(list(map(self._reference.embed, self._chunks)))
        for half in range(self._halves):
            if f"{_STATE}{half + 1}" not in states:
                forward = partial(forward_half, self._reference, half)
                states[f"{_STATE}{half + 1}"] = self._by_chunk(forward, states[f"{_STATE}{half}"])
                self._report(half + 1)
        return states[f"{_STATE}{self._halves}"]

    def _backward(self) -> Array:
        """Keeps the factors of all matrices, and returns the gradient by the first state."""
        final = self._forward()
        reached = min((half for half in range(self._halves) if f"{_GRADIENT}{half}" in self._store), default=None)
        if reached is None:
            reached, g = self._halves, self._by_final(final)
        else:
            g = self._store[f"{_GRADIENT}{reached}"]
        is_due = Rarely()
        factoring: list[Callable[[], Any]] = []  # of the half before, next to the products of this one
        for half in reversed(range(reached)):
            x = self._states[f"{_STATE}{half}"]
            tasks = [
                partial(self._of_task, half, *each)
                for each in zip(np.split(x, self._task_ends()), np.split(g, self._task_ends()), strict=True)
            ]
            results = in_parallel(_call, [*factoring, *tasks])
            for _ in factoring:
                next(results)
            if half + 1 < reached and is_due():
                self._store[f"{_GRADIENT}{half + 1}"] = g
                self._store.pop(f"{_GRADIENT}{reached}", None)
                reached = half + 1
            parts: list[Array] = []
            sums: dict[str, Array] = {}
            for part, grams in results:
                parts.append(part)
                sums = {name: sums[name] + gram if sums else gram for name, gram in grams.items()}
            g = np.concatenate(parts)
            factoring = [partial(self._keep_factor, name, gram) for name, gram in sums.items()]
            self._report(2 * self._halves - half)
        for _ in in_parallel(_call, factoring):
            pass
        return g

    def _by_final(self, final: Array) -> Array:
        def of_chunk(each: tuple[int, Array]) -> Array:
            number, x = each
            return by_final(self._reference, x, np.random.default_rng([_SEED, number]))

        return np.concatenate([*in_parallel(of_chunk, list(enumerate(np.split(final, len(self._chunks)))))])

    def _of_task(self, half: int, x: Array, g: Array) -> tuple[Array, dict[str, Array]]:
        """The gradient by the state before a half, and the Gram matrices of its matrices' outputs."""
        count = len(x) // len(self._chunks[0])
        each = [
            backward_half(self._reference, half, *part)
            for part in zip(np.split(x, count), np.split(g, count), strict=True)
        ]
        rows = {name: np.concatenate([found[name] for _, found in each]) for name in each[0][1]}
        return np.concatenate([back for back, _ in each]), {name: part.T @ part for name, part in rows.items()}

    def _keep_factor(self, name: str, gram: Array) -> None:
        found = factor(gram.astype(np.float64) / self._tokens)
        self._store[f"{name}.order"], self._store[f"{name}.upper"] = found.order, found.upper

    def _mean_gram(self, rows: Array) -> Gram:
        grams = in_parallel(lambda part: part.T @ part, np.split(rows, self._task_ends()))
        mean: Gram = reduce(np.add, grams).astype(np.float64) / self._tokens
        return mean

    def _by_chunk(self, function: Callable[[Array], Array], x: Array) -> Array:
        return np.concatenate([*in_parallel(function, np.split(x, len(self._chunks)))])

    def _task_ends(self) -> list[int]:
        """The rows at which the tasks' parts end, except the last."""
        return [part.stop * len(self._chunks[0]) for part in pieces(len(self._chunks), _CHUNKS)[:-1]]

    def _report(self, done: int) -> None:
        if self._progress:
            self._progress(done, 2 * self._halves, "gradients")


class StoredFactors(Mapping[str, Factor]):
    """Factors by matrix, read from a store when they are used."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getitem__(self, name: str) -> Factor:
        return Factor(self._store[f"{name}.order"], self._store[f"{name}.upper"])

    def __iter__(self) -> Iterator[str]:
        return (name.removesuffix(".upper") for name in self._store if name.endswith(".upper"))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def forward_half(reference: Reference, half: int, x: Array) -> Array:
    """The state after a half block: the attention (even) or the MLP (odd) of block `half // 2`, of one chunk."""
    check_cancelled()
    return x + _half(reference, half, x).output()


def backward_half(reference: Reference, half: int, x: Array, g: Array) -> tuple[Array, dict[str, Array]]:
    """The gradient by the state `x` before a half block, of one chunk, given the gradient by the state after it.

    Also the gradients by the outputs of the half's matrices, shape (tokens, outputs), by the matrix's name.
    """
    check_cancelled()
    found: dict[str, Array] = {}
    return g + _half(reference, half, x).backward(g, found), found


def by_final(reference: Reference, x: Array, rng: np.random.Generator) -> Array:
    """The gradient of the log-likelihood of drawn tokens minus that of other drawn tokens, over √2.

    By the last state `x`, summed over positions.
    """
    norm, head = _Norm(reference, "output_norm", x), reference.weights[reference.head]
    g = np.empty_like(x)
    for piece in pieces(len(x), _AT_ONCE):
        check_cancelled()
        probabilities = softmax(norm.y[piece] @ head.T)
        one, other = draw(probabilities, rng), draw(probabilities, rng)
        g[piece] = (head[one] - head[other]) * sqrt(0.5)
    return norm.backward(g)


def _call(job: Any) -> Any:
    return job()


def _half(reference: Reference, half: int, x: Array) -> "_Attention | _MLP":
    return (_MLP if half % 2 else _Attention)(reference, f"blk.{half // 2}", x)


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
        self._linear = reference.linear

    def output(self) -> Array:
        mixed = (self.probabilities @ self.value).transpose(1, 0, 2)
        return self._linear(f"{self.name}.attn_output", mixed.reshape(len(mixed), -1))

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
        self._linear = reference.linear

    def output(self) -> Array:
        return self._linear(f"{self.name}.ffn_down", gelu(self.inner))

    def backward(self, g: Array, found: dict[str, Array]) -> Array:
        found[f"{self.name}.ffn_down.weight"] = g
        inner = (g @ self.weights[f"{self.name}.ffn_down.weight"]) * _gelu_slope(self.inner)
        return self.norm.backward(inner @ self.weights[f"{self.name}.ffn_up.weight"])


def _gelu_slope(x: Array) -> Array:
    """The derivative of `gelu`."""
    curved = np.tanh(sqrt(2 / pi) * (x + 0.044715 * x * x * x))
    y: Array = 0.5 * (1 + curved) + 0.5 * x * (1 - curved * curved) * sqrt(2 / pi) * (1 + 3 * 0.044715 * x * x)
    return y
