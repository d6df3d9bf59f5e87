"""`dgpt2-quant report`: one report of several runs."""

import time
from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOption, OverwriteOption
from .output import note, print_json, print_table


def report(
    results: Annotated[list[Path], typer.Argument(metavar="RESULT.json ...", help="What bench wrote: bench.json.")],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Where bench.json, report.md, report.html and the plots go; a new folder here if not given.",
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    json: JsonOption = False,
) -> None:
    """Merge benchmarks of one model into one report.

    For a CI matrix that measures each type in a job of its own, perhaps on other machines: quality and size can be
    compared as they are, speeds by their ratio to the reference. All must be of the same model, text, context, method
    and reference. A type in several files becomes one row, the last, if its quality is the same in all.
    """
    from dgpt2_quant.bench.merge import merge
    from dgpt2_quant.bench.report.write_report import COLUMNS, refuse_reports, remarks, table_rows, write_report

    folder = Path(output or time.strftime("dgpt2-quant-report/%Y%m%d-%H%M%S"))
    refuse_reports(folder, overwrite=overwrite)
    document = merge(results)
    if json:
        print_json(document)
    else:
        print_table(COLUMNS, table_rows(document))
        for remark in remarks(document):
            typer.echo(remark)
    write_report(document, folder, overwrite=overwrite)
    note(f"Report: {folder / 'report.html'}")
