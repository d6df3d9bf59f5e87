"""Writes the report of a benchmark: `bench.json`, `report.md`, `report.html` and plots."""

from pathlib import Path

from dgpt2_quant.bench.document.schema import BenchJson
from dgpt2_quant.core.atomic_file import output_file, refuse_existing
from dgpt2_quant.core.json_text import to_json_text

from .html_page import to_html
from .markdown import to_markdown
from .plots import PLOTS, draw_plots
from .summary import report_sections

REPORT_FILES = ("bench.json", "report.md", "report.html")


def refuse_reports(folder: Path, *, overwrite: bool = False) -> None:
    """Raises `OutputError` if a file of the report exists. To be called before the work."""
    for name in (*REPORT_FILES, *(f"plots/{plot}.{kind}" for plot in PLOTS for kind in ("png", "svg"))):
        refuse_existing(folder / name, overwrite)


def write_report(document: BenchJson, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Writes `bench.json`, `report.md`, `report.html` and, where matplotlib is installed, `plots/*.png` and `.svg`.

    `bench.json` is written first, so that a full disk loses only plots. Returns the files in that order. Raises
    `OutputError`.
    """
    refuse_reports(folder, overwrite=overwrite)
    _write(folder / "bench.json", (to_json_text(document) + "\n").encode(), overwrite)
    plots = draw_plots(document)
    pictures = {f"plots/{name}": content for name, content in plots.items()}
    sections = report_sections(document, with_plots=bool(plots))
    vectors = {name: plots[f"{name}.svg"].decode() for name in PLOTS if f"{name}.svg" in plots}
    contents = {
        "report.md": to_markdown(sections, {name: f"plots/{name}.png" for name in vectors}).encode(),
        "report.html": to_html(sections, vectors).encode(),
        **pictures,
    }
    for name, content in contents.items():
        _write(folder / name, content, overwrite)
    return [folder / name for name in ("bench.json", *contents)]


def _write(path: Path, content: bytes, overwrite: bool) -> None:
    with output_file(path, overwrite=overwrite) as file:
        file.write(content)
