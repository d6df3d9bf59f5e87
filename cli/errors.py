"""What an exception becomes on the command line: a sentence, a hint, and an exit status."""

import os
import sys

import typer
from dgpt2_quant.quantize.errors import DgptQuantError

INTERRUPTED = 130


def report(error: BaseException) -> int:
    """Tells the user of the error on stderr, and returns the exit status.

    What is no error of the user's, and everything when DGPT2_QUANT_DEBUG=1, is raised again, with its traceback.
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
        case DgptQuantError() if os.environ.get("DGPT2_QUANT_DEBUG") != "1":
            typer.echo(f"Error: {error.message}", err=True)
            if error.hint:
                typer.echo(f"Hint: {error.hint}", err=True)
            return error.exit_status
        case MemoryError():
            typer.echo("Error: not enough memory for this", err=True)
            return 1
    raise error
