"""Ctrl-C, SIGTERM and SIGHUP: the program cleans up and exits with 128 plus the signal's number.

While a verb runs, they are exceptions, so that nothing half-written stays. Before and after it there is nothing to
clean up: the process exits at once. Python's own answer would be a traceback, and death by the signal.
"""

import atexit
import os
import signal
from types import FrameType
from typing import NoReturn

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ours: list[int] = []  # the others are ignored, as under nohup or in a background job, or somebody else's


def exit_on_signals() -> None:
    """For the start and the end of the program."""
    if not _ours:
        _ours.extend(number for number in _SIGNALS if signal.getsignal(number) in _DEFAULTS)
        # called last: after it the interpreter would restore the handlers that end the process by a signal
        atexit.register(_handle_by, signal.SIG_IGN)
    _handle_by(_exit)


def raise_on_signals() -> None:
    """For the time between: `KeyboardInterrupt` for Ctrl-C, `SystemExit` for the others, in the main thread."""
    _handle_by(_raise)


_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)


def _handle_by(handler: "signal._HANDLER") -> None:
    for number in _ours:
        signal.signal(number, handler)


def _exit(number: int, frame: FrameType | None) -> NoReturn:
    os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
