"""The flags that several verbs share, with one spelling and one help text each."""

from typing import Annotated

import typer

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
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", metavar="N", min=1, help="Threads; all usable cores if not given.")
]
