"""The flags that several verbs share, with one spelling and one help text each."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from dgpt2_quant.quantize.errors import UsageError

ConvertibleArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="storybook (bundled, works offline), a Hub name (distilgpt2, gpt2-medium, owner/name), a folder with"
        " config.json, safetensors and tokenizer, or a .gguf file.",
        show_default=True,
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="storybook (bundled), a Hub name, a checkpoint folder, or a .gguf file.",
    ),
]
CheckpointOption = Annotated[
    str,
    typer.Option("--model", "-m", metavar="MODEL", help="storybook (bundled), a Hub name, or a checkpoint folder."),
]
TypesOption = Annotated[
    list[str] | None,
    typer.Option("--type", "-t", metavar="TYPE", help="Quantization type, in any case; repeat for several."),
]
TypeOption = Annotated[
    str | None,
    typer.Option("--type", "-t", metavar="TYPE", help="Quantization type to run a checkpoint at; q4_k_m if not given."),
]
RevisionOption = Annotated[
    str | None,
    typer.Option("--revision", metavar="REV", help="Branch, tag or commit on the Hub; the main branch if not given."),
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Use only what is in the Hub cache already.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist already.")]
ScoredTextOption = Annotated[
    str,
    typer.Option(
        "--text",
        metavar="FILE|NAME",
        help="The text to score: a UTF-8 file, evaluation (bundled), or a data set to download, such as wikitext2.",
    ),
]
WindowOption = Annotated[
    int, typer.Option("--ctx-size", metavar="N", help="Tokens that the model sees at once; no more than its positions.")
]
StrideOption = Annotated[
    int | None,
    typer.Option("--stride", metavar="N", help="Score by overlapping windows that move on by so many tokens."),
]
PerTokenOption = Annotated[
    Path | None,
    typer.Option("--per-token", metavar="FILE", help="Write what became of each scored token: a line of JSON each."),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Threads; all usable cores if not given.")
]
ThreadsOrAutoOption = Annotated[
    str,
    typer.Option("--threads", metavar="N|auto", help="Threads; auto: the usable cores, less while others are busy."),
]


def thread_count(text: str) -> int | Literal["auto"]:
    """What `--threads N|auto` says. Raises `UsageError` for anything else."""
    from dgpt2_quant.runtime.threads import check_threads

    if text == "auto":
        return "auto"
    if not (text.isdecimal() and len(text) < 10):
        raise UsageError(f"--threads {text[:40]!r}; it takes a number, or auto")
    return check_threads(int(text))


def read_input(text: str) -> str:
    """A `TEXT|-` argument: the text itself, or what stdin has. Raises `UsageError` for bytes that are no UTF-8."""
    if text != "-":
        return text
    try:
        read = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"the text on stdin is not UTF-8: {error}", "Convert it, for example with iconv.") from error
    return read.removesuffix("\n")  # `echo` puts it there, and a model would take it for the end of a paragraph
