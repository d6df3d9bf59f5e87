"""Text that the model writes itself, to calibrate on: there is always some, and it is what the model will be used for.

Some sequences at once, each position after the other with keys and values kept, as `reference.py` computes; tokens are
drawn from the whole distribution.
"""

from math import sqrt
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from .parallel import in_parallel, pieces
from .progress import Progress
from .reference import Reference, gelu, softmax

Array = npt.NDArray[np.floating[Any]]
_ROWS = 20  # that are written together: fewer would read the weights more often, more keep cores waiting
_CACHE_BYTES = 1 << 29  # of their keys and values
_SEED = 1


def sample(reference: Reference, first: int, count: int, length: int, *, progress: Progress | None = None) -> list[int]:
    """`count` sequences of `length` tokens that begin with the token `first`, one after the other. They are seeded."""
    sizes = reference.sizes
    each = 2 * sizes.layers * length * sizes.width * 4
    groups = pieces(count, max(1, min(_ROWS, _CACHE_BYTES // each)))
    done, turn = [0] * len(groups), Lock()

    def write(number: int) -> npt.NDArray[np.int64]:
        rows = groups[number].stop - groups[number].start

        def show(position: int) -> None:
            with turn:
                done[number] = rows * (position + 1)
                if progress:
                    progress(sum(done), count * length, "text that the model writes")

        return _write(reference, first, rows, length, np.random.default_rng([_SEED, number]), show)

    written: list[int] = []
    for group in in_parallel(write, range(len(groups))):
        written += group.reshape(-1).tolist()
    return written


def _write(
    reference: Reference, first: int, rows: int, length: int, rng: np.random.Generator, show: Any
) -> npt.NDArray[np.int64]:
    sizes, weights = reference.sizes, reference.weights
    tokens = np.empty((rows, length), np.int64)
    tokens[:, 0] = first
    # (layers, keys and values, rows, heads, positions, size of a head)
    kept = np.empty((sizes.layers, 2, rows, sizes.heads, length, sizes.width // sizes.heads), np.float32)
    for position in range(length - 1):
        x = weights["token_embd.weight"][tokens[:, position]] + weights["position_embd.weight"][position]
        for block in range(sizes.layers):
            x = x + _attention(reference, f"blk.{block}", x, kept[block], position)
            inner = gelu(reference.linear(f"blk.{block}.ffn_up", reference.norm(f"blk.{block}.ffn_norm", x)))
            x = x + reference.linear(f"blk.{block}.ffn_down", inner)
        probabilities = softmax(reference.norm("output_norm", x) @ weights[reference.head].T)
        tokens[:, position + 1] = draw(probabilities, rng)
        show(position + 1)
    return tokens


def draw(probabilities: Array, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """A token for each row, by its probabilities."""
    cumulated = probabilities.cumsum(axis=1)
    wanted = (rng.random(len(cumulated)) * cumulated[:, -1]).astype(cumulated.dtype)
    last = cumulated.shape[1] - 1
    found = [min(int(np.searchsorted(row, bound, "right")), last) for row, bound in zip(cumulated, wanted, strict=True)]
    return np.array(found, np.int64)


def _attention(reference: Reference, name: str, x: Array, kept: Array, position: int) -> Array:
    rows, width = x.shape
    heads = reference.sizes.heads
    fused = reference.linear(f"{name}.attn_qkv", reference.norm(f"{name}.attn_norm", x))
    query, key, value = fused.reshape(rows, 3, heads, width // heads).transpose(1, 0, 2, 3)
    kept[0, :, :, position], kept[1, :, :, position] = key, value
    keys, values = kept[0, :, :, : position + 1], kept[1, :, :, : position + 1]
    scores = (keys @ query[..., None])[..., 0] / sqrt(width // heads)
    mixed = (softmax(scores)[..., None, :] @ values)[..., 0, :]
    return reference.linear(f"{name}.attn_output", mixed.reshape(rows, width))
