"""The number of usable CPU cores, and how long OpenMP threads spin before they sleep."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import floor
from pathlib import Path

from .control_groups import GROUPS, MOUNTED, control_groups
from .errors import UsageError

# Iterations of OpenMP's wait loop before a thread sleeps, about 30 ns each on a Zen 3. With libgomp's default a thread
# spins for milliseconds while another has lost its core. With this value it yields within a time slice, but is still
# awake for the next token: Python needs some tenths of a millisecond between two decodes, and waking a thread on a
# sleeping core takes long.
_SPINS = "20000"


def usable_cores() -> int:
    """The number of cores that this process may use, at least 1, by CPU affinity and the control group's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = quota_cores()
    return cores if quota is None else max(1, min(cores, floor(quota)))


def quota_cores(groups: Path = GROUPS, mounted: Path = MOUNTED) -> float | None:
    """The CPU quota of the control groups in cores; None for no limit, or if unknown.

    Reads version 2 (`cpu.max`) and version 1 (`cpu.cfs_quota_us`) of the group and its parents.
    """
    limits = map(_limit, control_groups("cpu", groups, mounted))
    return min((limit for limit in limits if limit), default=None)


def _limit(folder: Path) -> float | None:
    """The quota of one control group in cores; None for no limit."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text("ascii").split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text("ascii")
            period = (folder / "cpu.cfs_period_us").read_text("ascii")
        limit = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or `max`
        return None
    return limit if limit > 0 else None


@contextmanager
def bounded_spin() -> Iterator[None]:
    """Sets GOMP_SPINCOUNT while a library with OpenMP is loaded, so that its threads soon yield a busy core.

    libgomp reads the variable once, when it is loaded. A value set by the user stays. The environment is restored
    afterwards, so that child processes do not inherit it.
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
    """`threads`, or the number of usable cores for None. Raises `UsageError` for less than 1."""
    if threads is None:
        return usable_cores()
    if threads < 1:
        raise UsageError(f"`threads` must be at least 1, not {threads}")
    return threads
