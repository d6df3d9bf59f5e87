"""The decode loop of several sequences in one context: admission, chunked prompts, prefix reuse, one token per step.

llama.cpp's kernels for one row and for several differ in the last bits, which can change a text whose logits are nearly
equal. A sequence that is alone in its step gets the same bits whatever was computed before, because

- a prompt is cut at multiples of `CHUNK` from its beginning, and each chunk is decoded separately; only whole chunks of
  an earlier prompt are reused (or all of an equal prompt), and a new decode would give the same bits (slot.py has the
  rule for prompts that are scored);
- the cells of a sequence are in order from the beginning of its own stream of the KV cache, the slot.

Sequences that decode together share matrix products of several rows, so their texts depend on their number.
"""

from collections import deque
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from dgpt2_quant.runtime.native.batch_token import BatchToken, Logits
from dgpt2_quant.runtime.native.context import NativeContext
from dgpt2_quant.runtime.native.depth_context import DepthContext

from .sequence import Sequence, token_logprob
from .slot import CHUNK, Slot
from .threads import Fixed, Governor

Piece = tuple[Sequence, str]  # a sequence, and its text to show now


@dataclass
class Totals:
    """What an engine has computed: tokens, and wall-clock seconds.

    `cached_tokens` of prompts were reused. Each of the `prompt_steps` computed a chunk of a prompt, and each of the
    `steps` a token of each active sequence; both are calls of `llama_decode`.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    prompt_seconds: float = 0.0
    prompt_steps: int = 0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    steps: int = 0


class Engine:
    """Decodes sequences in the slots of a context, which it owns. One thread may use it at a time."""

    def __init__(self, context: NativeContext | DepthContext, governor: Fixed | Governor) -> None:
        self.context = context
        self.governor = governor
        self.totals = Totals()
        self._waiting: deque[Sequence] = deque()
        self._slots = [Slot(number, np.zeros(context.vocabulary, np.float32)) for number in range(context.slots)]
        self._row = np.zeros(context.vocabulary, np.float32)  # a copy to change: the slot keeps its own
        self._entering: Slot | None = None  # the slot whose prompt is being computed
        self._active: list[Sequence] = []  # by slot; llama.cpp computes them together only if there is no gap
        self._drafted: deque[tuple[BatchToken, Logits]] = deque()  # draft tokens, and the logits after each
        self._decode_next = False
        self._settled = True  # False during a step, and after an interrupt or an error in one

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._active or self._entering)

    @property
    def active(self) -> int:
        return len(self._active) + (self._entering is not None)

    def add(self, sequence: Sequence) -> None:
        self._settle()
        self._waiting.append(sequence)

    def cancel(self, *sequences: Sequence) -> list[Piece]:
        """Ends sequences in any state; returns the texts that were held back."""
        self._settle()
        self._settled = False
        for sequence in sequences:
            if sequence in self._waiting:
                self._waiting.remove(sequence)
            if self._entering and self._entering.sequence is sequence:
                self._entering.sequence = None
                self._entering = None
        rests = [(sequence, sequence.stop()) for sequence in sequences]
        self._leave()
        self._settled = True
        return rests

    def cancel_all(self) -> None:
        self.cancel(*self._all())

    def close(self) -> None:
        """Frees the context. Ends all texts: their samplers and logits would keep the model in memory."""
        self._settled = False
        self._drafted.clear()
        for sequence in self._all():
            sequence.stop()
        self.context.close()

    def _all(self) -> list[Sequence]:
        return [*self._waiting, *(slot.sequence for slot in self._slots if slot.sequence)]

    def reset(self) -> None:
        """Drops all sequences and the cache. After an interrupt it runs again."""
        self._settled = False
        self._waiting.clear()
        self._drafted.clear()
        self._entering = None
        self._active = []
        for slot in self._slots:
            slot.forget()
            slot.sequence = None
        self.context.forget()
        self._settled = True

    def _settle(self) -> None:
        """Resets the engine after an interrupt or an error, which leave its state unknown."""
        if not self._settled:
            self.reset()

    def step(self) -> list[Piece]:
        """Computes up to `CHUNK` tokens of waiting prompts, or one token for each active sequence, in turns.

        Returns the texts to show now. A sequence has ended when it has a `completion`.
        """
        if not self._settled:
            self.reset()
        self._settled = False
        pieces: list[Piece] = []
        if self._drafted:
            pieces = self._verify()
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
        """Computes the next chunk of the entering prompt, or of the next one; returns the number of tokens.

        Scored tokens count twice: their logits take as long as the rest of the network.
        """
        slot = self._entering
        if slot is None:
            following = self._waiting.popleft()
            text = following.begin()
            if following.completion:
                pieces.append((following, text))
                return 0
            slot = self._entering = next(slot for slot in self._slots if slot.sequence is None)
            slot.sequence = following
            following.slot = slot.number
            self._reuse(slot, following)
        assert slot.sequence
        sequence = slot.sequence
        self.governor.look()
        started = perf_counter()
        computed = 0 if slot.entire else self._compute(slot, sequence)
        seconds = perf_counter() - started
        sequence.timing.prompt_computed += computed
        sequence.timing.prompt_seconds += seconds
        self.totals.prompt_tokens += computed
        self.totals.prompt_seconds += seconds
        if slot.entire:
            self._entering = None
            self._active = [slot.sequence for slot in self._slots if slot.sequence]
            sequence.began_at = self.totals.decode_seconds
            sequence.begin_after(len(slot.prompt))
            self._row[:] = slot.row
            pieces.append((sequence, sequence.advance(self._row[: sequence.real_vocabulary])))
        return 2 * computed if sequence.request.scores_prompt else computed

    def _reuse(self, slot: Slot, sequence: Sequence) -> None:
        """Copies the longest reusable prefix of this prompt from any slot to its own."""
        request = sequence.request
        best = max(self._slots, key=lambda other: (other.reusable(request), other is slot))
        kept = best.reusable(request)
        if best is not slot and kept:
            self.context.copy(best.number, slot.number)
        slot.take(best, kept, request)
        self.context.keep(kept, slot.number)
        sequence.timing.prompt_cached = kept
        self.totals.cached_tokens += kept
        if request.scores_prompt:
            sequence.prompt_logprobs = slot.scores

    def _compute(self, slot: Slot, sequence: Sequence) -> int:
        """Decodes the next chunk of a slot's prompt; after the last chunk the slot has the logits at the chosen cut."""
        request = sequence.request
        if slot.step_back(request):
            self.context.keep(len(slot.prompt), slot.number)
        begin = len(slot.prompt)
        prompt, chunk = request.prompt, slot.next_chunk(request, others=bool(self._active))
        if self.context.threads != self.governor.threads:
            self.context.set_threads(self.governor.threads)
        end = begin + len(chunk)
        first = request.cuts[0].length
        scored = len(chunk) if request.scores_prompt else max(0, end - max(begin, first - 1))
        self.context.decode(chunk, begin, slot.number, len(chunk) - scored)
        self.totals.prompt_steps += 1
        slot.prompt.extend(chunk)
        if scored:
            rows = self.context.logits(scored)
            if request.scores_prompt:
                for row, token in zip(rows, prompt[begin + 1 : end + 1], strict=False):
                    slot.scores.append(token_logprob(row[: sequence.real_vocabulary], token, slot.top))
            for length, row in enumerate(rows, end - scored + 1):
                if length >= first and sequence.choice.improves(length, row[: sequence.real_vocabulary]):
                    slot.row[:] = row  # into existing memory: new pages cost more than the copy
        if end == len(prompt):
            slot.end_at(sequence.choice.best.length, request)
            if len(slot.prompt) < end:
                self.context.keep(len(slot.prompt), slot.number)
        return len(chunk)

    def _decode(self) -> list[Piece]:
        """Decodes one token for each active sequence; for a single one also its draft tokens."""
        # A decode evicts Python from the CPU caches, so code between two decodes costs several times as much as
        # elsewhere: it is short, and the counting comes last.
        sequences, governor, context = self._active, self.governor, self.context
        if context.threads != governor.threads:
            context.set_threads(governor.threads)
        started = perf_counter()
        drafted = (
            sequences[0].draft_tokens(context.positions) if len(sequences) == 1 and sequences[0].request.lookup else ()
        )
        rows = context.decode_each([*sequences, *drafted] if drafted else sequences)
        governor.look(context.threads, perf_counter() - started)
        if drafted:
            self._drafted.extend(zip(drafted, rows[1:], strict=False))
        pieces = []
        finished = False
        for index, sequence in enumerate(sequences):
            sequence.next_position += 1
            pieces.append((sequence, sequence.advance(rows[index])))
            finished = finished or sequence.completion is not None
        totals = self.totals
        totals.decode_tokens += len(sequences)
        totals.decode_seconds += perf_counter() - started
        totals.steps += 1
        if finished:
            self._leave()
        return pieces

    def _verify(self) -> list[Piece]:
        """Samples a token from the logits after a draft token; none if the last token was not the draft."""
        started = perf_counter()
        (sequence,) = self._active
        drafted, row = self._drafted.popleft()
        if sequence.token != drafted.token:
            self._drafted.clear()
            self.context.keep(sequence.next_position, sequence.slot)
            self.totals.decode_seconds += perf_counter() - started
            return []
        sequence.next_position += 1
        piece = sequence, sequence.advance(row)
        self.totals.decode_tokens += 1
        self.totals.decode_seconds += perf_counter() - started
        if sequence.completion:
            self._leave()
        return [piece]

    def _leave(self) -> None:
        """Frees the slots of finished sequences. Closes the gaps between the others, unless new ones will fill them."""
        finished = [sequence for sequence in self._active if sequence.completion]
        for sequence in finished:
            sequence.timing.decode_seconds = self.totals.decode_seconds - sequence.began_at
            slot = self._slots[sequence.slot]
            slot.leave()
            if sequence.error:
                slot.forget()
            self.context.keep(len(slot.prompt), slot.number)  # only prompts are reused
        if not finished:
            return
        self._drafted.clear()
        self._active = [sequence for sequence in self._active if not sequence.completion]
        if self._waiting or self._entering:
            return
        for free in self._slots[: len(self._active)]:
            if free.sequence is None:
                moved = self._active.pop()
                last = self._slots[moved.slot]
                self.context.copy(last.number, free.number)
                free.become(last)
                moved.slot = free.number
                self._active.insert(free.number, moved)
