"""`dgpt2-quant report`: merges several benchmarks into one report."""

import time
from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOption, OverwriteOption
from .output import note, print_json, print_report


def report(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT.json ...", help="Results of bench: bench.json.")],
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FOLDER", help="Folder for the report. Default: a new one here."),
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Merge benchmarks of one model into one report.

    For a CI matrix that measures each type in a separate job, perhaps on different machines. All results must have the
    same model, text, context, method and reference. Quality and size compare directly, speeds by their ratio to the
    reference. A type that is in several results becomes one row, the last, if its quality is the same in all.
    """
    from dgpt2_quant.bench.merge import merge
    from dgpt2_quant.bench.report.write_report import refuse_reports, write_report

    folder = Path(output or time.strftime("dgpt2-quant-report/%Y%m%d-%H%M%S"))
    refuse_reports(folder, overwrite=overwrite)
    document = merge(results)
    print_json(document) if json else print_report(document)
    write_report(document, folder, overwrite=overwrite)
    note(f"Report: {folder / 'report.html'}")
