"""A text during generation: its request, its tokens, the text shown so far, and the rules for its end."""

import math
import time
from collections import abc

import numpy as np
from dgpt2_quant.core.errors import DgptQuantError
from dgpt2_quant.runtime.native.batch_token import Logits
from dgpt2_quant.runtime.native.model import NativeModel
from dgpt2_quant.runtime.sampling.candidates import log_total, top_k
from dgpt2_quant.runtime.sampling.sampler import Sampler

from .completion import Completion, Event, FinishReason, Timing, TokenLogprob
from .prompt_lookup import DraftToken, Lookup
from .request import Request
from .text_stream import TextStream
from .token_healing import CutChoice, keep_completing


class Sequence:
    """A text in progress. The engine hands it logits; it samples a token, and decides which text can be shown.

    It is also a `BatchToken`: its last token, which the next decode computes.
    """

    def __init__(self, model: NativeModel, request: Request, positions: int, number: int = 0) -> None:
        self.request = request
        self.number = number  # in its batch
        self.real_vocabulary = model.real_vocabulary
        self.timing = Timing(submitted=time.perf_counter(), prompt_tokens=len(request.prompt))
        self.completion: Completion | None = None
        self.error: DgptQuantError | None = None  # why the text could not be continued
        self.prompt = list(request.prompt)  # `begin_after` cuts it
        self.choice = CutChoice(model, request.prompt, request.cuts)
        self.token_ids: list[int] = []
        self.prompt_logprobs: list[TokenLogprob] = []
        self.token = -1  # the last one sampled; it is decoded at `next_position`
        self.next_position = len(request.prompt)
        self.slot = -1
        self.began_at = 0.0  # the engine's decode seconds when this began to decode
        # the output at the last position can be sampled, but that token has no position to be decoded at
        self.room = min(request.max_tokens, positions - len(request.prompt) + 1)
        self._ends = [*model.ends, *request.stop_token_ids] if request.min_tokens else []
        self._model = model
        self._text = TextStream(request.stop, request.incomplete)
        self._shown: list[str] = []
        self._logprobs: list[TokenLogprob] = []
        self._reported = 0  # tokens in earlier events
        self._begun = False  # whether there was an event
        self._positions = positions
        self._rest = b""  # the end of the prompt's text that the first token repeats
        begin = request.prompt[: request.cuts[0].length]
        self._sampler = Sampler(model, request.sampling, request.seed, positions, begin)
        self._lookup: Lookup | None = None  # made when first needed: never where several sequences decode together

    def limit_grammar(self, seconds: float) -> None:
        """The text fails if its grammar takes longer for a token."""
        self._sampler.grammar_seconds = seconds

    def begin(self) -> str:
        """Starts the clock before the prompt is computed. A request for no tokens ends here; returns its text."""
        self.timing.started = time.perf_counter()
        if self.room > 0 or self.request.scores_prompt:
            return ""
        return self._show(self.request.echo or "") + self._finish("length")

    def begin_after(self, length: int) -> None:
        """The text begins after `length` tokens of the prompt, at one of the request's cuts."""
        cuts = self.request.cuts
        self._rest = next(cut.rest for cut in cuts if cut.length == length)
        del self.prompt[length:]
        self._sampler.remember(self.prompt[cuts[0].length :])
        self.next_position = self.timing.prompt_tokens = length
        self.room = min(self.request.max_tokens, self._positions - length + 1)

    def draft_tokens(self, positions: int) -> abc.Sequence[DraftToken]:
        """Guesses of the tokens after the last one, to be decoded with it in a context of `positions`.

        Their number does not depend on `max_tokens`: it sets the number of rows computed together, and a shorter text
        must be the beginning of a longer one.
        """
        if self._lookup is None:
            self._lookup = Lookup(self.prompt)
        tokens = self._lookup.draft(self.token_ids, min(self.request.lookup, positions - self.next_position - 1))
        return [DraftToken(token, at, self.slot) for at, token in enumerate(tokens, self.next_position + 1)]

    def advance(self, logits: Logits) -> str:
        """Samples the next token from logits, shape (real vocabulary,), which it changes; returns the text to show.

        The logits have no pad tokens, so these are never sampled.
        """
        if self.completion:  # a signal handler closed it in the middle of this step
            return ""
        request, token_ids = self.request, self.token_ids
        shown = "" if token_ids or request.echo is None else self._show(request.echo)
        if self.room <= 0:  # only the prompt's log-probabilities were requested
            return shown + self._finish("length")
        raw = logits.copy() if request.logprobs is not None else None
        rest = b"" if token_ids else self._rest
        if rest:
            keep_completing(self._model, rest, logits)
        if len(token_ids) < request.min_tokens:
            logits[[token for token in self._ends if not rest or self._model.piece(token)[0] != rest]] = -np.inf
        try:
            token = self._sampler.sample(logits)
        except DgptQuantError as error:  # others that decode in the same step continue
            self.error = error.with_traceback(None)  # its frames refer to this
            return shown + self._finish("cancelled")
        if token is None:  # a grammar or a bias allows no token
            return shown + self._finish("stop")
        self.token = token
        token_ids.append(token)
        if raw is not None:
            self._logprobs.append(token_logprob(raw, token, request.logprobs or 0))
        if len(token_ids) == 1:
            self.timing.first_token = time.perf_counter()
        data, ends = self._model.piece(token)
        if token in request.stop_token_ids and (data != rest or not rest):  # not the prompt's own last token
            return shown + self._finish("stop", request.stop_token_ids[token])
        if not data and request.show_special:
            data = self._model.special_text(token)
        data = data[len(rest) :]
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

    def event(self, text: str) -> Event | None:
        """The event for this text and the tokens since the last event; None if there is nothing to show yet."""
        if not text and self.completion is None:
            return None
        begin, self._reported = self._reported, len(self.token_ids)
        logprobs = tuple(self._logprobs[begin:]) if self._logprobs else ()
        prompt_logprobs = () if self._begun or not self.prompt_logprobs else tuple(self.prompt_logprobs)
        self._begun = True
        return Event(text, self.number, tuple(self.token_ids[begin:]), logprobs, self.completion, prompt_logprobs)

    def stop(self) -> str:
        """Cancels the text; returns the part that was held back."""
        return "" if self.completion else self._finish("cancelled")

    def _finish(self, reason: FinishReason, stop_reason: str | int | None = None) -> str:
        rest = self._show(self._text.finish())
        request = self.request
        self.timing.finished = time.perf_counter()
        self.timing.decode_tokens = len(self.token_ids)
        self.timing.decoded = max(0, len(self.token_ids) - 1)
        self.completion = Completion(
            "".join(self._shown),
            len(self.token_ids),
            "stop" if self._text.stopped else reason,
            tuple(self.token_ids),
            None if request.logprobs is None else tuple(self._logprobs),
            tuple(self.prompt_logprobs) if self.prompt_logprobs else None,
            self._text.stopped_by or stop_reason,
        )
        self._sampler.close()
        return rest

    def _show(self, text: str) -> str:
        if text:
            self._shown.append(text)
        return text


def token_logprob(logits: Logits, token: int, count: int) -> TokenLogprob:
    """The log-probability of a token, and of the `count` most likely ones, from logits of shape (real vocabulary,).

    A pad token, which only a prompt can have, gets -inf.
    """
    total = log_total(logits)
    top = {int(other): float(logits[other]) - total for other in top_k(logits, count)} if count else {}
    return TokenLogprob(token, float(logits[token]) - total if token < len(logits) else -math.inf, top)
