"""`dgpt2-quant imatrix`: what the inputs of a model's matrices look like, for quantizers to weigh errors with."""

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    ConvertibleArgument,
    KeepCrlfOption,
    OfflineOption,
    OverwriteOption,
    ParseSpecialOption,
    RevisionOption,
)
from .output import note, print_table
from .progress import progress_bar


def imatrix(
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE.gguf", help="Where to write it.")],
    model: ConvertibleArgument = "distilbert/distilgpt2",
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            metavar="FILE|NAME",
            help="UTF-8 text to collect over, - for stdin, calibration (bundled), or sampled: what the model writes.",
        ),
    ] = None,
    merge: Annotated[
        list[Path] | None,
        typer.Option("--merge", metavar="FILE.gguf", help="Importance matrix to add; repeat for several."),
    ] = None,
    ctx_size: Annotated[
        int, typer.Option("--ctx-size", metavar="N", min=1, help="Tokens of a chunk, each a text of its own.")
    ] = 512,
    chunks: Annotated[
        int | None, typer.Option("--chunks", metavar="N", min=1, help="Take so many chunks; all if not given.")
    ] = None,
    parse_special: ParseSpecialOption = True,
    keep_crlf: KeepCrlfOption = False,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Collect an importance matrix over a text.

    In llama.cpp's GGUF format, the output matrix included. When interrupted, the same command goes on where it was.
    Without --text, the files named by --merge are put together, and no model is needed.
    """
    from dgpt2_quant.quantize.calibration.collect import imatrix as collect

    with progress_bar() as progress:
        result = collect(
            model,
            text=text,
            output=output,
            merge=merge or [],
            ctx_size=ctx_size,
            chunks=chunks,
            parse_special=parse_special,
            keep_crlf=keep_crlf,
            revision=revision,
            offline=offline,
            overwrite=overwrite,
            progress=progress,
            announce=note,
        )
    print_table(
        ["matrices", "chunks", "tokens/chunk", "texts", "file"],
        [
            [
                str(len(result.entries)),
                str(result.chunk_count),
                str(result.chunk_size),
                ", ".join(result.datasets),
                str(output),
            ]
        ],
    )
    note(f"Use it with `dgpt2-quant convert ... --imatrix {output}`")
