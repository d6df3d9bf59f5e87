"""`dgpt2-quant imatrix`: collects an importance matrix, with which quantizers weigh errors."""

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
    output: Annotated[str, typer.Option("--output", "-o", metavar="FILE.gguf", help="File to write.")],
    model: ConvertibleArgument = "distilbert/distilgpt2",
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            metavar="FILE|NAME",
            help="Text to collect over: a UTF-8 file, - for stdin, calibration (bundled), or sampled (from the model).",
        ),
    ] = None,
    merge: Annotated[
        list[Path] | None,
        typer.Option("--merge", metavar="FILE.gguf", help="Add this importance matrix; repeat for several."),
    ] = None,
    ctx_size: Annotated[int, typer.Option("--ctx-size", metavar="N", min=1, help="Tokens of a chunk.")] = 512,
    chunks: Annotated[
        int | None, typer.Option("--chunks", metavar="N", min=1, help="Use the first N chunks. Default: all.")
    ] = None,
    parse_special: ParseSpecialOption = True,
    keep_crlf: KeepCrlfOption = False,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    overwrite: OverwriteOption = False,
) -> None:
    """Collect an importance matrix over a text.

    Writes llama.cpp's GGUF format, including the output matrix. After an interrupt, the same command continues. Without
    --text, the files of --merge are added up, and no model is needed.
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
