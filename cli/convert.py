"""`dgpt2-quant convert`: a checkpoint to GGUF files."""

from typing import Annotated

import typer

from .options import (
    JsonOption,
    ModelArgument,
    OfflineOption,
    OverwriteOption,
    RevisionOption,
    ThreadsOption,
    TypesOption,
)
from .output import megabytes, note, print_json, print_table
from .progress import progress_bar


def convert(
    model: ModelArgument = "distilbert/distilgpt2",
    type: TypesOption = None,
    all: Annotated[bool, typer.Option("--all", help="Every type there is.")] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE_OR_FOLDER",
            help="Where to write; <model>.<TYPE>.gguf here if not given.",
        ),
    ] = None,
    recipe: Annotated[
        str, typer.Option("--recipe", metavar="NAME", help="stock: as llama-quantize mixes types.")
    ] = "stock",
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    threads: ThreadsOption = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Write a model as GGUF, at one quantization type or several.

    Several types read the source once. Example: dgpt2-quant convert -t q4_k -t q8_0 -o models/
    """
    from dgpt2_quant.quantize.convert import convert as convert_model
    from dgpt2_quant.quantize.errors import UsageError
    from dgpt2_quant.quantize.quant_types import QUANT_TYPES

    if all and type:
        raise UsageError("--all and --type were both given", "Leave one of the two out.")
    with progress_bar() as progress:
        files = convert_model(
            model,
            type=list(QUANT_TYPES) if all else type or [],
            output=output,
            recipe=recipe,
            revision=revision,
            offline=offline,
            threads=threads,
            overwrite=overwrite,
            progress=progress,
        )
    if json:
        print_json([file.to_json() for file in files])
        return
    rows = [
        [
            f.type,
            megabytes(f.bytes),
            f"{f.bits_per_weight:.2f}",
            ", ".join(f"{n} {t}" for t, n in f.tensors.items()),
            f.path,
        ]
        for f in files
    ]
    print_table(["type", "size", "bits/weight", "tensors", "file"], rows)
    note(f"{files[0].parameters:,} parameters of {files[0].model} in {files[0].seconds:.1f} s")
