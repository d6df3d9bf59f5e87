"""Writes what in the documents comes from the code or from a measurement: `docs/cli.md`, and the README's tables.

usage: generate_docs.py [--check]

With --check it writes nothing, and fails when something is stale. The README's benchmark is that of
`docs/bench/storybook.json`, a `bench.json` as the command that stands above the table wrote it.
"""

import json
import re
import sys
from pathlib import Path

from dgpt2_quant.bench.report import COLUMNS, markdown_table, remarks, table_rows
from dgpt2_quant.cli.main import VERBS, app
from dgpt2_quant.quantize.quant_types import QUANT_TYPES
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    check = "--check" in sys.argv[1:]
    pages = {ROOT / "docs" / "cli.md": cli_page(), ROOT / "README.md": readme(ROOT / "README.md")}
    stale = [path for path, text in pages.items() if not path.is_file() or path.read_text("utf-8") != text]
    if check and stale:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        raise SystemExit(f"stale: {names}; write them anew with `make docs`")
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
        "## Exit status\n\n0 done, 1 a clear error, 2 wrong usage, 130 interrupted. Errors go to stderr as `Error:` and"
        " `Hint:`;\n`DGPT2_QUANT_DEBUG=1` shows the traceback too. stdout has nothing but the result.\n"
    )
    return "\n".join(parts)


def readme(path: Path) -> str:
    text = path.read_text("utf-8")
    document = json.loads((ROOT / "docs" / "bench" / "storybook.json").read_text("utf-8"))
    types = [
        [f"`{t.name.lower()}`", " ".join(f"`{a}`" for a in t.aliases), f"{t.bits_per_weight:g}", t.description]
        for t in QUANT_TYPES.values()
    ]
    tables = {
        "types": markdown_table(["type", "alias", "bits per weight", "what it is"], types),
        "bench": [*markdown_table(COLUMNS, table_rows(document)), "", *remarks(document)],
    }
    for name, lines in tables.items():
        block = "\n".join([f"<!-- {name} -->", *lines, f"<!-- /{name} -->"])
        text, count = re.subn(f"<!-- {name} -->.*?<!-- /{name} -->", lambda _, b=block: b, text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{path.name} has {count} places for the table {name!r}")
    return text


def fenced(text: str) -> str:
    return f"```\n{text.strip()}\n```\n"


if __name__ == "__main__":
    main()
