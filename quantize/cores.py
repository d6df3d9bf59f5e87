"""How many threads make sense here."""

import os

from .errors import UsageError


def usable_cores() -> int:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def threads_or_all(threads: int | None) -> int:
    """The number that was asked for, or as many as there are usable cores. Raises `UsageError` for less than one."""
    if threads is None:
        return usable_cores()
    if threads < 1:
        raise UsageError(f"{threads} threads were asked for; at least 1 is needed")
    return threads
