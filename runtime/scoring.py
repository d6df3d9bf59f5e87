"""What a model makes of a given text: logits, log-probabilities and hidden states, batch by batch."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from dgpt2_quant.quantize.errors import UsageError

from .candidates import log_total
from .library import NativeContext

Pooling = Literal["none", "mean", "last"]
POOLINGS: tuple[Pooling, ...] = ("none", "mean", "last")


def logits(context: NativeContext, tokens: Sequence[int], first: int) -> npt.NDArray[np.float32]:
    """Logits for the positions `first` and later, shape (len(tokens) - first, vocabulary)."""
    parts = [rows.copy() for _, rows in _scored(context, tokens, first)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def score(context: NativeContext, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """Each token's log-probability in nats, shape (len(tokens),); nan for the first, which nothing precedes."""
    found = np.full(len(tokens), np.nan, np.float32)
    for start, rows in _scored(context, tokens, 0):
        for index, row in enumerate(rows[: len(tokens) - 1 - start], start + 1):
            found[index] = row[tokens[index]] - log_total(row)
    return found


def features(context: NativeContext, tokens: Sequence[int], pooling: Pooling) -> npt.NDArray[np.float32]:
    """The final norm's output, shape (len(tokens), width), or (width,) of its mean or its last row.

    The context must have been made with `embeddings`.
    """
    check_pooling(pooling)
    rows = np.concatenate([context.embeddings(count).copy() for _, count in _decoded(context, tokens, 0)])
    if pooling == "none":
        return rows
    return np.asarray(rows.mean(axis=0, dtype=np.float64) if pooling == "mean" else rows[-1], np.float32)


def check_pooling(name: str) -> Pooling:
    """The name, if it is one. Raises `UsageError`."""
    for pooling in POOLINGS:
        if name == pooling:
            return pooling
    raise UsageError(f"the pooling is {name!r}; there are {', '.join(POOLINGS)}")


def _scored(context: NativeContext, tokens: Sequence[int], first: int) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """(position of the first row, rows) for the positions from `first` on; valid until the next."""
    for position, count in _decoded(context, tokens, first):
        if count:
            yield position, context.logits(count)


def _decoded(context: NativeContext, tokens: Sequence[int], first: int) -> Iterator[tuple[int, int]]:
    """Decodes a text of its own; yields (position of the first scored row, how many) behind each batch."""
    context.keep(0)
    size = context.batch_size
    for start in range(0, len(tokens), size):
        batch = tokens[start : start + size]
        scored_from = min(max(0, first - start), len(batch))
        context.decode(batch, start, 0, scored_from)
        yield start + scored_from, len(batch) - scored_from
