"""One text while it is written: what was asked for, what came so far, and when it is through."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from dgpt2_quant.runtime.native.batch_token import Logits
from dgpt2_quant.runtime.native.model_context import NativeModel
from dgpt2_quant.runtime.sampling.candidates import likeliest, log_total
from dgpt2_quant.runtime.sampling.sampler import Sampler

from .prompt_lookup import Guess, Lookup
from .request import Request
from .text_stream import TextStream

FinishReason = Literal["length", "stop", "eos", "cancelled"]


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its log-probability in nats, before any sampling setting; None for a text's first one.

    `top` has the likeliest tokens in its place and theirs, the likeliest first.
    """

    token: int
    logprob: float | None
    top: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """A finished text: `tokens` counts what was sampled, `token_ids` and `logprobs` tell each of them.

    Texts are compared by the first three; the details are None or empty where nobody asked for them.
    """

    text: str
    tokens: int
    finish_reason: FinishReason
    token_ids: tuple[int, ...] = field(default=(), compare=False, repr=False)
    logprobs: tuple[TokenLogprob, ...] | None = field(default=None, compare=False, repr=False)
    prompt_logprobs: tuple[TokenLogprob, ...] | None = field(default=None, compare=False, repr=False)


@dataclass
class Timing:
    """Of a generation: counts, and seconds by the clock.

    The prompt's time is that of computing it. The first token is sampled from the prompt's last logits and costs no
    decode of its own: `decoded` counts from the second one on, and so does `decode_tps`. `first_token_ms` includes the
    prompt. Of sequences that decode together each counts the whole step. `waited_seconds` are those before its prompt's
    turn.
    """

    waited_seconds: float = 0.0
    prompt_tokens: int = 0
    prompt_computed: int = 0
    prompt_seconds: float = 0.0
    decode_tokens: int = 0
    decoded: int = 0
    decode_seconds: float = 0.0
    first_token_ms: float | None = None

    @property
    def prompt_tps(self) -> float | None:
        return self.prompt_computed / self.prompt_seconds if self.prompt_computed else None

    @property
    def decode_tps(self) -> float | None:
        return self.decoded / self.decode_seconds if self.decode_seconds else None

    def to_json(self) -> dict[str, Any]:
        names = ("prompt_tokens", "prompt_tps", "decode_tokens", "decode_tps", "first_token_ms")
        return {name: getattr(self, name) for name in names}


def total_timing(timings: Sequence[Timing]) -> Timing:
    """Of sequences from one prompt: tokens in sum, the time of the longest, the prompt of the first."""
    if not timings:
        return Timing()
    return replace(
        timings[0],
        decode_tokens=sum(timing.decode_tokens for timing in timings),
        decoded=sum(timing.decoded for timing in timings),
        decode_seconds=max(timing.decode_seconds for timing in timings),
    )


