"""Iterators over the events of one text (`Model.stream`) or of several (`Model.batch`)."""

import threading
from collections import abc
from collections.abc import Callable, Generator, Iterator

from dgpt2_quant.core.errors import RuntimeFailure

from .completion import Completion, Event, Timing, total_timing
from .lifecycle import Closing
from .sequence import Sequence


class _Events(Closing, Iterator[Event]):
    """The events of some sequences. Several threads may read; each event goes to one of them."""

    def __init__(
        self, sequences: abc.Sequence[Sequence], events: Generator[Event, None, None], end: Callable[[], None]
    ) -> None:
        """`end` removes the sequences from the engine."""
        self._sequences = sequences
        self._events = events
        self._end = end
        self._reading = threading.RLock()

    def __next__(self) -> Event:
        with self._reading:
            if self._is_computing():
                raise RuntimeFailure(
                    "a signal handler asked for the next event while it was being computed",
                    "Read a generation from one place.",
                )
            return next(self._events)

    def _is_computing(self) -> bool:
        """Whether a signal handler calls this in the middle of `__next__`."""
        return bool(self._events.gi_running)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Ends the texts; their completions have the text so far. Closing twice is fine."""
        with self._reading:
            if not self._is_computing():  # otherwise the engine drops the texts after this token
                self._events.close()
                self._end()
            for sequence in self._sequences:
                sequence.stop()


class Generation(_Events):
    """Iterate for the events of one text; each is a `str`. After the last one, `completion` is set.

    Starting another generation of the same model ends this one: they share the context. `seed` reproduces the text.
    """

    @property
    def seed(self) -> int:
        return self._sequences[0].request.seed

    @property
    def timing(self) -> Timing:
        """Counts and times so far."""
        return self._sequences[0].timing

    @property
    def completion(self) -> Completion | None:
        """The finished text; None before its end."""
        return self._sequences[0].completion


class Batch(_Events):
    """Iterate for the events of several texts that decode together; `event.number` is the number of its text.

    `seeds` reproduce the texts.
    """

    def __init__(
        self,
        sequences: abc.Sequence[Sequence],
        events: Generator[Event, None, None],
        end: Callable[[], None],
        turn: threading.RLock,
    ) -> None:
        super().__init__(sequences, events, end)
        self._turn = turn

    @property
    def seeds(self) -> list[int]:
        return [sequence.request.seed for sequence in self._sequences]

    @property
    def timing(self) -> Timing:
        """The sum of all texts' tokens, the longest decode time, and the first text's prompt."""
        return total_timing([sequence.timing for sequence in self._sequences])

    @property
    def completions(self) -> list[Completion | None]:
        """The finished texts by number; None for one that has not ended."""
        return [sequence.completion for sequence in self._sequences]

    def run(self) -> list[Completion]:
        """Runs to the end and returns all texts. Other calls of the model wait for it."""
        with self._turn:
            for _ in self:
                pass
        return [sequence.completion for sequence in self._sequences if sequence.completion]
