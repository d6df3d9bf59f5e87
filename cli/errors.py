"""Turns an exception into a message, a hint and an exit status."""

import errno
import os
import signal
import traceback

import typer
from dgpt2_quant.core.errors import DgptQuantError
from dgpt2_quant.core.workers import no_more_threads

from .flag_names import in_flags
from .streams import ReaderGoneError

INTERRUPTED = 128 + signal.SIGINT


def report(error: BaseException) -> int:
    """Reports the error on stderr, with DGPT2_QUANT_DEBUG=1 also its traceback, and returns the exit status."""
    match error:
        case typer.Exit():
            return error.exit_code
        case SystemExit():
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        case KeyboardInterrupt():
            typer.echo("Interrupted.", err=True)
            return INTERRUPTED
        case ReaderGoneError():
            return 0
    if show := getattr(error, "show", None):  # typer's usage errors, whose base class has no public name
        show()
        return int(getattr(error, "exit_code", 2))
    if os.environ.get("DGPT2_QUANT_DEBUG") == "1":
        traceback.print_exception(error)
    message, hint, status = _explained(error)
    typer.echo(f"Error: {in_flags(message)}", err=True)
    if hint:
        typer.echo(f"Hint: {in_flags(hint)}", err=True)
    return status


def _explained(error: BaseException) -> tuple[str, str, int]:
    """(message, hint, exit status)."""
    match error:
        case DgptQuantError():
            return error.message, error.hint, error.exit_status
        case MemoryError() | ImportError() | OSError() | RuntimeError() if _lacks_memory(error):
            return "not enough memory", "Close other programs, raise `ulimit -v`, or use a smaller model.", 1
        case OSError() if error.errno in (errno.EMFILE, errno.ENFILE):
            return "too many files are open", "Raise the limit (`ulimit -n`).", 1
        case RuntimeError() if "can't start new thread" in str(error):
            return _explained(no_more_threads())
    what = next(iter(str(error).strip().splitlines()), "")
    return (
        f"unexpected {type(error).__name__}" + (f": {what}" if what else ""),
        "This is a bug of dgpt2-quant. Set DGPT2_QUANT_DEBUG=1 for the traceback, and report it.",
        1,
    )


def _lacks_memory(error: BaseException) -> bool:
    """Whether memory is short. The dynamic linker reports it in words, which NumPy and llama-cpp-python wrap."""
    return isinstance(error, MemoryError) or "failed to map segment from shared object" in str(error)
