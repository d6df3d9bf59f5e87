"""`dgpt2-quant demo`: converts, runs and compares the bundled checkpoint, offline."""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from .options import OverwriteOption
from .output import megabytes, note, print_report, print_table
from .progress import progress_bar

PROMPT = "Once upon a time"
SEED = 7
DEFAULT_FOLDER = "dgpt2-quant-demo"


def demo(
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help=f"Folder for files and report. Default: {DEFAULT_FOLDER}.",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Convert, run and compare the bundled model.

    Takes less than a minute, and needs no network.
    """
    from dgpt2_quant.bench.bench import bench_files
    from dgpt2_quant.bench.measure import Settings, Subject
    from dgpt2_quant.bench.report.write_report import refuse_reports, write_report
    from dgpt2_quant.bench.speed.grid import Grid
    from dgpt2_quant.core.quant_types import DEMO_TYPES, find_type
    from dgpt2_quant.core.text import load_text
    from dgpt2_quant.quantize.checkpoint.folder import source_sha256
    from dgpt2_quant.quantize.checkpoint.resolve import resolve
    from dgpt2_quant.quantize.convert import convert
    from dgpt2_quant.runtime.model import Model

    folder = Path(output or DEFAULT_FOLDER)
    overwrite = overwrite or output is None  # the default folder may be replaced
    refuse_reports(folder, overwrite=overwrite)
    source = resolve("storybook")
    reference = find_type("f32")

    typer.echo(f"1. Convert storybook, a small GPT-2 trained on children's books, to {len(DEMO_TYPES)} quant types")
    with progress_bar() as progress:
        files = convert(source.name, type=DEMO_TYPES, output=folder, overwrite=overwrite, progress=progress)
    paths = {find_type(file.type): Path(file.path) for file in files}
    print_table(
        ["type", "size", "bits/weight", "file"],
        [[f.type, megabytes(f.bytes), f"{f.bits_per_weight:.2f}", f.path] for f in files],
    )

    typer.echo(f'\n2. Continue "{PROMPT}" with each, from the same seed')
    for quant_type, path in paths.items():
        with Model.load(path) as model:
            generation = model.stream(PROMPT, max_tokens=48, seed=SEED)
            text = " ".join((PROMPT + "".join(generation)).split())
        speed = generation.timing.decode_tps
        typer.echo(f"{quant_type.name} ({speed:.0f} tokens/s): {text}" if speed else f"{quant_type.name}: {text}")

    typer.echo("\n3. Compare with F32 on the bundled evaluation text")
    with tempfile.TemporaryDirectory() as scratch, progress_bar() as progress:
        (base,) = convert(source.name, type=reference, output=scratch)
        subject = Subject(source.name, source_sha256(source.folder), Path(base.path), list(paths.values()))
        settings = Settings(rounds=3, grid=Grid.none())  # a demo is short
        document = bench_files(subject, load_text(), settings, progress=progress, announce=note)
    print_report(document)
    write_report(document, folder, overwrite=overwrite)
    note(f"\nReport: {folder / 'report.md'}, numbers: {folder / 'bench.json'}")
    program = "dgpt2-quant" if shutil.which("dgpt2-quant") else sys.argv[0]  # not on the PATH in `make demo`
    note(f'Next: {program} run "{PROMPT}" -m {paths[find_type("q4_0")]}')
