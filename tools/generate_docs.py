"""Generates `docs/cli.md`, `docs/map.md`, and the tables of other pages from the code and from measurements.

usage: generate_docs.py [--check | --plots]

With --check it writes nothing, and fails when a page is stale. With --plots it also draws the plots of
`docs/bench/lean.json` (needs matplotlib). Measurements are `docs/bench/*.json`, each written by the command next to its
table; `docs/bench/demo.txt` is the output of `make demo`.
"""

import argparse
import ast
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import doc_tables
import serving_tables
from dgpt2_quant.cli.main import VERBS, app
from dgpt2_quant.core.quant_types import QUANT_TYPES
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "docs" / "bench"
PAGES_WITH_TABLES = [ROOT / "README.md"]
PAGES_WITH_TABLES += [
    ROOT / "docs" / f"{name}.md"
    for name in ("batch", "benchmarks", "convert", "performance", "quantization", "release", "serving", "tasks")
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--plots", action="store_true")
    options = parser.parse_args()
    if options.plots:
        lean = document_of("lean")
        for number, text in enumerate(lean["texts"], 1):
            figure = doc_tables.size_kld_plot(lean, text["name"])
            figure.savefig(BENCH / f"lean-size_kld-{number}.svg", metadata={"Date": None, "Creator": None})
    pages = {ROOT / "docs" / "cli.md": cli_page(), ROOT / "docs" / "map.md": map_page()}
    pages |= {path: filled(path, tables()) for path in PAGES_WITH_TABLES}
    stale = [path for path, text in pages.items() if not path.is_file() or path.read_text("utf-8") != text]
    if options.check and stale:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        raise SystemExit(f"stale: {names}; run `make docs`")
    for path in stale:
        path.write_text(text := pages[path], "utf-8")
        print(f"wrote {path.relative_to(ROOT)}, {len(text.splitlines())} lines")


def cli_page() -> str:
    runner = CliRunner()
    parts = [
        "# Command line\n\nGenerated from the code by `make docs`; a test fails when it is stale.\n",
        f"## dgpt2-quant\n\n{fenced(runner.invoke(app, ['--help'], prog_name='dgpt2-quant').stdout)}",
    ]
    for verb in VERBS:
        text = runner.invoke(app, [verb, "--help"], prog_name="dgpt2-quant").stdout
        parts.append(f"## dgpt2-quant {verb}\n\n{fenced(text)}")
    parts.append(
        "## Exit status\n\n0 done, 1 error, 2 wrong usage, 3 some lines of a batch failed, 130 interrupted. Errors go"
        " to stderr as `Error:` and\n`Hint:`; `DGPT2_QUANT_DEBUG=1` shows the traceback too. stdout has only the"
        " result.\n"
    )
    return "\n".join(parts)


LEAN_MODELS = ("storybook", "small-dictionary", "small-code", "small-handbook")
FOLDERS = ("dgpt2_quant", "core", "quantize", "runtime", "bench", "serve", "jobs", "publish", "cli", "demo", "tools")


def map_page() -> str:
    """A line on each file: the first sentence of its docstring."""
    lines = ["# The map", "", "Generated from the docstrings by `make docs`; a test fails when it is stale."]
    for top in FOLDERS:
        inside = sorted(path.parent for path in (ROOT / top).rglob("__init__.py"))
        for folder in inside or [ROOT / top]:
            about = (
                first_line(folder / "__init__.py")
                if inside
                else "Scripts for measuring, stress tests and documents; each has --help."
            )
            lines += ["", f"## {folder.relative_to(ROOT)}/", "", about, "", "| file | |", "| --- | --- |"]
            files = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
            lines += [f"| `{path.name}` | {first_line(path)} |" for path in files]
            if not files:
                del lines[-3:]
    return "\n".join([*lines, ""])


def first_line(path: Path) -> str:
    found = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return found.partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")


def tables() -> dict[str, list[str]]:
    """The blocks between `<!-- name -->` and `<!-- /name -->`."""
    lean, speeds = document_of("lean"), document_of("lean-speed")
    return {
        "all_types": doc_tables.type_table(QUANT_TYPES.values()),
        "demo": fenced((BENCH / "demo.txt").read_text("utf-8")).splitlines(),
        "bench": doc_tables.bench_table(document_of("storybook")),
        "classify": doc_tables.classify_table(document_of("classify")),
        "gate": doc_tables.gate_lines(document_of("gate")),
        "distilgpt2": doc_tables.release_table(
            document_of("distilgpt2") if (BENCH / "distilgpt2.json").exists() else None
        ),
        "programs": doc_tables.programs_table(document_of("distilgpt2-random")),
        "peers": doc_tables.peers_table(document_of("distilgpt2-random")),
        "generation": doc_tables.generation_table(document_of("runtime")),
        "guesses": doc_tables.lookup_table(document_of("lookup")),
        "overhead": doc_tables.overhead_table(document_of("overhead")),
        "governor": doc_tables.governor_table(document_of("governor")),
        "perplexity": doc_tables.perplexity_table(
            document_of("perplexity-storybook"), document_of("perplexity-random")
        ),
        "lean_texts": doc_tables.texts_table(lean),
        "lean_quality": doc_tables.quality_tables(lean),
        "lean_models": doc_tables.recipes_table(*(document_of(f"lean-{name}") for name in LEAN_MODELS)),
        "lean_speeds": doc_tables.speeds_table(speeds),
        "lean_large": doc_tables.large_models_table(document_of("lean-large")),
        "servers": serving_tables.servers_table(document_of("servers")),
        "models": serving_tables.models_table(document_of("models")),
        "disturb": serving_tables.disturb_table(document_of("disturb")),
        "batch": serving_tables.batch_table(*map(document_of, ("batch", "batch-ray"))),
        "presets": doc_tables.presets_table(),
    }


def document_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((BENCH / f"{name}.json").read_text("utf-8"))
    return found


def filled(path: Path, blocks: dict[str, list[str]]) -> str:
    """The page with its tables replaced; sentences are wrapped, rows of tables and the output of programs are not."""
    text = path.read_text("utf-8")
    for name in re.findall(r"<!-- (\w+) -->", text):
        lines = blocks[name]
        if not lines[0].startswith("```"):
            lines = [line if line.startswith("|") else wrapped(line) for line in lines]
        block = "\n".join([f"<!-- {name} -->", *lines, f"<!-- /{name} -->"])
        text, count = re.subn(f"<!-- {name} -->.*?<!-- /{name} -->", lambda _, b=block: b, text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{path.name} has {count} places for the table {name!r}")
    return text


def wrapped(line: str) -> str:
    return textwrap.fill(line, 120, subsequent_indent="  " * line.startswith("- "), break_on_hyphens=False)


def fenced(text: str) -> str:
    return f"```\n{text.strip()}\n```\n"


if __name__ == "__main__":
    main()
