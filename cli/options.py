"""Options that several verbs share, with one spelling and one help text each."""

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
        " config.json, weights and tokenizer, a file of weights such as ckpt.pt, or a .gguf file.",
        show_default=True,
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        help="storybook (bundled), a Hub name, a checkpoint folder or file of weights, or a .gguf file.",
    ),
]
CheckpointOption = Annotated[
    str,
    typer.Option("--model", "-m", metavar="MODEL", help="storybook (bundled), a Hub name, or a checkpoint folder."),
]
TypesOption = Annotated[
    list[str] | None,
    typer.Option("--type", "-t", metavar="TYPE", help="Quant type, in upper or lower case; repeat for several."),
]
TypeOption = Annotated[
    str | None,
    typer.Option("--type", "-t", metavar="TYPE", help="Quant type to convert a checkpoint to. Default: q4_k_m."),
]
RevisionOption = Annotated[
    str | None,
    typer.Option("--revision", metavar="REV", help="Branch, tag or commit on the Hub. Default: the main branch."),
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Download nothing; use the Hub cache only.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")]
ScoredTextOption = Annotated[
    str,
    typer.Option(
        "--text",
        metavar="FILE|NAME",
        help="Text to score: a UTF-8 file, - for stdin, evaluation (bundled), or a data set to download, such as"
        " wikitext2.",
    ),
]
ParseSpecialOption = Annotated[
    bool,
    typer.Option(
        "--parse-special/--no-parse-special",
        help="Read <|endoftext|> in a text as the special token, as Transformers does; or as letters, as"
        " llama-perplexity does.",
    ),
]
KeepCrlfOption = Annotated[
    bool, typer.Option("--keep-crlf", help="Keep CRLF line ends of a text, instead of reading them as LF.")
]
WindowOption = Annotated[
    int, typer.Option("--ctx-size", metavar="N", help="Context size in tokens, at most the model's.")
]
StrideOption = Annotated[
    int | None,
    typer.Option("--stride", metavar="N", help="Score in overlapping windows that advance by N tokens."),
]
PerTokenOption = Annotated[
    Path | None,
    typer.Option(
        "--per-token", metavar="FILE", help="Write the scores of each token to this file, one line of JSON per token."
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Number of threads. Default: all usable cores.")
]
ThreadsOrAutoOption = Annotated[
    str,
    typer.Option(
        "--threads",
        metavar="N|auto",
        help="Number of threads; auto: the usable cores, fewer while other programs are busy.",
    ),
]


def thread_count(text: str) -> int | Literal["auto"]:
    """The value of `--threads N|auto`. Raises `UsageError` for anything else."""
    from dgpt2_quant.runtime.threads import MOST_THREADS, check_threads

    if text == "auto":
        return "auto"
    if not (text.isdecimal() and len(text) < 10):
        raise UsageError(f"--threads must be 1-{MOST_THREADS} or auto, not {text[:40]!r}")
    return check_threads(int(text))


def read_prompt(text: str) -> str:
    """The text of a `TEXT|-` argument; - reads stdin, without its last line end.

    Raises `UsageError` for text that is not UTF-8.
    """
    if text != "-":
        return text
    from dgpt2_quant.core.archive import DataFile
    from dgpt2_quant.core.read_input import read_input
    from dgpt2_quant.core.text import as_text

    file = read_input(text, announce=note).file()
    # `echo` adds a line end, which a model would treat as the end of a paragraph
    content = file.content.removesuffix(b"\n")
    found = as_text(DataFile(file.name, content.removesuffix(b"\r") if content != file.content else content))
    return found.announced(note).text
