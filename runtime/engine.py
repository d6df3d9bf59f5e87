"""Sequences that decode together in one context: admission, prompts in chunks, one token for each, and prefix reuse.

llama.cpp's kernels for one row and for many differ in the last bits, and so does a text whose logits are nearly even.
So that a sequence alone in its step gets the same bits whatever was computed before it:

- a prompt is cut at multiples of `CHUNK`, counted from its beginning, and each chunk is decoded on its own; what is
  reused of an earlier prompt is whole chunks (or all of an equal prompt), which have the very bits that they would get;
- a sequence's cells lie in order from the beginning of a stream of its own, the slot.

Sequences that decode together share matrix products of several rows; there, a text depends on how many they are.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from dgpt2_quant.runtime.native.batch_token import Fed, Logits
from dgpt2_quant.runtime.native.depth_context import DepthContext
from dgpt2_quant.runtime.native.model_context import NativeContext

from .sequence import Draft, TokenLogprob, token_logprob
from .threads import Fixed, Governor

CHUNK = 128  # tokens of a prompt that are decoded in one go, and the unit of reuse

Piece = tuple[Draft, str]


@dataclass
class _Slot:
    """A sequence in the KV cache: `prompt` is what its first cells hold; `row` are the logits behind it if `entire`."""

    number: int
    row: Logits
    entire: bool = False
    prompt: list[int] = field(default_factory=list)
    draft: Draft | None = None

    def forget(self) -> None:
        self.prompt, self.entire = [], False

    def keep_row(self, row: Logits) -> None:
        self.row[:] = row  # memory that is there already: fresh pages cost more than the copy
        self.entire = True

    def reusable(self, prompt: Sequence[int]) -> int:
        """How many of a prompt's tokens need not be computed: all of an equal one, otherwise whole chunks."""
        if self.entire and self.prompt == prompt:
            return len(prompt)
        common = 0
        for one, other in zip(self.prompt, prompt, strict=False):
            if one != other:
                break
            common += 1
        return min(common, len(prompt) - 1) // CHUNK * CHUNK


