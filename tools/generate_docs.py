"""Writes what in the documents comes from the code or from a measurement: `docs/cli.md`, `docs/map.md`, and tables
in other pages.

usage: generate_docs.py [--check]

With --check it writes nothing, and fails when something is stale. Benchmarks are those of `docs/bench/*.json`, each a
`bench.json` as the command beside the table wrote it; `docs/bench/demo.txt` is what `make demo` printed.
"""

import argparse
import ast
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lean_tables
from dgpt2_quant.bench.report.markdown import markdown_table
from dgpt2_quant.bench.report.write_report import COLUMNS, remarks, table_rows
from dgpt2_quant.cli.main import VERBS, app
from dgpt2_quant.core.quant_types import QUANT_TYPES, QuantType
from typer.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
PAGES_WITH_TABLES = [
    ROOT / name
    for name in ("README.md", "docs/benchmarks.md", "docs/convert.md", "docs/performance.md", "docs/quantization.md")
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    pages = {ROOT / "docs" / "cli.md": cli_page(), ROOT / "docs" / "map.md": map_page()}
    pages |= {path: filled(path, tables()) for path in PAGES_WITH_TABLES}
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


FOLDERS = ("dgpt2_quant", "core", "quantize", "runtime", "bench", "cli", "demo", "tools")


def map_page() -> str:
    """A line on each file: the first sentence of its docstring."""
    lines = ["# The map", "", "Generated from the docstrings by `make docs`; a test fails when it is stale."]
    for top in FOLDERS:
        inside = sorted(path.parent for path in (ROOT / top).rglob("__init__.py"))
        for folder in inside or [ROOT / top]:
            about = first_line(folder / "__init__.py") if inside else "Run by hand or by CI; each answers --help."
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
    """What stands between `<!-- name -->` and `<!-- /name -->`."""
    return {
        "types": type_table(t for t in QUANT_TYPES.values() if t.ci),
        "all_types": type_table(QUANT_TYPES.values()),
        "versions": versions_table(document_of("versions")),
        "demo": fenced((ROOT / "docs" / "bench" / "demo.txt").read_text("utf-8")).splitlines(),
        "quantize": quantize_table("quantize", "quantize-imatrix"),
        "generation": generation_table(document_of("runtime")),
        "builds": builds_table(document_of("builds")),
        "pages": pages_table(document_of("runtime")),
        "guesses": guesses_table(document_of("lookup")),
        "depth": depth_table(document_of("runtime")),
        "overhead": overhead_table(document_of("overhead")),
        "governor": governor_table(document_of("governor")),
        "bench": bench_table("storybook"),
        "random": bench_table("distilgpt2-random"),
        "peers": peers_table(document_of("distilgpt2-random")),
        "perplexity": perplexity_table(*(document_of(f"perplexity-{name}") for name in ("storybook", "random"))),
        "divergence": divergence_table(document_of("perplexity-storybook")),
        "gate": gate_lines(document_of("gate")),
        "presets": lean_tables.presets_table(),
        "roundings": lean_tables.roundings_table(document_of("roundings")),
        "lean_texts": measured("lean", lean_tables.texts_table),
        "lean_quality": measured("lean", lean_tables.quality_tables),
        "lean_targets": measured("lean", lean_tables.targets_table),
        "lean_steps": measured("lean", lean_tables.steps_table),
        "lean_seconds": measured("lean-time", lean_tables.seconds_table),
        "lean_speeds": measured("lean-time", lean_tables.speeds_table),
    }


def measured(name: str, table: Callable[[Any], list[str]]) -> list[str]:
    """The table of a document; a word where that run is still to be made."""
    if not (ROOT / "docs" / "bench" / f"{name}.json").is_file():
        return ["Not measured yet."]
    return table(document_of(name))


def type_table(types: Iterable[QuantType]) -> list[str]:
    rows = [
        [
            f"`{t.name.lower()}`" + "".join(f", `{alias}`" for alias in t.aliases),
            f"{t.bits_per_weight:g}",
            t.description + ("; needs an importance matrix" if t.needs_imatrix else ""),
        ]
        for t in types
    ]
    return markdown_table(["type", "bits per weight", "what it is"], rows)


def bench_table(name: str) -> list[str]:
    document = document_of(name)
    return [*markdown_table(COLUMNS, table_rows(document)), "", *(f"- {remark}" for remark in remarks(document))]


def peers_table(document: Any) -> list[str]:
    """Decode speeds over the reference's in the same rounds, ours and the peers', the fastest first."""
    rows = [("dgpt2-quant", row["type"], row) for row in document["results"]]
    rows += [(f"{row['name']} {row['version']}", row["precision"], row) for row in document["peers"]]
    rows.sort(key=lambda row: -row[2]["decode_ratio"]["median"])
    columns = ["", "weights", "decode, tokens/s", "over our F32, same round", "prompt, tokens/s", "load ms", "peak MB"]
    return markdown_table(
        columns,
        [
            [
                name,
                precision,
                tps(row["decode_tps"]),
                f"{row['decode_ratio']['median']:.2f}",
                tps(row["prompt_tps"]) if row["prompt_tps"] else "",
                f"{row['load_ms']:.0f}" if row["load_ms"] else "",
                f"{row['peak_rss_bytes'] / 1e6:.0f}" if row["peak_rss_bytes"] else "",
            ]
            for name, precision, row in rows
        ],
    )


def perplexity_table(*documents: Any) -> list[str]:
    """Of what tools/compare_perplexity.py printed."""
    rows = []
    for document in documents:
        for found in document["perplexity"]:
            ratio = found["ratio"]
            rows.append(
                [
                    found["file"],
                    f"{found['perplexity']:.4f}",
                    f"{found['llama_perplexity']:.4f}",
                    f"{found['difference_percent']:+.4f} %",
                    f"{found['tps']:,}",
                    f"{found['llama_tps']:,}",
                    f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})",
                ]
            )
    columns = ["file", "perplexity", "llama-perplexity", "difference", "tokens/s", "llama-perplexity's", "ratio"]
    return markdown_table(columns, rows)


