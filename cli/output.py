"""Prints to stdout, one JSON document or a table and text, and notes to stderr."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer
from dgpt2_quant.bench.document.blocks import is_number
from dgpt2_quant.core.json_text import to_json_text

from .flag_names import in_flags

if TYPE_CHECKING:
    from dgpt2_quant.bench.document.schema import BenchJson


def print_json(document: Any) -> None:
    """Prints one document in UTF-8; NaN and infinity, which JSON lacks, become null."""
    typer.echo(to_json_text(document))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints aligned columns: the first, and those with words, to the left, numbers to the right."""
    widths = [max(len(cell) for cell in cells) for cells in zip(columns, *rows, strict=True)]
    right = [index > 0 and all(is_number(row[index]) for row in rows) for index in range(len(columns))]
    for row in (columns, ["-" * width for width in widths], *rows):
        cells = zip(row, widths, right, strict=True)
        line = "  ".join(cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in cells)
        typer.echo(line.rstrip())


def print_report(document: "BenchJson") -> None:
    """Prints the table and the advice of a benchmark."""
    from dgpt2_quant.bench.report.summary import COLUMNS, remarks, table_rows

    print_table(COLUMNS, table_rows(document))
    for remark in remarks(document):
        typer.echo(remark)


def note(text: str) -> None:
    """Prints a remark that is not data: to stderr, with flags for the library's parameters."""
    typer.echo(in_flags(text), err=True)


def megabytes(count: int) -> str:
    """A size such as 62.8 MB, in millions of bytes as on the Hub."""
    if count < 1e5:
        return f"{count} bytes"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
