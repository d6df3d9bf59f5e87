"""The command line: registers the verbs, and sets up streams, signals and error messages.

Each verb is a module with one function; its parameters are the flags. The modules import the library only when they are
called, so that `--help` is fast.
"""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any, NoReturn

import typer
from dgpt2_quant.core.cores import usable_cores
from dgpt2_quant.core.errors import OutputError
from dgpt2_quant.core.workers import require_threads

from .batch import batch
from .bench import bench
from .cache import cache
from .classify import classify
from .command import Command
from .compare import compare
from .convert import convert
from .demo import demo
from .errors import report
from .evaluate import evaluate
from .features import features
from .imatrix import imatrix
from .inspect_file import inspect
from .list_types import types
from .perplexity import perplexity
from .release import release
from .report import report as merge_report
from .run import run
from .serve import serve
from .signals import end, exit_on_signals, raise_on_signals
from .streams import drop_output, is_closed, open_streams

VERBS: dict[str, Callable[..., None]] = {
    "types": types,
    "convert": convert,
    "run": run,
    "features": features,
    "serve": serve,
    "batch": batch,
    "classify": classify,
    "bench": bench,
    "perplexity": perplexity,
    "eval": evaluate,
    "report": merge_report,
    "compare": compare,
    "release": release,
    "inspect": inspect,
    "imatrix": imatrix,
    "demo": demo,
    "cache": cache,
}

_HELPERS = 5  # threads that read, hash and write, in addition to those that compute

app = typer.Typer(
    name="dgpt2-quant",
    help="GGUF quantization and fast CPU inference for the GPT-2 family, and benchmarks to choose a quant type.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help is readable in logs, and saves 0.1 s of imports
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


# verbs that write files, and print only information about them
_WRITE_FILES = ("convert", "imatrix", "bench", "demo", "release")


def main() -> NoReturn:
    """Runs the program and exits. `dgpt2_quant.__main__` calls it."""
    open_streams()
    exit_on_signals()
    try:
        try:
            raise_on_signals()
            status = app(standalone_mode=False) or 0
            sys.stdout.flush()
        finally:
            exit_on_signals()  # a signal raises nothing any more, so that no traceback follows the message
    except BaseException as error:
        status = report(error)
    if status > 128:
        end(status)
    sys.exit(status)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"dgpt2-quant {version('dgpt2-quant')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass


def _guarded(verb: Callable[..., None]) -> Callable[..., None]:
    """Refuses a closed stdout before the work, and reports errors before typer sees them."""

    @wraps(verb)
    def run_verb(**options: Any) -> None:
        try:
            if verb is not types:  # which loads neither NumPy nor llama.cpp
                require_threads(usable_cores() + _HELPERS)
            if is_closed(1):
                writes_file = options.get("output") not in (None, "-") or verb.__name__ in _WRITE_FILES
                if options.get("json") or not writes_file:
                    raise OutputError("stdout is closed, and the result is written to it", "Redirect stdout to a file.")
                drop_output()
            verb(**options)
            sys.stdout.flush()
        except BaseException as error:
            raise typer.Exit(report(error)) from error

    return run_verb


for _name, _verb in VERBS.items():
    app.command(_name, cls=Command)(_guarded(_verb))
