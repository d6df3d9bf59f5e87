"""Generations as iterators of text that know, when they are through, how they went."""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence

from dgpt2_quant.core.errors import RuntimeFailure

from .engine import Piece
from .lifecycle import Closing
from .sequence import Completion, Draft, Timing, total_timing


class _Pieces(Closing):
    """The pieces of some drafts. Several threads may read; each piece goes to one of them."""

    def __init__(self, drafts: Sequence[Draft], pieces: Generator[Piece, None, None], end: Callable[[], None]) -> None:
        """`end` takes the drafts from the engine, if they are there."""
        self._drafts = drafts
        self._pieces = pieces
        self._end = end
        self._reading = threading.RLock()

    def _next(self) -> Piece:
        with self._reading:
            if self._is_computing():
                raise RuntimeFailure(
                    "the next piece is being computed already, and a signal handler asked for it once more",
                    "Read a generation from one place.",
                )
            return next(self._pieces)

    def _is_computing(self) -> bool:
        """Whether this is called in the middle of `_next`, by a signal handler."""
        return bool(self._pieces.gi_running)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Ends the texts here; what they have is their completion. Closing twice is fine."""
        with self._reading:
            if not self._is_computing():  # otherwise the engine drops the texts after this token
                self._pieces.close()
                self._end()
            for draft in self._drafts:
                draft.stop()


class Generation(_Pieces, Iterator[str]):
    """Iterate for the pieces of text as they come; afterwards `completion` is there. `seed` gives the text again.

    Starting a second generation of the same model ends this one: they share the context.
    """

    def __init__(self, draft: Draft, pieces: Generator[Piece, None, None], end: Callable[[], None]) -> None:
        super().__init__([draft], pieces, end)
        self.seed = draft.request.seed
        self._draft = draft

    @property
    def timing(self) -> Timing:
        """Counts and times so far."""
        return self._draft.timing

    @property
    def completion(self) -> Completion | None:
        """The finished text; None before its end."""
        return self._draft.completion

    def __next__(self) -> str:
        return self._next()[1]


class Batch(_Pieces, Iterator[tuple[int, str]]):
    """Several texts that decode together: iterate for (number, piece), in the order in which the pieces come.

    `completions` are those of the finished ones, by number; `seeds` give them again.
    """

    def __init__(
        self,
        drafts: Sequence[Draft],
        pieces: Generator[Piece, None, None],
        end: Callable[[], None],
        turn: threading.RLock,
    ) -> None:
        super().__init__(drafts, pieces, end)
        self.seeds = [draft.request.seed for draft in drafts]
        self._turn = turn
        self._numbers = {id(draft): number for number, draft in enumerate(drafts)}

    @property
    def timing(self) -> Timing:
        """Of all texts together: tokens in sum, the time of the longest, and the first one's prompt."""
        return total_timing([draft.timing for draft in self._drafts])

    @property
    def completions(self) -> list[Completion | None]:
        """The finished texts by number; None for one that is not through."""
        return [draft.completion for draft in self._drafts]

    def __next__(self) -> tuple[int, str]:
        draft, text = self._next()
        return self._numbers[id(draft)], text

    def run(self) -> list[Completion]:
        """Goes to the end and returns all texts; the model's other calls wait for it, or it for them."""
        with self._turn:
            for _ in self:
                pass
        return [draft.completion for draft in self._drafts if draft.completion]
