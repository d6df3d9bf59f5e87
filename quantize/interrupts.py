"""Ctrl-C while C works for long, or locks are taken."""

import _signal  # type: ignore[import-not-found]  # `signal` wraps it in enums that take many times as long
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_VALID = sorted(_signal.valid_signals())


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Python's handlers of signals are called behind the block, and not before.

    C calls back to log, and Python would call a handler at the beginning of that, where ctypes swallows what it raises.
    """
    if threading.current_thread() is not threading.main_thread():  # only there are handlers called
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    over = False
    handlers: dict[int, Any] = {n: handler for n in _VALID if callable(handler := _signal.getsignal(n))}

    def note(number: int, frame: FrameType | None) -> None:
        if over:  # a handler that raised has kept others from being put back
            handlers[number](number, frame)
        else:
            arrived.append((number, frame))

    try:
        for number in handlers:
            _signal.signal(number, note)
        yield
    finally:
        over = True
        for number, handler in handlers.items():
            _signal.signal(number, handler)
        for number, frame in arrived:
            handlers[number](number, frame)