def divergence_table(document: Any) -> list[str]:
    """The same tool's figures of KL divergence: ours / as llama-perplexity prints it."""
    names = list(document["divergence"][0]["figures"])
    rows = [
        [name, *(f"{ours:.6f} / {theirs:.6f}" for ours, theirs in (f["figures"][name] for f in document["divergence"]))]
        for name in names
    ]
    return markdown_table(["figure", *(found["file"] for found in document["divergence"])], rows)


def gate_lines(document: dict[str, Any]) -> list[str]:
    """Of what tools/gate_trial.py printed."""
    planted = document["planted"]
    changes = [row["kld_change"] for row in planted]
    return [
        f"{document['flagged_of_the_same_build']} of {document['runs']} runs of the same build were flagged, speeds"
        f" included ({document['speeds_compared']} compared, {document['speeds_disturbed']} disturbed; tolerance"
        f" {document['speed_tolerance']:.0%}). Of {len(planted)} tensors that were planted one level lower, one at a"
        f" time, {sum(row['caught'] for row in planted)} were caught,"
        f" {sum(row['caught_by_quality'] for row in planted)} of them by their quality and the others by their lost"
        f" bits alone: the mean KL divergence moved by {min(changes):+.1%} to {max(changes):+.0%}, and fell for"
        f" {sum(change < 0 for change in changes)} of them, by luck."
    ]


def quantize_table(*names: str) -> list[str]:
    """Of what tools/time_quantize.py printed."""
    rows = []
    for name in names:
        document = document_of(name)
        for quant_type, result in document["types"].items():
            times = [
                f"{seconds['median']:.2f} ({seconds['min']:.2f}-{seconds['max']:.2f})"
                for seconds in (result["ours_s"], result["theirs_s"])
            ]
            rows.append([quant_type, *times, f"{result['ratio']:.2f}"])
    return markdown_table(["type", "`convert`, s", "`llama_model_quantize`, s", "speed ratio"], rows)


def generation_table(document: dict[str, Any]) -> list[str]:
    """Of what tools/time_runtime.py printed: each comparison with each peer."""
    rows = []
    for level, parts in document.items():
        if not isinstance(parts, dict):
            continue
        for part in ("decode", "prompt", "batch"):
            for name, found in parts[part].items():
                ours, *others = found["tps"]
                rows += [
                    [level, part, name, tps(found["tps"][ours]), other, tps(found["tps"][other]), f"{ratio:.2f}"]
                    for other, ratio in ((other, found["ratio"][other]) for other in others)
                ]
    return markdown_table(["level", "part", "", "ours, tokens/s", "peer", "tokens/s", "ratio"], rows)


