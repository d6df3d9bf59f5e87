"""Long calls of C that make something, which is to be freed."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from dgpt2_quant.quantize.interrupts import interrupts_wait

from .huge_pages import huge_pages_for_new_memory

pending: list[BaseException] = []  # what was raised in a callback from C, to be raised when C has returned


def made(make: Callable[[], Any], free: Callable[[Any], None], *, huge_pages: bool) -> Any:
    """What `make` returns; it is freed again if a signal's handler raised something meanwhile."""
    handle = None
    try:
        with interrupts_wait(), huge_pages_for_new_memory() if huge_pages else nullcontext():
            handle = make()
        if pending:
            raise pending.pop()
    except BaseException:
        if handle:
            free(handle)
        raise
    return handle
