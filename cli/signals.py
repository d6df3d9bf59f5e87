"""Handles Ctrl-C, SIGTERM and SIGHUP: the program cleans up and exits with 128 plus the signal's number.

While a verb runs, signals raise exceptions, so that no incomplete file stays. Before and after it there is nothing to
clean up, and the process exits at once. Python's default would be a traceback, and death by the signal.
"""

import _thread
import atexit
import contextlib
import os
import signal
import sys
import time
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ours: list[int] = []  # not those that are ignored (nohup, background jobs) or handled by an embedding program


def exit_on_signals() -> None:
    """Makes signals exit at once, for the start and the end of the program."""
    if not _ours:
        _ours.extend(number for number in _SIGNALS if signal.getsignal(number) in _DEFAULTS)
        # runs last: after it the interpreter would restore the default handlers
        atexit.register(_handle_by, signal.SIG_IGN)
    _handle_by(_exit)


def raise_on_signals() -> None:
    """Makes signals raise in the main thread: `KeyboardInterrupt` for Ctrl-C, `SystemExit` for the others."""
    sys.unraisablehook = _send_again
    _handle_by(_raise)


def end(status: int) -> NoReturn:
    """Ends the program after a signal.

    Not by `sys.exit`: `python -m` kills itself by SIGINT after a `KeyboardInterrupt` in an `exec` of a text, such as
    the one in `dataclass`, even if the exception was caught.
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(status)


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


def _send_again(dropped: "UnraisableHookArgs") -> None:
    """Sends a signal again if Python dropped its exception, in a `__del__` or a weak reference's callback. Each import
    has such a callback."""
    error = dropped.exc_value
    if isinstance(error, KeyboardInterrupt):
        _thread.start_new_thread(_send, (signal.SIGINT,))
    elif isinstance(error, SystemExit) and isinstance(error.code, int) and error.code - 128 in _ours:
        _thread.start_new_thread(_send, (error.code - 128,))
    else:
        sys.__unraisablehook__(dropped)


def _send(number: int) -> None:
    time.sleep(0.01)  # until the callback has ended
    os.kill(os.getpid(), number)
