"""`dgpt2-quant convert`: converts a model to GGUF files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import (
    ConvertibleArgument,
    JsonOption,
    KeepCrlfOption,
    OfflineOption,
    OverwriteOption,
    ParseSpecialOption,
    RevisionOption,
    ThreadsOption,
    TypesOption,
)
from .output import megabytes, note, print_json, print_table
from .progress import progress_bar

if TYPE_CHECKING:
    from dgpt2_quant.quantize.converted_file import ConvertedFile

_LEAN_GAINS_BELOW = 8  # bits per weight; above, `stock` loses next to nothing


def convert(
    model: ConvertibleArgument = "distilbert/distilgpt2",
    type: TypesOption = None,
    all: Annotated[
        bool,
        typer.Option("--all", help="Convert to every type. Without an importance matrix, skip types that need one."),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE_OR_FOLDER",
            help="File or folder to write. Default: <model>.<TYPE>.gguf or <model>.<recipe>.<TYPE>.gguf here.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Name of the model in file names and metadata."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            metavar="ADAPTER[=WEIGHT]",
            help="Merge this LoRA adapter of PEFT, a folder or a Hub name; repeat for several, in order.",
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            metavar="NAME|FILE.json",
            help="stock: the type mixes of llama-quantize; lean: better files, by calibration; or a saved search.",
        ),
    ] = "stock",
    prefer: Annotated[
        str | None,
        typer.Option("--prefer", metavar="quality|speed|size", help="Goal of recipe lean and of a search."),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without", metavar="STEP", help="Omit this step of recipe lean, such as feedback; repeat for several."
        ),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option("--imatrix", metavar="FILE", help="Use this importance matrix (GGUF), see dgpt2-quant imatrix."),
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            "--calibrate",
            metavar="TEXTFILE",
            help="Collect an importance matrix over this text first; - for stdin; sampled: over text from the model.",
        ),
    ] = None,
    parse_special: ParseSpecialOption = True,
    keep_crlf: KeepCrlfOption = False,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor-type",
            metavar="REGEX=TYPE",
            help="Type of the matching matrices, such as ffn_down=q6_k; repeat for several, the first match counts.",
        ),
    ] = None,
    target_size: Annotated[
        str | None,
        typer.Option("--target-size", metavar="SIZE", help="Search for the best tensor types for a file of this size."),
    ] = None,
    target_bpw: Annotated[
        float | None,
        typer.Option("--target-bpw", metavar="BITS", help="Search for the best tensor types with BITS per weight."),
    ] = None,
    max_kld: Annotated[
        float | None,
        typer.Option(
            "--max-kld", metavar="NATS", help="Search for the smallest file with at most this mean KL divergence."
        ),
    ] = None,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    threads: ThreadsOption = None,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Accept a quantized GGUF file, with a loss of quality.")
    ] = False,
    overwrite: OverwriteOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the type of each tensor and the exact file size, and write nothing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Convert a model to GGUF files of one or more quant types.

    The source is read once for several types. --recipe lean writes better files of the same formats; --target-size 48MB
    chooses the tensor types by measurement.

    Example: dgpt2-quant convert -t q4_k -t q8_0 -o models/
    """
    from dgpt2_quant.core.errors import UsageError
    from dgpt2_quant.core.quant_types import QUANT_TYPES
    from dgpt2_quant.quantize.convert import convert as convert_model

    if all and type:
        raise UsageError("--all and --type cannot be combined", "Omit one of them.")
    calibrated = imatrix or calibrate or recipe != "stock"
    every = [t.name for t in QUANT_TYPES.values() if calibrated or not t.needs_imatrix]
    if all and len(every) < len(QUANT_TYPES):
        note(f"Skipping {' '.join(t for t in QUANT_TYPES if t not in every)}: they need --imatrix or --calibrate.")
    with progress_bar() as progress:
        files = convert_model(
            model,
            type=every if all else type or [],
            output=output,
            name=name,
            lora=lora or [],
            recipe=recipe,
            prefer=prefer,
            without=without or [],
            imatrix=imatrix,
            calibrate=calibrate,
            parse_special=parse_special,
            keep_crlf=keep_crlf,
            tensor_type=tensor_type or [],
            target_size=target_size,
            target_bpw=target_bpw,
            max_kld=max_kld,
            revision=revision,
            offline=offline,
            threads=threads,
            allow_requantize=allow_requantize,
            overwrite=overwrite,
            dry_run=dry_run,
            progress=progress,
            announce=note,
        )
    if json:
        print_json([file.to_json() for file in files])
        return
    if dry_run or files[0].found:
        _print_plans(files)
    rows = [
        [
            f.type,
            f"{f.bytes:,} bytes" if dry_run else megabytes(f.bytes),
            f"{f.bits_per_weight:.2f}",
            ", ".join(f"{n} {t}" for t, n in f.tensors.items()),
            f.path,
        ]
        for f in files
    ]
    print_table(["type", "size", "bits/weight", "tensors", "file"], rows)
    if found := files[0].found:
        note(
            f"Mean KL divergence {found['kld']:.5f}, measured on held-out text; the sum of the single effects is"
            f" {found['kld_predicted']:.5f}"
        )
    what = "nothing was written" if dry_run else f"in {files[0].seconds:.1f} s"
    note(f"{files[0].parameters:,} parameters of {files[0].model}, {what}")
    from dgpt2_quant.quantize.recipes.tensor_types import has_lean

    stock = [file.plan.quant_type for file in files if file.recipe == "stock"]
    if any(has_lean(quant_type) and quant_type.bits_per_weight < _LEAN_GAINS_BELOW for quant_type in stock):
        note("`--recipe lean` takes minutes, and writes a smaller file with less error: docs/quantization.md")


def _print_plans(files: "list[ConvertedFile]") -> None:
    """Prints the type of every tensor, one column per file."""
    shapes = files[0].plan.shapes
    rows = [
        [name, " x ".join(map(str, shape)), *(f.plan.types[name].name for f in files)] for name, shape in shapes.items()
    ]
    print_table(["tensor", "shape", *(f.type for f in files)], rows)
    typer.echo("")