@dataclass
class Totals:
    """What was computed so far: tokens, and seconds by the clock; `steps` are those that decoded."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    steps: int = 0


class Engine:
    """Decodes drafts in the slots of a context, which it owns. For one thread at a time."""

    def __init__(self, context: NativeContext | DepthContext, governor: Fixed | Governor) -> None:
        self.context = context
        self.governor = governor
        self.totals = Totals()
        self._waiting: deque[Draft] = deque()
        self._slots = [_Slot(number, np.zeros(context.vocabulary, np.float32)) for number in range(context.slots)]
        self._row = np.zeros(context.vocabulary, np.float32)  # one to change, while the slot's is kept
        self._entering: _Slot | None = None  # its prompt is being computed
        self._active: list[Draft] = []  # by slot; they decode together only where there is no gap
        self._ahead: deque[tuple[Fed, Logits]] = deque()  # of a sequence alone: guesses, and the rows behind them
        self._decode_next = False
        self._settled = True  # False while it works, and after an interrupt or an error in the middle of that

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._active or self._entering)

    @property
    def active(self) -> int:
        return len(self._active) + (self._entering is not None)

    def add(self, draft: Draft) -> None:
        self._settle()
        self._waiting.append(draft)

    def cancel(self, *drafts: Draft) -> list[Piece]:
        """Ends drafts wherever they are; returns the texts that were held back."""
        self._settle()
        self._settled = False
        for draft in drafts:
            if draft in self._waiting:
                self._waiting.remove(draft)
            if self._entering and self._entering.draft is draft:
                self._entering.draft = None
                self._entering = None
        rests = [(draft, draft.stop()) for draft in drafts]
        self._leave()
        self._settled = True
        return rests

    def cancel_all(self) -> None:
        self.cancel(*self._all())

    def close(self) -> None:
        """Frees the context. Texts that have not ended do so here: their samplers and rows would keep the model."""
        self._settled = False
        self._ahead.clear()
        for draft in self._all():
            draft.stop()
        self.context.close()

    def _all(self) -> list[Draft]:
        return [*self._waiting, *(slot.draft for slot in self._slots if slot.draft)]

    def reset(self) -> None:
        """Drops everything, the cache too. It can be interrupted anywhere, and is then done again."""
        self._settled = False
        self._waiting.clear()
        self._ahead.clear()
        self._entering = None
        self._active = []
        for slot in self._slots:
            slot.forget()
            slot.draft = None
        self.context.forget()
        self._settled = True

    def _settle(self) -> None:
        """After an interrupt or an error nothing is known of the state: everything begins anew."""
        if not self._settled:
            self.reset()

    def step(self) -> list[Piece]:
        """Computes up to `CHUNK` tokens of waiting prompts, or one token for each sequence that has its prompt.

        The two take turns, so that neither keeps the other waiting. Returns the texts to show now; a draft is through
        when it has its `completion`.
        """
        if not self._settled:
            self.reset()
        self._settled = False
        pieces: list[Piece] = []
        if self._ahead:
            pieces = self._go_ahead()
        if not pieces:
            is_decode = self._active and not self._waiting and not self._entering
            pieces = self._decode() if is_decode else self._prompts_or_decode()
        self._settled = True
        return pieces

    def _prompts_or_decode(self) -> list[Piece]:
        if not (self._waiting or self._entering):
            return []
        self._decode_next = not self._decode_next and bool(self._active)
        if self._decode_next or not self._admits():
            return self._decode()
        pieces: list[Piece] = []
        budget = CHUNK
        while self._admits() and budget > 0:
            budget -= self._enter(pieces)
        self._leave()
        return pieces

    def _admits(self) -> bool:
        return self._entering is not None or (bool(self._waiting) and len(self._active) < len(self._slots))

    def _enter(self, pieces: list[Piece]) -> int:
        """Goes on with the prompt that is entering, or begins the next; returns how many tokens were computed."""
        slot = self._entering
        if slot is None:
            following = self._waiting.popleft()
            text = following.begin()
            if following.completion:
                pieces.append((following, text))
                return 0
            slot = self._entering = next(slot for slot in self._slots if slot.draft is None)
            slot.draft = following
            following.slot = slot.number
            self._reuse(slot, following)
        assert slot.draft
        draft = slot.draft
        self.governor.look()
        started = perf_counter()
        computed = 0 if slot.entire else self._compute(slot, draft)
        seconds = perf_counter() - started
        draft.timing.prompt_computed += computed
        draft.timing.prompt_seconds += seconds
        self.totals.prompt_tokens += computed
        self.totals.prompt_seconds += seconds
        if slot.entire:
            self._entering = None
            self._active = [slot.draft for slot in self._slots if slot.draft]
            draft.began_at = self.totals.decode_seconds
            if not computed:
                self._row[:] = slot.row
            row = self.context.logits(1)[0] if computed else self._row
            pieces.append((draft, draft.advance(row[: draft.real_vocabulary])))
        return computed

    def _reuse(self, slot: _Slot, draft: Draft) -> None:
        """Brings to a slot what other prompts have in common with this one, if they have anything."""
        prompt = draft.request.prompt
        best = max(self._slots, key=lambda other: (other.reusable(prompt), other is slot))
        kept = 0 if draft.request.scores_prompt else best.reusable(prompt)
        if best is not slot and kept:
            self.context.copy(best.number, slot.number)
            slot.keep_row(best.row)
        slot.entire = kept == len(prompt)
        slot.prompt = list(prompt[:kept])
        self.context.keep(kept, slot.number)

    def _compute(self, slot: _Slot, draft: Draft) -> int:
        """Decodes the next chunk of a slot's prompt; behind the last one the slot has its logits."""
        prompt, begin = draft.request.prompt, len(slot.prompt)
        chunk = prompt[begin : begin + CHUNK]
        if draft.request.scores_prompt:
            self._score(slot, draft, chunk, begin)
        if self.context.threads != self.governor.threads:
            self.context.set_threads(self.governor.threads)
        is_last = begin + len(chunk) == len(prompt)
        self.context.decode(chunk, begin, slot.number, None if is_last else len(chunk))
        slot.prompt.extend(chunk)
        if is_last:
            slot.keep_row(self.context.logits(1)[0])
        return len(chunk)

    def _score(self, slot: _Slot, draft: Draft, chunk: Sequence[int], begin: int) -> None:
        """The log-probabilities of a chunk's tokens. It is decoded once more behind this: the last bits of a row
        depend on how many are scored with it."""
        prompt, count = draft.request.prompt, draft.request.logprobs
        assert count is not None
        if begin == 0:
            draft.prompt_logprobs.append(TokenLogprob(prompt[0], None))
        self.context.decode(chunk, begin, slot.number, 0)
        following = prompt[begin + 1 : begin + len(chunk) + 1]
        rows = self.context.logits(len(chunk))[:, : draft.real_vocabulary]
        draft.prompt_logprobs += [token_logprob(row, token, count) for row, token in zip(rows, following, strict=False)]
        self.context.keep(begin, slot.number)

    def _decode(self) -> list[Piece]:
        """One token for each active sequence; where it is one alone, those that can be guessed are fed with it."""
        # A decode leaves nothing of Python in the caches, so what is done here between two of them costs several times
        # as much as it seems to: it is kept short, and what can be told later is counted at the end.
        drafts, governor, context = self._active, self.governor, self.context
        if context.threads != governor.threads:
            context.set_threads(governor.threads)
        started = perf_counter()
        guesses = drafts[0].guesses(context.positions) if len(drafts) == 1 and drafts[0].request.lookup else ()
        rows = context.decode_each([*drafts, *guesses] if guesses else drafts)
        governor.look(context.threads, perf_counter() - started)
        if guesses:
            self._ahead.extend(zip(guesses, rows[1:], strict=False))
        pieces = []
        through = False
        for index, draft in enumerate(drafts):
            draft.next_position += 1
            pieces.append((draft, draft.advance(rows[index])))
            through = through or draft.completion is not None
        totals = self.totals
        totals.decode_tokens += len(drafts)
        totals.decode_seconds += perf_counter() - started
        totals.steps += 1
        if through:
            self._leave()
        return pieces

    def _go_ahead(self) -> list[Piece]:
        """One token by a row that is there already; none where the last one is another than was guessed."""
        started = perf_counter()
        (draft,) = self._active
        guess, row = self._ahead.popleft()
        if draft.token != guess.token:
            self._ahead.clear()
            self.context.keep(draft.next_position, draft.slot)
            self.totals.decode_seconds += perf_counter() - started
            return []
        draft.next_position += 1
        piece = draft, draft.advance(row)
        self.totals.decode_tokens += 1
        self.totals.decode_seconds += perf_counter() - started
        if draft.completion:
            self._leave()
        return [piece]

    def _leave(self) -> None:
        """Frees the slots of finished drafts, and closes gaps between the others unless somebody waits for them."""
        finished = [draft for draft in self._active if draft.completion]
        for draft in finished:
            draft.timing.decode_seconds = self.totals.decode_seconds - draft.began_at
            slot = self._slots[draft.slot]
            slot.draft = None
            self.context.keep(len(slot.prompt), slot.number)  # what was written is not reused
        if not finished:
            return
        self._ahead.clear()
        self._active = [draft for draft in self._active if not draft.completion]
        if self._waiting or self._entering:
            return
        for free in self._slots[: len(self._active)]:
            if free.draft is None:
                moved = self._active.pop()
                last = self._slots[moved.slot]
                self.context.copy(last.number, free.number)
                free.keep_row(last.row)
                free.prompt, free.entire, free.draft = list(last.prompt), last.entire, moved
                last.draft, moved.slot = None, free.number
                self._active.insert(free.number, moved)