def builds_table(document: dict[str, Any]) -> list[str]:
    """Of what tools/time_builds.py printed, by level."""
    rows, builds = [], []
    for level, places in document.items():
        for place, found in places.items():
            builds = list(found)
            rows.append([level, place, *(f"{found[name]['ms']:.2f} ({found[name]['ratio']:.2f})" for name in builds)])
    return markdown_table(["level", "position", *(f"{name}, ms" for name in builds)], rows)


def pages_table(document: dict[str, Any]) -> list[str]:
    rows = []
    for level, parts in document.items():
        if isinstance(parts, dict):
            load_ms = parts["pages"]["load_ms"]
            for setting in (name for name in parts["pages"] if name != "load_ms"):
                found = parts["pages"][setting]
                ratio = found["ratio"]["file mapped"]
                rows.append(
                    [level, setting, *map(tps, found["tps"].values()), f"{ratio:.2f}", *map(str, load_ms.values())]
                )
    columns = ["huge pages, tokens/s", "file mapped, tokens/s", "ratio", "load, ms", "mapped, ms"]
    return markdown_table(["level", "", *columns], rows)


def guesses_table(document: dict[str, Any]) -> list[str]:
    """Of what `tools/time_runtime.py --only lookup` printed, by model."""
    rows = [
        [
            name,
            *(tps(found["tps"][key]) for key in ("greedy", "greedy, lookup=0")),
            f"{found['ratio']['greedy, lookup=0']:.2f}",
            "{median} ({min}-{max})".format_map(found["tokens_per_decode"]),
            f"{found['same_texts']} of {found['texts']}",
        ]
        for name, found in document.items()
    ]
    columns = ["tokens/s", "`lookup=0`, tokens/s", "ratio", "tokens a decode", "same text"]
    return markdown_table(["model", *columns], rows)


def depth_table(document: dict[str, Any]) -> list[str]:
    rows, places = [], []
    for level, parts in document.items():
        if isinstance(parts, dict):
            for cache, found in parts["depth"].items():
                places = list(found["tps"])
                rows.append([level, cache, *map(tps, found["tps"].values()), f"{found['ratio']:.2f}"])
    first, *others = places
    columns = [f"at position {first}, tokens/s", *(f"at {place}" for place in others)]
    return markdown_table(["level", "cache", *columns, "last / first"], rows)


def overhead_table(document: dict[str, Any]) -> list[str]:
    """Of what tools/time_overhead.py printed."""
    columns = {"whole_ms": 2, "bare_ms": 2, "between_us": 0, "python_warm_us": 0}
    rows = [
        [name, *(f"{found[key]:.{digits}f}" for key, digits in columns.items())]
        for name, found in document["settings"].items()
    ]
    return markdown_table(
        ["setting", "ms a token", "of it a bare decode", "between decodes, us", "without them, us"], rows
    )


def governor_table(document: dict[str, Any]) -> list[str]:
    """Of what tools/time_governor.py printed."""
    rows = [
        [busy, *(tps(speed) for speed in found["tps"].values()), f"{found['of_best_fixed']:.2f}"]
        for busy, found in document["load"].items()
    ]
    names = [name if name == "auto" else f"{name} fixed" for name in document["load"]["0"]["tps"]]
    return markdown_table(["busy processes", *(f"{name}, tokens/s" for name in names), "auto / best fixed"], rows)


def versions_table(document: dict[str, Any]) -> list[str]:
    rows = [f"| {part} | {f['this']} | {f['other']} | {f['ratio']:.2f} |" for part, f in document["parts"].items()]
    return ["| what | this version | the one before | ratio |", "| --- | ---: | ---: | ---: |", *rows]


def tps(speed: dict[str, float]) -> str:
    return f"{speed['median']:.0f} ({speed['min']:.0f}-{speed['max']:.0f})"


def document_of(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "docs" / "bench" / f"{name}.json").read_text("utf-8"))
    return found


def filled(path: Path, blocks: dict[str, list[str]]) -> str:
    text = path.read_text("utf-8")
    for name in re.findall(r"<!-- (\w+) -->", text):
        block = "\n".join([f"<!-- {name} -->", *blocks[name], f"<!-- /{name} -->"])
        text, count = re.subn(f"<!-- {name} -->.*?<!-- /{name} -->", lambda _, b=block: b, text, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{path.name} has {count} places for the table {name!r}")
    return text


def fenced(text: str) -> str:
    return f"```\n{text.strip()}\n```\n"


if __name__ == "__main__":
    main()
