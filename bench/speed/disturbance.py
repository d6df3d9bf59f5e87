"""Detects disturbed measurements: threads that waited for a core, or CPU time used by other programs.

Linux reports both. `/proc/self/task/*/schedstat` has the nanoseconds for which each thread was ready but not running
(`run_delay`; Documentation/scheduler/sched-stats.rst), which is exact for a block of any length. `/proc/stat` has the
CPU time of all processes and the hypervisor (steal), in ticks of 10 ms. That is coarse for a short block, so an error
of one tick is allowed, and blocks are added up. Where neither exists, as on macOS, the result is unknown.
"""

import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

# Share of the time that our threads ask for. They wait for each other at each matrix product, so time that one thread
# loses can be lost for all. Speeds of undisturbed rounds differ by about a twentieth.
WAITED = 0.05
# Share of the machine's CPU time. Other programs slow ours without taking its cores: memory bandwidth and clock rate
# are shared. An idle desktop uses a few hundredths.
OTHERS = 0.10

_PROC = Path("/proc")


@dataclass(frozen=True)
class Usage:
    """CPU seconds of a block: `asked` by our threads (wall time x threads), time they `waited` for a core, `available`
    on the machine, and used by `others`. None if the system does not report it."""

    asked: float
    waited: float | None
    available: float
    others: float | None

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.asked + other.asked,
            _sum(self.waited, other.waited),
            self.available + other.available,
            _sum(self.others, other.others),
        )

    @property
    def disturbed(self) -> bool | None:
        """Whether a share is above its limit; None if neither is known."""
        found = []
        if self.waited is not None:
            found.append(self.waited > WAITED * self.asked)
        if self.others is not None:
            error = (os.cpu_count() or 1) / os.sysconf("SC_CLK_TCK")  # a tick of each core
            found.append(self.others - error > OTHERS * self.available)
        return any(found) if found else None


class Watch:
    """Watches this process, and children that end, in a `with` block; sets `usage` after it."""

    def __init__(self, threads: int, proc: Path = _PROC) -> None:
        """`threads` is the number of threads that compute in the block."""
        self.usage = Usage(0.0, None, 0.0, None)
        self._threads = threads
        self._proc = proc

    def __enter__(self) -> Self:
        self._before = _waits(self._proc), _busy(self._proc), own_cpu_seconds(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.usage = self.so_far()

    def so_far(self) -> Usage:
        """The usage from the start of the block until now."""
        waits, busy, own, clock = self._before
        seconds = time.perf_counter() - clock
        own_now, busy_now, waits_now = own_cpu_seconds(), _busy(self._proc), _waits(self._proc)
        waited = others = None
        if waits is not None and waits_now is not None:  # a thread that started in the block had not waited before
            waited = sum(wait - waits.get(thread, 0.0) for thread, wait in waits_now.items())
        if busy is not None and busy_now is not None:
            others = (busy_now - busy) - (own_now - own)
        return Usage(seconds * self._threads, waited, seconds * (os.cpu_count() or 1), others)


def any_disturbed(usages: Sequence[Usage]) -> bool | None:
    """Whether one of several blocks was disturbed, or their sum; None if unknown."""
    if not usages:
        return None
    total = usages[0]
    for usage in usages[1:]:
        total += usage
    found = [usage.disturbed for usage in (*usages, total)]
    return True if True in found else None if None in found else False


def load_average() -> str:
    """The machine's load of the last minute as " (load 1.2 on 2 cores)", empty if unknown."""
    return f" (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)" if hasattr(os, "getloadavg") else ""


def _sum(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one + other


def _waits(proc: Path) -> dict[str, float] | None:
    """Seconds that each thread of this process has waited for a core so far; None if unknown."""
    found, ran = {}, 0
    try:
        for thread in os.listdir(proc / "self" / "task"):  # noqa: PTH208  Path is ten times slower, and this is timed
            try:
                with open(f"{proc}/self/task/{thread}/schedstat", encoding="ascii") as file:  # noqa: PTH123
                    ran_for, waited = map(int, file.readline().split()[:2])
            except (FileNotFoundError, ProcessLookupError):
                if os.path.exists(f"{proc}/self/task/{thread}"):  # noqa: PTH110
                    return None  # a kernel without CONFIG_SCHED_INFO
                continue  # the thread has just ended
            ran += ran_for
            found[thread] = waited / 1e9
    except (OSError, ValueError):
        return None
    return found if ran else None  # all zeros: the kernel has the file, but does not count


def _busy(proc: Path) -> float | None:
    """CPU seconds used by all processes, steal included (`man 5 proc_stat`); None if unknown."""
    try:
        with open(f"{proc}/stat", encoding="ascii") as file:  # noqa: PTH123
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def own_cpu_seconds() -> float:
    """CPU seconds of this process, and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
