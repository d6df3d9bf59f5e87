"""How many threads decode: a fixed number, or what a governor finds best at the moment.

A token takes a hundred barriers. When another process takes a core from one of two threads for a time slice, the other
waits at the next barrier for all of it, so that two threads beside a busy neighbour are slower than one alone. How much
so can not be known beforehand, only measured: every now and then the governor tries another number for a few steps, and
keeps it where it was faster. It decides nothing but speed; a text does not depend on the number of threads.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dgpt2_quant.quantize.cores import usable_cores
from dgpt2_quant.quantize.errors import UsageError

from .sampling import whole

MOST_THREADS = 512

_SHORTEST, _LONGEST = 0.05, 0.8  # seconds from one trial to the next; the longest bounds how soon it sees a load end
_TRIAL = 0.004  # seconds that a trial takes at least,
_TRIAL_STEPS = 3  # and steps
_WINDOW = 0.02  # seconds of steps that a trial is compared with; and in which a collapse is noticed
_BETTER = 0.95  # of the time a step took before: so much faster a trial has to be
_COLLAPSED = 1.5  # times what steps took: reason to look for another number at once
_FRESH = 0.5  # seconds: what steps of as many rows took longer ago does not tell what they take now


class Fixed:
    """Always the same number."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def observe(self, rows: int, seconds: float) -> None:
        """Nothing to learn."""


@dataclass
class _Pace:
    """Of steps with one number of rows: what they usually take, the window of the latest, and when that one was."""

    usual: float | None = None  # seconds, at the number of threads that is kept, of earlier windows
    steps: int = 0
    seconds: float = 0.0
    last: float = 0.0


class Governor:
    """`threads` is the number to use for the next step; `observe` tells it how long a step took.

    It climbs: a trial is one number up or down (a quarter, where there are many), by turns, `most` at the most. Between
    trials lies a pause that doubles while nothing changes. `clock` is for tests.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.threads = self._most = most
        self._clock = clock
        self._rows = 0
        self._pace = _Pace()
        self._paces = {0: self._pace}  # by rows: only steps of equally many can be compared
        self._kept: int | None = None  # the number to go back to, during a trial
        self._tried: set[int] = set()  # rows of the trial's steps
        self._steps, self._seconds, self._expected = 0, 0.0, 0.0  # of the trial
        self._up = False
        self._pause = _SHORTEST
        self._next = clock() + _SHORTEST

    def observe(self, rows: int, seconds: float) -> None:
        """Called behind each step with its rows and its duration in seconds."""
        if self._most == 1:
            return
        now = self._clock()
        if rows != self._rows:
            self._turn_to(rows, now)
        self._pace.last = now
        if self._kept is not None:
            self._judge(seconds)
            return
        pace = self._pace
        pace.steps += 1
        pace.seconds += seconds
        if pace.seconds >= _WINDOW and pace.steps >= _TRIAL_STEPS:
            self._look(pace)

    def _turn_to(self, rows: int, now: float) -> None:
        """Takes up what is known of steps with so many rows; a trial that can not be compared with them is off."""
        pace = self._paces.get(rows)
        if pace is None or now - pace.last > _FRESH:
            pace = self._paces[rows] = _Pace()
        self._rows, self._pace = rows, pace
        if self._kept is not None and pace.usual is None:
            self.threads, self._kept = self._kept, None

    def _look(self, pace: _Pace) -> None:
        """At the end of a window: is it time for a trial?"""
        now, step = self._clock(), pace.seconds / pace.steps
        collapsed = pace.usual is not None and step > _COLLAPSED * pace.usual
        if collapsed:
            self._up, self._pause = False, _SHORTEST
        # a slow change is the growing context
        pace.usual = step if pace.usual is None or collapsed else 0.7 * pace.usual + 0.3 * step
        pace.steps, pace.seconds = 0, 0.0
        if collapsed or now >= self._next:
            self._kept = self.threads
            self.threads = self._neighbour()
            self._tried.clear()
            self._steps, self._seconds, self._expected = 0, 0.0, 0.0

    def _neighbour(self) -> int:
        """One up or down; the other way at an end."""
        distance = max(1, self.threads // 4)
        if self.threads == 1 or (self._up and self.threads < self._most):
            return min(self._most, self.threads + distance)
        return max(1, self.threads - distance)

    def _judge(self, seconds: float) -> None:
        """In a trial: keeps the new number if it is faster, goes back if it is not, or waits for more steps."""
        usual = self._pace.usual
        assert self._kept is not None
        assert usual is not None
        self._tried.add(self._rows)
        self._steps += 1
        self._seconds += seconds
        self._expected += usual
        hopeless = seconds > 3 * usual
        if not hopeless and (self._steps < _TRIAL_STEPS or self._seconds < _TRIAL):
            return
        if self._seconds < _BETTER * self._expected:
            faster = self._seconds / self._expected
            tried = ((rows, self._paces[rows]) for rows in self._tried)
            self._paces = {rows: _Pace(pace.usual and faster * pace.usual, last=pace.last) for rows, pace in tried}
            self._pace, self._pause = self._paces[self._rows], _SHORTEST
            self._up = self.threads > self._kept  # on in this direction
        else:
            self.threads = self._kept
            self._up = not self._up
            self._pause = min(2 * self._pause, _LONGEST)
        self._kept = None
        self._next = self._clock() + self._pause


def check_threads(threads: int | Literal["auto"]) -> int | Literal["auto"]:
    """A number as Python's, or "auto". Raises `UsageError` for what is neither a possible number nor that."""
    if threads == "auto":
        return "auto"
    number = whole(threads)
    if number is None or not 1 <= number <= MOST_THREADS:
        raise UsageError(f"{threads} threads were asked for; 1 to {MOST_THREADS} are possible, or auto")
    return number


def make_governor(threads: int | Literal["auto"]) -> Fixed | Governor:
    """For a fixed number, or for "auto"."""
    return Governor(min(usable_cores(), MOST_THREADS)) if threads == "auto" else Fixed(threads)
