"""How many threads make sense here, and how long they may wait for one another."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import floor
from pathlib import Path

from .errors import UsageError

# Turns of OpenMP's waiting loop before it sleeps, some 30 ns each on a Zen 3. libgomp's own number makes a thread spin
# for milliseconds while the other one has lost its core. With this one it gives way within a time slice, and yet is
# still awake when the next token comes: between two decodes Python takes some tenths of a millisecond, and waking a
# thread on a core that has gone to sleep takes long.
_SPINS = "20000"


def usable_cores() -> int:
    """The cores that this process may use, at least one: by its affinity, and by its control group's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = quota_cores()
    return cores if quota is None else max(1, min(cores, floor(quota)))


def quota_cores(groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> float | None:
    """The CPU time per time that the control groups allow this process; None for no limit, or where unknown.

    Version 2 (`cpu.max`) and version 1 (`cpu.cfs_quota_us`), the group's own and those above it (`man 7 cgroups`).
    """
    limits = []
    try:
        lines = groups.read_text("utf-8").splitlines()
    except (OSError, ValueError):
        return None
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = mounted / controllers if controllers else mounted
        own = top / path.lstrip("/")
        for folder in (own, *own.parents):
            limits.append(_limit(folder))
            if folder == top:
                break
    return min((limit for limit in limits if limit), default=None)


def _limit(folder: Path) -> float | None:
    """What one control group allows; None for everything."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text("ascii").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text("ascii")
            period = (folder / "cpu.cfs_period_us").read_text("ascii")
        limit = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # not there, or `max`
        return None
    return limit if limit > 0 else None


@contextmanager
def bounded_spin() -> Iterator[None]:
    """For loading a library with OpenMP: its threads then give way soon when they wait for one that lost its core.

    libgomp reads the variable once, when it is loaded; what the user has set stays. The environment is as before
    behind it, so children do not inherit it.
    """
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    if any(name in os.environ for name in names):
        yield
        return
    os.environ[names[0]] = _SPINS
    try:
        yield
    finally:
        os.environ.pop(names[0], None)


def threads_or_all(threads: int | None) -> int:
    """The number that was asked for, or as many as there are usable cores. Raises `UsageError` for less than one."""
    if threads is None:
        return usable_cores()
    if threads < 1:
        raise UsageError(f"{threads} threads were asked for; at least 1 is needed")
    return threads
