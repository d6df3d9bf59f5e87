"""What a model makes of a given text: logits, log-probabilities and hidden states, batch by batch."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime.native.model_context import NativeContext
from dgpt2_quant.runtime.sampling.candidates import log_total

Pooling = Literal["none", "mean", "last"]
Visitor = Callable[[int, npt.NDArray[np.float32]], None]
POOLINGS: tuple[Pooling, ...] = ("none", "mean", "last")


class ContinuationScore(NamedTuple):
    """Of each token of a continuation, (tokens,): its log-probability in nats, and whether it is the likeliest."""

    log_probs: npt.NDArray[np.float32]
    greedy: npt.NDArray[np.bool_]


def logits(context: NativeContext, tokens: Sequence[int], first: int) -> npt.NDArray[np.float32]:
    """Logits for the positions `first` and later, shape (len(tokens) - first, vocabulary)."""
    parts = [rows.copy() for _, rows in _scored(context, tokens, first)]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def visit(context: NativeContext, tokens: Sequence[int], first: int, batch: int | None, see: Visitor) -> None:
    """Calls `see(position, rows)` for the rows of logits from `first` on, shape (rows, vocabulary), batch by batch."""
    for position, rows in _scored(context, tokens, first, batch):
        see(position, rows)


def score(context: NativeContext, vocabulary: int, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
    """Each token's log-probability in nats, shape (len(tokens),); nan for the first, which nothing precedes.

    Only the first `vocabulary` tokens count, and a pad token behind them gets -inf.
    """
    found = np.full(len(tokens), np.nan, np.float32)
    for start, rows in _scored(context, tokens, 0):
        for index, row in enumerate(rows[: len(tokens) - 1 - start], start + 1):
            token = tokens[index]
            found[index] = row[token] - log_total(row[:vocabulary]) if token < vocabulary else -np.inf
    return found


def score_continuations(
    context: NativeContext, vocabulary: int, prefix: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[ContinuationScore]:
    """The scores of each continuation behind the prefix, decoded once; only the first `vocabulary` tokens count.

    Raises `UsageError` for an empty continuation.
    """
    if not all(continuations):
        raise UsageError("a continuation has no tokens; at least 1 is needed")
    (first,) = (rows[-1:, :vocabulary].copy() for _, rows in _scored(context, prefix, len(prefix) - 1))
    found = []
    for tokens in continuations:
        scores = ContinuationScore(np.empty(len(tokens), np.float32), np.empty(len(tokens), np.bool_))
        _fill(scores, tokens, 0, first)
        # each time with the prefix's last token: a single one would be computed by another way (see _decoded)
        context.keep(len(prefix) - 1)
        inputs = [prefix[-1], *tokens[:-1]]
        for start in range(0, len(inputs) if len(tokens) > 1 else 0, context.batch_size):
            batch = inputs[start : start + context.batch_size]
            context.decode(batch, len(prefix) - 1 + start, 0, 0)
            _fill(scores, tokens, start, context.logits(len(batch))[:, :vocabulary])
        found.append(scores)
    return found


def _fill(scores: ContinuationScore, tokens: Sequence[int], start: int, rows: npt.NDArray[np.float32]) -> None:
    """Scores the tokens from `start` on by the rows of logits before them, (rows, vocabulary)."""
    for index, row in enumerate(rows, start):
        scores.log_probs[index] = row[tokens[index]] - log_total(row)
        scores.greedy[index] = row.argmax() == tokens[index]


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


def _scored(
    context: NativeContext, tokens: Sequence[int], first: int, batch: int | None = None
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """(position of the first row, rows) for the positions from `first` on; valid until the next."""
    for position, count in _decoded(context, tokens, first, batch):
        if count:
            yield position, context.logits(count)


def _decoded(
    context: NativeContext, tokens: Sequence[int], first: int, batch: int | None = None
) -> Iterator[tuple[int, int]]:
    """Decodes a text of its own; yields (position of the first scored row, how many) behind each batch."""
    context.keep(0)
    size = min(batch or context.batch_size, context.batch_size)
    if batch is None:  # batches of one size: a last one of a single token would depend on the number of threads
        size = -(-len(tokens) // -(-len(tokens) // size))
    for start in range(0, len(tokens), size):
        part = tokens[start : start + size]
        scored_from = min(max(0, first - start), len(part))
        context.decode(part, start, 0, scored_from)
        yield start + scored_from, len(part) - scored_from
