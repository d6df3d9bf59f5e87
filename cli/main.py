"""The command line: which verbs there are, and what becomes of an error.

Each verb is a module with one function of the same name; its parameters are the flags. The modules import the
library only when they are called, so that `--help` is instant.
"""

import sys
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from .bench import bench
from .cache import cache
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
from .report import report as merge_report
from .run import run

VERBS: dict[str, Callable[..., None]] = {
    "types": types,
    "convert": convert,
    "run": run,
    "features": features,
    "bench": bench,
    "perplexity": perplexity,
    "eval": evaluate,
    "report": merge_report,
    "compare": compare,
    "inspect": inspect,
    "imatrix": imatrix,
    "demo": demo,
    "cache": cache,
}

app = typer.Typer(
    name="dgpt2-quant",
    help="GGUF quantization and fast CPU inference for the GPT-2 family, and proof of which level to ship.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: it is read in logs too, and needs no 0.1 s of imports
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The entry point of `dgpt2-quant`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a character that the terminal lacks is no reason to fail
            stream.reconfigure(encoding="utf-8", errors="replace")
    app()


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
    @wraps(verb)
    def run_verb(*args: Any, **kwargs: Any) -> None:
        try:
            verb(*args, **kwargs)
            sys.stdout.flush()
        except BaseException as error:
            raise typer.Exit(report(error)) from error

    return run_verb


for _name, _verb in VERBS.items():
    app.command(_name)(_guarded(_verb))
