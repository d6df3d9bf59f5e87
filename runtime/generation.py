"""Generations as iterators of text that know, when they are through, how they went."""

import threading
from collections.abc import Generator, Iterator, Sequence

from .draft import Completion, Draft, Timing, total_timing
from .engine import Piece


class Generation(Iterator[str]):
    """Iterate for the pieces of text as they come; afterwards `completion` is there. `seed` gives the text again.

    Starting a second generation of the same model ends this one: they share the context.
    """

    def __init__(self, draft: Draft, pieces: Generator[Piece, None, None]) -> None:
        self.seed = draft.request.seed
        self._draft = draft
        self._pieces = pieces

    @property
    def timing(self) -> Timing:
        """Counts and times so far."""
        return self._draft.timing

    @property
    def completion(self) -> Completion | None:
        """The finished text; None before its end."""
        return self._draft.completion

    def __next__(self) -> str:
        return next(self._pieces)[1]

    def close(self) -> None:
        """Ends the text here; closing twice is fine."""
        self._pieces.close()


class Batch(Iterator[tuple[int, str]]):
    """Several texts that decode together: iterate for (number, piece), in the order in which the pieces come.

    `completions` are those of the finished ones, by number; `seeds` give them again.
    """

    def __init__(self, drafts: Sequence[Draft], pieces: Generator[Piece, None, None], turn: threading.RLock) -> None:
        self.seeds = [draft.request.seed for draft in drafts]
        self._drafts = drafts
        self._pieces = pieces
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
        draft, text = next(self._pieces)
        return self._numbers[id(draft)], text

    def close(self) -> None:
        """Ends the texts here; closing twice is fine."""
        self._pieces.close()

    def run(self) -> list[Completion]:
        """Goes to the end and returns all texts; the model's other calls wait for it, or it for them."""
        with self._turn:
            for _ in self._pieces:
                pass
        return [draft.completion for draft in self._drafts if draft.completion]
