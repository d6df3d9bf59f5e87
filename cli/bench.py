"""`dgpt2-quant bench`: the levels of one model, side by side."""

import time
from pathlib import Path
from typing import Annotated

import typer

from .options import (
    CheckpointOption,
    JsonOption,
    OfflineOption,
    OverwriteOption,
    RevisionOption,
    ThreadsOption,
    TypesOption,
)
from .output import note, print_json, print_table
from .progress import progress_bar


def bench(
    model: CheckpointOption = "distilbert/distilgpt2",
    type: TypesOption = None,
    text: Annotated[
        str,
        typer.Option("--text", metavar="FILE|NAME", help="The text to score: a UTF-8 file, or evaluation (bundled)."),
    ] = "evaluation",
    reference: Annotated[
        str, typer.Option("--reference", metavar="TYPE", help="What to compare with: f32 or f16.")
    ] = "f32",
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=1, help="Rounds of the speed measurement.")] = 5,
    threads: ThreadsOption = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Where bench.json and report.md go; a new folder here if not given.",
        ),
    ] = None,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Compare types by quality, speed and size.

    Size, load time, peak memory, perplexity, KL divergence against F32, prompt and decode speed.

    Types that are not given: f16 q8_0 q5_k_m q4_k_m q4_0. Example: dgpt2-quant bench -m storybook -t q8_0 -t q4_k
    """
    from dgpt2_quant.bench.matrix import bench as run_bench
    from dgpt2_quant.bench.report import COLUMNS, refuse_reports, remarks, table_rows, write_report

    folder = Path(output or time.strftime("dgpt2-quant-bench/%Y%m%d-%H%M%S"))
    refuse_reports(folder, overwrite=overwrite)
    with progress_bar() as progress:
        document = run_bench(
            model,
            type=type,
            text=text,
            reference=reference,
            rounds=rounds,
            threads=threads,
            revision=revision,
            offline=offline,
            progress=progress,
            announce=note,
        )
    if json:
        print_json(document)
    else:
        print_table(COLUMNS, table_rows(document))
        for remark in remarks(document):
            typer.echo(remark)
    write_report(document, folder, overwrite=overwrite)  # after the table: a full disk must not lose the results
    note(f"Report: {folder / 'report.md'}")
