"""What an exception becomes on the command line: a sentence, a hint, and an exit status."""

import errno
import os
import sys
import traceback

import typer
from dgpt2_quant.quantize.errors import DgptQuantError

INTERRUPTED = 130


def report(error: BaseException) -> int:
    """Tells the user of the error on stderr, and returns the exit status.

    DGPT2_QUANT_DEBUG=1 shows the traceback too. What is no error of the user's is raised again.
    """
    match error:
        case typer.Exit():
            return error.exit_code
        case KeyboardInterrupt():
            typer.echo("Interrupted.", err=True)
            return INTERRUPTED
        case BrokenPipeError():
            # the reader went away (`| head`); Python would complain once more when it flushes at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        case DgptQuantError():
            if os.environ.get("DGPT2_QUANT_DEBUG") == "1":
                traceback.print_exception(error)
            typer.echo(f"Error: {error.message}", err=True)
            if error.hint:
                typer.echo(f"Hint: {error.hint}", err=True)
            return error.exit_status
        case OSError() if error.filename is None and error.errno == errno.ENOSPC:  # `> /dev/full`
            typer.echo(f"Error: can not write the result: {error.strerror}", err=True)
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        case MemoryError() | ImportError() | OSError() | RuntimeError() if _lacks_memory(error):
            typer.echo("Error: not enough memory for this", err=True)
            return 1
    raise error


def _lacks_memory(error: BaseException) -> bool:
    """The dynamic linker says so in words, which NumPy and llama-cpp-python put into errors of their own."""
    return isinstance(error, MemoryError) or "failed to map segment from shared object" in str(error)
