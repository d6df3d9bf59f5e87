"""The half of a `Model` that only reads: logits, log-probabilities and hidden states of given texts."""

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime import scoring
from dgpt2_quant.runtime.native.batch_token import token_ids
from dgpt2_quant.runtime.native.model_context import NativeContext, NativeModel

from .lifecycle import Closing


class Scorer(Closing):
    """What a model makes of texts. The model gives the context to compute in, and the lock for it."""

    positions: int
    real_vocabulary: int
    _lock: threading.RLock

    def _open(self) -> NativeModel:
        raise NotImplementedError

    def _context_for(self, *, features: bool = False) -> NativeContext:
        raise NotImplementedError

    def logits(self, tokens: Sequence[int], first: int = 0) -> npt.NDArray[np.float32]:
        """Logits for the positions `first` and later of a text of its own, shape (len(tokens) - first, vocabulary).

        Raises `UsageError` for more tokens than `positions`.
        """
        ids = self._ids(tokens)
        if not 0 <= first < len(ids):
            raise UsageError(f"the first row is {first}; it goes from 0 to {len(ids) - 1}")
        with self._lock:
            return scoring.logits(self._context_for(), ids, first)

    def visit_logits(
        self, tokens: Sequence[int], first: int, see: scoring.Visitor, *, batch: int | None = None
    ) -> None:
        """`logits` without a copy: calls `see(position, rows)` with views that are valid until it returns.

        At most `batch` tokens are decoded at a time (default: as many as the context takes).
        """
        ids = self._ids(tokens)
        with self._lock:
            scoring.visit(self._context_for(), ids, first, batch, see)

    def score(self, text: str | Sequence[int]) -> npt.NDArray[np.float32]:
        """Each token's log-probability in nats, given those before it, shape (tokens,); nan for the first.

        Pad tokens at the vocabulary's end have no part in it. Put `<|endoftext|>` before the text to score its first
        token as the beginning of a text. Raises `UsageError` for more tokens than `positions`.
        """
        ids = self._ids(text)
        with self._lock:
            return scoring.score(self._context_for(), self.real_vocabulary, ids)

    def score_continuations(
        self, prefix: Sequence[int], continuations: Sequence[Sequence[int]]
    ) -> list[scoring.ContinuationScore]:
        """Scores each continuation behind a prefix that all share: as `score`, and whether a token is the likeliest.

        Pad tokens do not count. Raises `UsageError` for no tokens, or more than `positions` together.
        """
        before = self._ids(prefix)
        behind = [self._ids([*before, *tokens])[len(before) :] for tokens in continuations]
        with self._lock:
            return scoring.score_continuations(self._context_for(), self.real_vocabulary, before, behind)

    def features(self, text: str | Sequence[int], *, pooling: scoring.Pooling = "none") -> npt.NDArray[np.float32]:
        """Hidden states behind the final norm (GPT2Model's `last_hidden_state`), shape (tokens, width), float32.

        With `pooling` "mean" over the tokens or "last", shape (width,). Raises `UsageError` for no tokens, or more
        than `positions`.
        """
        ids = self._ids(text)
        with self._lock:
            return scoring.features(self._context_for(features=True), ids, pooling)

    def _ids(self, text: str | Sequence[int]) -> list[int]:
        """The tokens of a text to be scored. Raises `UsageError` when they are none, or too many."""
        native = self._open()
        if isinstance(text, str):
            tokens = native.tokenize(text, special=True, add_special=True)
        else:
            if isinstance(text, list | tuple) and (texts := [item for item in text if isinstance(item, str)]):
                raise UsageError(
                    f"there is no token {texts[0]!r}; one text is scored at a time", "Call it for each text."
                )
            tokens = token_ids(text, native.vocabulary)
        if not 0 < len(tokens) <= self.positions:
            raise UsageError(f"{len(tokens)} tokens; 1 to {self.positions} can be scored at once")
        return tokens


# what computes in the contexts to score in
SCORING = (Scorer.logits, Scorer.visit_logits, Scorer.score, Scorer.score_continuations, Scorer.features)