class Draft:
    """A text in the making. The engine feeds it logits; it chooses, remembers, and says what can be shown."""

    def __init__(self, model: NativeModel, request: Request, positions: int) -> None:
        self.request = request
        self.real_vocabulary = model.real_vocabulary
        self.timing = Timing(prompt_tokens=len(request.prompt))
        self.completion: Completion | None = None
        self.token_ids: list[int] = []
        self.prompt_logprobs: list[TokenLogprob] = []
        self.token = -1  # the last one that was chosen; it is fed at the next position
        self.next_position = len(request.prompt)
        self.slot = -1  # where its sequence lies, and the engine's seconds when it began to decode
        self.began_at = 0.0
        # the last position's output can be sampled, but a token there has no position of its own to be fed at
        self.room = min(request.max_tokens, positions - len(request.prompt) + 1)
        self._ends = [*model.ends, *request.stop_token_ids] if request.min_tokens else []
        self._model = model
        self._text = TextStream(request.stop)
        self._shown: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._sampler = Sampler(model, request.sampling, request.seed, positions, request.prompt)
        self._lookup: Lookup | None = None  # made when it is first asked for: not where several decode together
        self._created = self._started = time.perf_counter()

    def begin(self) -> str:
        """Called when its prompt's turn comes; where there is nothing to write it is through, and this is its text."""
        self._started = time.perf_counter()
        self.timing.waited_seconds = self._started - self._created
        if self.room > 0 or self.request.scores_prompt:
            return ""
        return self._show(self.request.echo or "") + self._finish("length")

    def logprobs(self, begin: int = 0) -> tuple[TokenLogprob, ...]:
        """Those of the tokens from an index on; none where they were not asked for."""
        return tuple(self._logprobs[begin:])

    def guesses(self, positions: int) -> Sequence[Guess]:
        """What may follow the last token, to be fed behind it in a context of so many positions, if anything.

        Also where the text is to end before: how many rows are computed together must not depend on `max_tokens`, so
        that a shorter text is the beginning of a longer one.
        """
        if self._lookup is None:
            self._lookup = Lookup(self.request.prompt)
        tokens = self._lookup.guesses(self.token_ids, min(self.request.lookup, positions - self.next_position - 1))
        return [Guess(token, at, self.slot) for at, token in enumerate(tokens, self.next_position + 1)]

    def advance(self, logits: Logits) -> str:
        """Chooses the next token by logits, (real vocabulary,), which it changes; returns the text to show now.

        Pad tokens have none there, so that they are never chosen.
        """
        if self.completion:  # a signal handler closed it in the middle of this step
            return ""
        request, token_ids = self.request, self.token_ids
        shown = "" if token_ids or request.echo is None else self._show(request.echo)
        if self.room <= 0:  # only the prompt's log-probabilities were wanted
            return shown + self._finish("length")
        raw = logits.copy() if request.logprobs is not None else None
        if len(token_ids) < request.min_tokens:
            logits[self._ends] = -np.inf
        token = self._sampler.choose(logits)
        if token is None:  # a grammar, or biases, leave nothing
            return shown + self._finish("stop")
        self.token = token
        token_ids.append(token)
        if raw is not None:
            self._logprobs.append(token_logprob(raw, token, request.logprobs or 0))
        if len(token_ids) == 1:
            self.timing.first_token_ms = 1000 * (time.perf_counter() - self._started)
        if token in request.stop_token_ids:
            return shown + self._finish("stop")
        data, ends = self._model.piece(token)
        if not data and request.show_special:
            data = self._model.special_text(token)
        if ends and not request.ignore_eos:
            return shown + (self._show(self._text.feed(data)) if request.show_special else "") + self._finish("eos")
        if text := self._text.feed(data):
            self._shown.append(text)
            shown += text
        if self._text.stopped:
            return shown + self._finish("stop")
        if len(token_ids) >= self.room:
            return shown + self._finish("length")
        return shown

    def stop(self) -> str:
        """Ends it before its time; returns what was held back."""
        return "" if self.completion else self._finish("cancelled")

    def _finish(self, reason: FinishReason) -> str:
        rest = self._show(self._text.finish())
        request = self.request
        self.timing.decode_tokens = len(self.token_ids)
        self.timing.decoded = max(0, len(self.token_ids) - 1)
        self.completion = Completion(
            "".join(self._shown),
            len(self.token_ids),
            "stop" if self._text.stopped else reason,
            tuple(self.token_ids),
            None if request.logprobs is None else tuple(self._logprobs),
            tuple(self.prompt_logprobs) if self.prompt_logprobs else None,
        )
        self._sampler.close()
        return rest

    def _show(self, text: str) -> str:
        if text:
            self._shown.append(text)
        return text


def token_logprob(logits: Logits, token: int, count: int) -> TokenLogprob:
    """A token's log-probability, and those of the `count` likeliest tokens, by logits of shape (real vocabulary,).

    A pad token behind them, which only a prompt can have, gets -inf.
    """
    total = log_total(logits)
    top = {int(other): float(logits[other]) - total for other in likeliest(logits, count)} if count else {}
    return TokenLogprob(token, float(logits[token]) - total if token < len(logits) else -math.inf, top)
