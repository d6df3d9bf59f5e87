"""What goes to stdout: one JSON document, or a table and text for people."""

from collections.abc import Sequence
from typing import Any

import typer
from dgpt2_quant.bench.document.blocks import is_number
from dgpt2_quant.core.json_text import to_json_text

from .flags import in_flags


def print_json(document: Any) -> None:
    """One document, UTF-8; NaN and infinity, which JSON has not, become null."""
    typer.echo(to_json_text(document))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns, the first to the left, the others to the right unless they hold words."""
    widths = [max(len(cell) for cell in cells) for cells in zip(columns, *rows, strict=True)]
    right = [index > 0 and all(is_number(row[index]) for row in rows) for index in range(len(columns))]
    for row in (columns, ["-" * width for width in widths], *rows):
        cells = zip(row, widths, right, strict=True)
        line = "  ".join(cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in cells)
        typer.echo(line.rstrip())


def note(text: str) -> None:
    """Prints a remark that is not data: to stderr, with flags for the library's parameters."""
    typer.echo(in_flags(text), err=True)


def megabytes(count: int) -> str:
    """62.8 MB: millions of bytes, as the Hub shows sizes."""
    if count < 1e5:
        return f"{count} bytes"
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
