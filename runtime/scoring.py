"""Logits, log-probabilities and hidden states of given texts: the part of `Model` that does not generate."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime.native.batch_token import TokenIds, token_ids
from dgpt2_quant.runtime.native.context import NativeContext
from dgpt2_quant.runtime.sampling.candidates import log_total

from .slot import SCORED_UNIT
from .vocabulary import Vocabulary

Pooling = Literal["none", "mean", "last"]
Visitor = Callable[[int, npt.NDArray[np.float32]], None]
POOLINGS: tuple[Pooling, ...] = ("none", "mean", "last")


class ContinuationScore(NamedTuple):
    """For each token of a continuation, (tokens,): its log-probability in nats, and whether it is the most likely."""

    log_probs: npt.NDArray[np.float32]
    greedy: npt.NDArray[np.bool_]


class Scorer(Vocabulary):
    """Scores texts. The model provides the context to compute in, and the lock for it."""

    positions: int
    real_vocabulary: int
    _lock: threading.RLock

    def _context_for(self, *, features: bool = False) -> NativeContext:
        raise NotImplementedError

    def logits(self, tokens: TokenIds, first: int = 0) -> npt.NDArray[np.float32]:
        """Logits at the positions from `first` on, shape (len(tokens) - first, vocabulary).

        Raises `UsageError` for more tokens than `positions`.
        """
        ids = self._ids(tokens)
        if not 0 <= first < len(ids):
            raise UsageError(f"`first` must be 0-{len(ids) - 1} for {len(ids)} tokens, not {first}")
        with self._lock:
            parts = [rows.copy() for _, rows in _scored(self._context_for(), ids, first)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def visit_logits(self, tokens: TokenIds, first: int, see: Visitor, *, batch: int | None = None) -> None:
        """`logits` without a copy: calls `see(position, rows)` with views that are valid until it returns.

        Decodes at most `batch` tokens at a time (default: as many as the context takes).
        """
        ids = self._ids(tokens)
        with self._lock:
            for position, rows in _scored(self._context_for(), ids, first, batch):
                see(position, rows)

    def score(self, text: str | TokenIds) -> npt.NDArray[np.float32]:
        """Each token's log-probability in nats given the tokens before it, shape (tokens,); nan for the first token.

        Pad tokens at the end of the vocabulary have no part in it: one in the text gets -inf. Put `<|endoftext|>`
        before the text to score its first token as the beginning of a text. Raises `UsageError` for more tokens than
        `positions`.
        """
        tokens, vocabulary = self._ids(text), self.real_vocabulary
        found = np.full(len(tokens), np.nan, np.float32)
        with self._lock:
            for start, rows in _scored(self._context_for(), tokens, 0):
                for index, row in enumerate(rows[: len(tokens) - 1 - start], start + 1):
                    token = tokens[index]
                    found[index] = row[token] - log_total(row[:vocabulary]) if token < vocabulary else -np.inf
        return found

    def score_continuations(self, prefix: TokenIds, continuations: Sequence[TokenIds]) -> list[ContinuationScore]:
        """Scores each continuation after a common prefix, which is decoded once. Pad tokens do not count.

        Raises `UsageError` for an empty prefix or continuation, or more than `positions` tokens together.
        """
        before = self._ids(prefix)
        after = [self._ids([*before, *tokens])[len(before) :] for tokens in continuations]
        if not all(after):
            raise UsageError("each continuation must have at least 1 token, not 0")
        found = []
        with self._lock:
            context, vocabulary = self._context_for(), self.real_vocabulary
            (first,) = (rows[-1:, :vocabulary].copy() for _, rows in _scored(context, before, len(before) - 1))
            for tokens in after:
                scores = ContinuationScore(np.empty(len(tokens), np.float32), np.empty(len(tokens), np.bool_))
                _fill(scores, tokens, 0, first)
                # the prefix's last token is decoded again: a single token is computed differently (see _decoded)
                context.keep(len(before) - 1)
                inputs = [before[-1], *tokens[:-1]]
                for start in range(0, len(inputs) if len(tokens) > 1 else 0, context.batch_size):
                    batch = inputs[start : start + context.batch_size]
                    context.decode(batch, len(before) - 1 + start, 0, 0)
                    _fill(scores, tokens, start, context.logits(len(batch))[:, :vocabulary])
                found.append(scores)
        return found

    def features(self, text: str | TokenIds, *, pooling: Pooling = "none") -> npt.NDArray[np.float32]:
        """Hidden states after the final norm (GPT2Model's `last_hidden_state`), shape (tokens, width), float32.

        `pooling` "mean" averages them over the tokens, "last" takes the last token's; both have shape (width,). Raises
        `UsageError` for no tokens, or more than `positions`.
        """
        ids = self._ids(text)
        check_pooling(pooling)
        rows = self._hidden(ids)
        if pooling == "none":
            return rows
        return np.asarray(rows.mean(axis=0, dtype=np.float64) if pooling == "mean" else rows[-1], np.float32)

    def _hidden(self, ids: list[int]) -> npt.NDArray[np.float32]:
        """Hidden states after the final norm, (tokens, width)."""
        with self._lock:
            context = self._context_for(features=True)
            return np.concatenate([context.embeddings(count).copy() for _, count in _decoded(context, ids, 0)])

    def _ids(self, text: str | TokenIds) -> list[int]:
        """The tokens of a text to score. Raises `UsageError` for none, or too many."""
        native = self._open()
        if isinstance(text, str):
            tokens = native.tokenize(text, special=True, add_special=True)
        else:
            if isinstance(text, list | tuple) and any(isinstance(item, str) for item in text):
                raise UsageError("expected one text or its token ids, not a list of texts", "Call it for each text.")
            tokens = token_ids(text, native.vocabulary)
        if not 0 < len(tokens) <= self.positions:
            raise UsageError(f"a text to score must have 1-{self.positions} tokens, not {len(tokens)}")
        return tokens


# the methods that compute in the scoring contexts
SCORING = (Scorer.logits, Scorer.visit_logits, Scorer.score, Scorer.score_continuations, Scorer._hidden)


def check_pooling(name: str) -> Pooling:
    """The name as a `Pooling`. Raises `UsageError`."""
    for pooling in POOLINGS:
        if name == pooling:
            return pooling
    raise UsageError(f"`pooling` must be one of {', '.join(POOLINGS)}, not {name!r}")


def _fill(scores: ContinuationScore, tokens: TokenIds, start: int, rows: npt.NDArray[np.float32]) -> None:
    """Scores the tokens from `start` on by the rows of logits before them, (rows, vocabulary)."""
    for index, row in enumerate(rows, start):
        scores.log_probs[index] = row[tokens[index]] - log_total(row)
        scores.greedy[index] = row.argmax() == tokens[index]


def _scored(
    context: NativeContext, tokens: TokenIds, first: int, batch: int | None = None
) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
    """(position of the first row, rows of logits) from the position `first` on, by batches; valid until the next."""
    for position, count in _decoded(context, tokens, first, batch):
        if count:
            yield position, context.logits(count)


def _decoded(
    context: NativeContext, tokens: TokenIds, first: int, batch: int | None = None
) -> Iterator[tuple[int, int]]:
    """Decodes a text from an empty context; yields (position of the first scored row, scored rows) after each batch."""
    context.keep(0)
    size = min(batch or context.batch_size, context.batch_size)
    if batch is None:  # batches of equal size: a last one of a single token would depend on the number of threads
        size = min(-(-len(tokens) // -(-len(tokens) // size) // SCORED_UNIT) * SCORED_UNIT, size)
    for start in range(0, len(tokens), size):
        part = tokens[start : start + size]
        scored_from = min(max(0, first - start), len(part))
        context.decode(part, start, 0, scored_from)
        yield start + scored_from, len(part) - scored_from
