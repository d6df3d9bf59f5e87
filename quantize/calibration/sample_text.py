"""Text that the model writes itself, to calibrate on: there is always some, and it is what the model will be used for.

Many sequences at once, each position after the other with keys and values kept, as `reference.py` computes; tokens are
drawn from the whole distribution. What its matrices are multiplied with on the way is shown to those who calibrate.
"""

from collections.abc import Callable
from functools import partial
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.parallel import evenly, in_parallel, pieces
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.workers import check_cancelled

from .numpy_gpt2 import Observer, Reference, gelu, softmax

Array = npt.NDArray[np.floating[Any]]
_ROWS = 20  # that a thread computes together, at most: with fewer the weights are read more often
_COLUMNS = 1 << 12  # of the output matrix, for all sequences at once
_AT_ONCE = 128  # sequences, at most
_CACHE_BYTES = 1 << 30  # of their keys and values
_BLOCK = 256  # probabilities that are summed before one of them is looked for
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
    """`count` sequences of `length` tokens that begin with the token `first`, one after the other. They are seeded.

    One of the `observers` is asked for each group of sequences, in their order, and shown inputs from its thread.
    """
    sizes = reference.sizes
    fitting = _CACHE_BYTES // (2 * sizes.layers * length * sizes.width * 4)
    head = np.ascontiguousarray(reference.weights[reference.head].T)  # multiplied a fifth faster by few rows
    written: list[int] = []
    for some in evenly(count, max(1, min(_AT_ONCE, fitting))):
        number = some.stop - some.start
        groups = [
            _Group(reference, first, rows.stop - rows.start, length, some.start + rows.start, observers and observers())
            for rows in evenly(number, min(_ROWS, -(-number // 2)))
        ]
        logits = np.empty((number, head.shape[1]), head.dtype)
        for position in range(length):
            hidden = np.concatenate([*in_parallel(partial(_Group.hidden, position=position), groups)])
            if position + 1 < length:
                _choose(groups, _multiplied(hidden, head, logits), position + 1)
            if progress:
                progress(some.start * length + number * (position + 1), count * length, "text that the model writes")
        for group in groups:
            written += group.tokens.reshape(-1).tolist()
    return written


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
    """Sequences whose positions are computed together."""

    def __init__(
        self, reference: Reference, first: int, rows: int, length: int, seed: int, observe: Observer | None
    ) -> None:
        self.reference, self.observe = reference, observe
        self.tokens = np.full((rows, length), first, np.int64)
        self._rng = np.random.default_rng([_SEED, seed])
        sizes = reference.sizes
        each = (sizes.layers, rows, sizes.heads)
        size = sizes.width // sizes.heads
        self._keys = np.empty((*each, size, length), np.float32)  # turned: so they are multiplied faster
        self._values = np.empty((*each, length, size), np.float32)

    def hidden(self, position: int) -> Array:
        """The final norm's outputs, shape (rows, width)."""
        reference, weights = self.reference, self.reference.weights
        x: Array = weights["token_embd.weight"][self.tokens[:, position]] + weights["position_embd.weight"][position]
        with np.errstate(all="ignore"):  # what is not finite is refused where it is seen
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
        """Draws what stands there."""
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
    """A token for each row, by its probabilities."""
    starts = np.arange(0, probabilities.shape[1], _BLOCK)
    sums = np.add.reduceat(probabilities, starts, axis=1).cumsum(axis=1, dtype=np.float64)
    wanted = rng.random(len(sums)) * sums[:, -1]
    return np.array([_found(*row) for row in zip(probabilities, sums, wanted, strict=True)], np.int64)


def _found(row: Array, sums: npt.NDArray[np.float64], wanted: float) -> int:
    """The first token up to which there is more than wanted: its block's sum first."""
    block = min(int(np.searchsorted(sums, wanted, "right")), len(sums) - 1)
    within = row[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.float64)
    if block:
        wanted = wanted - sums[block - 1]
    # the sums are rounded: not beyond the last token that has a probability
    last = int(np.searchsorted(within, within[-1], "left"))
    return block * _BLOCK + min(int(np.searchsorted(within, wanted, "right")), last)
