"""`dgpt2-quant convert`: a model to GGUF files."""

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


def convert(
    model: ConvertibleArgument = "distilbert/distilgpt2",
    type: TypesOption = None,
    all: Annotated[
        bool, typer.Option("--all", help="Every type; those that need an importance matrix only with one.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE_OR_FOLDER",
            help="Where to write; here if not given, as <model>.<TYPE>.gguf or <model>.<recipe>.<TYPE>.gguf.",
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="What to call the model, in file names and metadata."),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            metavar="NAME|FILE.json",
            help="stock: as llama-quantize mixes types; lean: better files, calibrated; or what a search has saved.",
        ),
    ] = "stock",
    prefer: Annotated[
        str | None,
        typer.Option("--prefer", metavar="quality|speed|size", help="What recipe lean and a search choose for."),
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option("--without", metavar="STEP", help="A step that recipe lean leaves out, for example feedback."),
    ] = None,
    imatrix: Annotated[
        Path | None, typer.Option("--imatrix", metavar="FILE", help="Importance matrix (GGUF), see `imatrix`.")
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(
            "--calibrate",
            metavar="TEXTFILE",
            help="Collect an importance matrix over this text (- for stdin) first; sampled: over what the model writes"
            " itself.",
        ),
    ] = None,
    parse_special: ParseSpecialOption = True,
    keep_crlf: KeepCrlfOption = False,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor-type",
            metavar="REGEX=TYPE",
            help="Type of the matrices that match, for example ffn_down=q6_k; the first that matches counts.",
        ),
    ] = None,
    target_size: Annotated[
        str | None, typer.Option("--target-size", metavar="SIZE", help="Search the best types for a file of this size.")
    ] = None,
    target_bpw: Annotated[
        float | None,
        typer.Option("--target-bpw", metavar="BITS", help="Search the best types for BITS per weight."),
    ] = None,
    max_kld: Annotated[
        float | None,
        typer.Option("--max-kld", metavar="NATS", help="Search the smallest file of at most this mean KL divergence."),
    ] = None,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    threads: ThreadsOption = None,
    allow_requantize: Annotated[
        bool, typer.Option("--allow-requantize", help="Take a quantized GGUF file too, at a loss of quality.")
    ] = False,
    overwrite: OverwriteOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show each tensor's type and the file's exact size; write nothing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Write a model as GGUF, at one quantization type or several.

    Several types read the source once. Example: dgpt2-quant convert -t q4_k -t q8_0 -o models/
    Better files of the same formats: --recipe lean. Types by measurement: --target-size 48MB.
    """
    from dgpt2_quant.core.errors import UsageError
    from dgpt2_quant.core.quant_types import QUANT_TYPES
    from dgpt2_quant.quantize.convert import convert as convert_model

    if all and type:
        raise UsageError("--all and --type were both given", "Leave one of the two out.")
    calibrated = imatrix or calibrate or recipe != "stock"
    every = [t.name for t in QUANT_TYPES.values() if calibrated or not t.needs_imatrix]
    if all and len(every) < len(QUANT_TYPES):
        note(f"Without {' '.join(t for t in QUANT_TYPES if t not in every)}: they need --imatrix or --calibrate.")
    with progress_bar() as progress:
        files = convert_model(
            model,
            type=every if all else type or [],
            output=output,
            name=name,
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
            f"Mean KL divergence {found['kld']:.5f}, measured on text held back; the sum of single effects is"
            f" {found['kld_predicted']:.5f}"
        )
    what = "nothing was written" if dry_run else f"in {files[0].seconds:.1f} s"
    note(f"{files[0].parameters:,} parameters of {files[0].model}, {what}")


def _print_plans(files: "list[ConvertedFile]") -> None:
    """Every tensor's type, a column a file."""
    shapes = files[0].plan.shapes
    rows = [
        [name, " x ".join(map(str, shape)), *(f.plan.types[name].name for f in files)] for name, shape in shapes.items()
    ]
    print_table(["tensor", "shape", *(f.type for f in files)], rows)
    typer.echo("")
