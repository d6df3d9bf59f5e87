"""The flags that several verbs share, with one spelling and one help text each."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from dgpt2_quant.core.errors import UsageError

from .output import note

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
        help="The text to score: a UTF-8 file, - for stdin, evaluation (bundled), or a data set to download, such as"
        " wikitext2.",
    ),
]
ParseSpecialOption = Annotated[
    bool,
    typer.Option(
        "--parse-special/--no-parse-special",
        help="Read <|endoftext|> in the text as that token, as Transformers does, or as letters, as llama-perplexity.",
    ),
]
KeepCrlfOption = Annotated[bool, typer.Option("--keep-crlf", help="Keep CRLF line ends of the text; else read as LF.")]
WindowOption = Annotated[
    int, typer.Option("--ctx-size", metavar="N", help="Tokens that the model sees at once; no more than its positions.")
]
StrideOption = Annotated[
    int | None,
    typer.Option("--stride", metavar="N", help="Score by overlapping windows that advance by N tokens."),
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


def read_prompt(text: str) -> str:
    """A `TEXT|-` argument: the text itself, or what stdin has, without the last line end.

    Raises `UsageError` for what is no UTF-8 text.
    """
    if text != "-":
        return text
    from dgpt2_quant.core.archive import DataFile
    from dgpt2_quant.core.read_input import read_input
    from dgpt2_quant.core.text import as_text

    file = read_input(text, announce=note).file()
    # `echo` puts a line end there, and a model would take it for the end of a paragraph
    content = file.content.removesuffix(b"\n")
    found = as_text(DataFile(file.name, content.removesuffix(b"\r") if content != file.content else content))
    return found.announced(note).text
