"""Generates calibration text with the model itself: always available, and similar to its output.

Many sequences are computed together, position by position with a KV cache, with the formulas of numpy_gpt2.py. Tokens
are drawn from the full distribution. Observers see the inputs of all matrices.
"""

from collections.abc import Callable
from functools import partial
from math import prod, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.core.parallel import evenly, in_parallel, pieces
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.workers import check_cancelled

from .numpy_gpt2 import Observer, Reference, gelu, softmax

Array = npt.NDArray[np.floating[Any]]
_ROWS = 20  # sequences per thread, at most: with fewer, the weights are read more often
_COLUMNS = 1 << 12  # of the output matrix per task, for all sequences
_AT_ONCE = 128  # sequences in a batch, at most
_CACHE_BYTES = 1 << 30  # limit of the KV cache; of a large model, half of its weights' bytes
_BLOCK = 256  # probabilities per partial sum when a token is drawn
_SEED = 1


def sample(
    reference: Reference,
    first: int,
    count: int,
    length: int,
    *,
    observers: Callable[[], Observer] | None = None,
    progress: Progress | None = None,
) -> list[int]:
    """Generates `count` sequences of `length` tokens that begin with the token `first`; deterministic.

    `observers` is called for each group of sequences, in order; the observer is called from the group's thread.
    """
    written: list[int] = []
    for batch in batches(reference.sizes, count, length):
        written += sample_batch(reference, first, batch, count, length, observers=observers, progress=progress)
    return written


def sample_batch(
    reference: Reference,
    first: int,
    batch: slice,
    count: int,
    length: int,
    *,
    observers: Callable[[], Observer] | None = None,
    progress: Progress | None = None,
) -> list[int]:
    """The sequences of one of the `batches` of `sample`."""
    head = np.ascontiguousarray(reference.weights[reference.head].T)  # a fifth faster for few rows
    number = batch.stop - batch.start
    groups = [
        _Group(reference, first, rows.stop - rows.start, length, batch.start + rows.start, observers and observers())
        for rows in evenly(number, min(_ROWS, -(-number // 2)))
    ]
    logits = np.empty((number, head.shape[1]), head.dtype)
    for position in range(length):
        hidden = np.concatenate([*in_parallel(partial(_Group.hidden, position=position), groups)])
        if position + 1 < length:
            _choose(groups, _multiplied(hidden, head, logits), position + 1)
        if progress:
            done = batch.start * length + number * (position + 1)
            progress(done, count * length, "text that the model writes")
    return [token for group in groups for token in group.tokens.reshape(-1).tolist()]


def sampling_bytes(sizes: Hyperparameters, count: int, length: int) -> int:
    """The memory that `sample` needs: the weights in float32, a copy of the output matrix, KV cache and logits."""
    number: int = max(batch.stop - batch.start for batch in batches(sizes, count, length))
    head = 4 * sizes.vocabulary * sizes.width
    return _weight_bytes(sizes) + head + number * (_cache_bytes(sizes, length) + 16 * sizes.vocabulary)


def batches(sizes: Hyperparameters, count: int, length: int) -> list[slice]:
    """The sequences that are computed together: each batch reads all weights for each position."""
    fitting = max(_CACHE_BYTES, _weight_bytes(sizes) // 2) // _cache_bytes(sizes, length)
    return evenly(count, max(1, min(_AT_ONCE, fitting)))


def _cache_bytes(sizes: Hyperparameters, length: int) -> int:
    """The KV cache of a sequence."""
    return 2 * sizes.layers * length * sizes.width * 4


def _weight_bytes(sizes: Hyperparameters) -> int:
    return 4 * sum(map(prod, sizes.shapes().values()))


def _multiplied(hidden: Array, head: Array, out: Array) -> Array:
    def multiply(part: slice) -> None:
        np.matmul(hidden, head[:, part], out=out[:, part])

    for _ in in_parallel(multiply, pieces(head.shape[1], _COLUMNS)):
        pass
    return out


def _choose(groups: list["_Group"], logits: Array, position: int) -> None:
    own = np.split(logits, np.cumsum([len(group.tokens) for group in groups])[:-1])
    for _ in in_parallel(lambda each: each[0].choose(position, each[1]), list(zip(groups, own, strict=True))):
        pass


class _Group:
    """Sequences that are computed together."""

    def __init__(
        self, reference: Reference, first: int, rows: int, length: int, seed: int, observe: Observer | None
    ) -> None:
        self.reference, self.observe = reference, observe
        self.tokens = np.full((rows, length), first, np.int64)
        self._rng = np.random.default_rng([_SEED, seed])
        sizes = reference.sizes
        each = (sizes.layers, rows, sizes.heads)
        size = sizes.width // sizes.heads
        self._keys = np.empty((*each, size, length), np.float32)  # transposed, for a faster product
        self._values = np.empty((*each, length, size), np.float32)

    def hidden(self, position: int) -> Array:
        """The final norm's outputs at a position, shape (rows, width)."""
        reference, weights = self.reference, self.reference.weights
        x: Array = weights["token_embd.weight"][self.tokens[:, position]] + weights["position_embd.weight"][position]
        with np.errstate(all="ignore"):  # the observer refuses values that are not finite
            for block in range(reference.sizes.layers):
                check_cancelled()
                name = f"blk.{block}"
                x = x + self._attention(block, reference.norm(f"{name}.attn_norm", x), position)
                inner = gelu(self._linear(f"{name}.ffn_up", reference.norm(f"{name}.ffn_norm", x)))
                x = x + self._linear(f"{name}.ffn_down", inner)
            x = reference.norm("output_norm", x)
        if self.observe:
            self.observe(reference.head, x)
        return x

    def choose(self, position: int, logits: Array) -> None:
        """Draws the tokens at a position."""
        self.tokens[:, position] = draw(softmax(logits), self._rng)

    def _linear(self, name: str, x: Array) -> Array:
        if self.observe:
            self.observe(f"{name}.weight", x)
        return self.reference.linear(name, x)

    def _attention(self, block: int, x: Array, position: int) -> Array:
        name, (rows, width) = f"blk.{block}", x.shape
        heads = self.reference.sizes.heads
        fused = self._linear(f"{name}.attn_qkv", x)
        query, key, value = fused.reshape(rows, 3, heads, width // heads).transpose(1, 0, 2, 3)
        self._keys[block, ..., position], self._values[block, :, :, position] = key, value
        keys, values = self._keys[block, ..., : position + 1], self._values[block, :, :, : position + 1]
        scores = query[:, :, None] @ keys / sqrt(width // heads)
        mixed = softmax(scores) @ values
        return self._linear(f"{name}.attn_output", mixed.reshape(rows, width))


def draw(probabilities: Array, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draws a token for each row of probabilities."""
    starts = np.arange(0, probabilities.shape[1], _BLOCK)
    sums = np.add.reduceat(probabilities, starts, axis=1).cumsum(axis=1, dtype=np.float64)
    wanted = rng.random(len(sums)) * sums[:, -1]
    return np.array([_found(*row) for row in zip(probabilities, sums, wanted, strict=True)], np.int64)


def _found(row: Array, sums: npt.NDArray[np.float64], wanted: float) -> int:
    """Inverse transform sampling in two steps: the block by its cumulative sum, then the token in it."""
    block = min(int(np.searchsorted(sums, wanted, "right")), len(sums) - 1)
    within = row[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.float64)
    if block:
        wanted = wanted - sums[block - 1]
    # sums are rounded: stop at the last token with a probability above 0
    last = int(np.searchsorted(within, within[-1], "left"))
    return block * _BLOCK + min(int(np.searchsorted(within, wanted, "right")), last)
