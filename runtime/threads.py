"""The number of threads that decode: fixed, or the cores that other processes leave free.

Threads meet at about a hundred barriers for each token. When another process takes a core from one of two threads for a
time slice, the other waits at the next barrier, so two threads next to a busy process are several times slower than
one. Therefore the governor reads after each step how many tasks the system runs, and uses the other cores. If none
remain, all threads together are mostly faster than one, because each gets its share of a core; but in some texts they
keep waiting for each other, so a step that stalls ends this for a while.

Only speed depends on it: a text does not depend on the number of threads.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from dgpt2_quant.core.cores import usable_cores
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime.sampling.settings import whole

MOST_THREADS = 512
MOST_AUTO = 16  # with more threads, barriers cost more than a thread's part of a token
_LOADAVG = Path("/proc/loadavg")  # proc(5): its fourth field is "tasks that can run/all tasks"
_EVERY = 0.004  # seconds between two looks, each of which takes about 10 microseconds
_STALE = 0.05  # seconds after which earlier looks no longer count
_WEIGHT = 0.3  # of a new look: two in a row change the number of threads, one does not
_STALL = 4.0  # times the shortest step of the text: a thread waited for another one that had lost its core
_CAUTION = 2.0  # seconds after a stall in which no core is shared


class Fixed:
    """Always the same number."""

    def __init__(self, threads: int) -> None:
        self.threads = self.most = threads

    def look(self, own: int = 1, seconds: float = 0.0) -> None:
        """Does nothing."""


class Governor:
    """`threads` is the number for the next step, at most `most`.

    `running` returns the number of runnable tasks of the machine, or None if unknown, in which case all cores are
    used. `cores` is the number of all cores of the machine: tasks may run on those that this process may not use.
    """

    def __init__(self, most: int, cores: int, running: Callable[[], int | None] | None = None) -> None:
        self.threads = self.most = most
        self._cores = cores
        self._running = running or _tasks_that_run()
        self._others = 0.0
        self._looked = self._stalled = -math.inf
        self._shortest = math.inf
        self.look()

    def look(self, own: int = 1, seconds: float = 0.0) -> None:
        """Updates `threads`: before a text, and after each step, which took `seconds` with `own` threads."""
        if self.most == 1:
            return
        now = time.perf_counter()
        if not seconds:
            self._shortest = math.inf
        elif seconds < self._shortest:
            self._shortest = seconds
        elif own > 1 and seconds > _STALL * self._shortest:
            self._stalled = self._looked = now
            self.threads = self._free()
            return
        since = now - self._looked
        if since < _EVERY:
            return
        running = self._running()
        self._looked = now
        if running is None:
            return
        others = max(0, running - own)
        self._others += (others - self._others) * (1 if since > _STALE else _WEIGHT)
        shares = self._others >= self._cores and now - self._stalled > _CAUTION
        self.threads = self.most if shares else self._free()

    def _free(self) -> int:
        """The cores that remain, at least one."""
        return max(1, min(self.most, self._cores - round(self._others)))


def check_threads(threads: object) -> int | Literal["auto"]:
    """The number as a Python integer, or "auto". Raises `UsageError`."""
    if isinstance(threads, str) and threads == "auto":
        return "auto"
    number = whole(threads)
    if number is None or not 1 <= number <= MOST_THREADS:
        raise UsageError(f'`threads` must be 1-{MOST_THREADS} or "auto", not {threads!r}')
    return number


def make_governor(threads: int | Literal["auto"]) -> Fixed | Governor:
    """The governor for a fixed number, or for "auto"."""
    if threads != "auto":
        return Fixed(threads)
    return Governor(min(usable_cores(), MOST_AUTO), os.cpu_count() or 1)


def _tasks_that_run() -> Callable[[], int | None]:
    """A function that reads it from Linux in a few microseconds; on other systems it returns None."""

    def running() -> int | None:
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int(_LOADAVG.read_bytes().split()[3].split(b"/")[0])
        return None

    return running
