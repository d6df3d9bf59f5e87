"""Draws the plots of docs/quantization.md from what measure_lean.py and measure_roundings.py wrote.

usage: draw_lean.py FOLDER [--png]

Reads FOLDER/lean.json and FOLDER/roundings.json, writes FOLDER/lean-*.svg; a plot whose numbers are not there is left
out. Where DistilGPT2's bytes are follows from the code. With --png each is written as PNG too, to look at.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from dgpt2_quant.bench.report.plot_axes import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PALE,
    PAPER,
    PURPLE,
    RED,
    SKY,
    STYLE,
    draw_legend,
    drawable,
    empty_axes,
    log_ticks,
)
from dgpt2_quant.bench.report.plot_labels import label_points
from lean_tables import preset_sizes

LEVEL_COLOURS = {"Q3_K_M": PURPLE, "Q4_0": SKY, "Q4_K_M": BLUE, "Q5_K_M": ORANGE, "Q6_K": RED}
KINDS = {  # of files: marker, colour, in words
    "stock": ("o", BLUE, "stock, importance matrix"),
    "level": ("D", GREEN, "lean"),
    "searched": ("s", RED, "lean, searched"),
}
SAME = {"equal": "searched"}  # drawn alike


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--png", action="store_true")
    arguments = parser.parse_args()
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("plots need matplotlib: install it with `uv pip install matplotlib`") from None
    matplotlib.rcParams.update(STYLE)
    figures = {"presets": presets()}
    if roundings_json := read(arguments.folder / "roundings.json"):
        figures["roundings"] = roundings(roundings_json)
    if lean_json := read(arguments.folder / "lean.json"):
        for number, text in enumerate(lean_json["texts"], 1):
            figures[f"size_kld-{number}"] = size_kld(lean_json, text["name"])
        if any(file["kind"] == "ablated" for file in lean_json["files"]):
            figures["steps"] = steps(lean_json, lean_json["texts"][0]["name"])
    for name, figure in figures.items():
        figure.savefig(arguments.folder / f"lean-{name}.svg", metadata={"Date": None, "Creator": None})
        if arguments.png:
            figure.savefig(arguments.folder / f"lean-{name}.png")


def read(path: Path) -> Any:
    if path.is_file():
        return json.loads(path.read_text("utf-8"))
    print(f"there is no {path}", file=sys.stderr)
    return None


def presets() -> Any:
    """Where the bytes are, as bars."""
    sizes = preset_sizes()
    about: Any = {"model": {"name": "DistilGPT2's shape"}}
    figure, axes = empty_axes("Where the bytes are", about, height=1.5 + 0.32 * len(sizes), left=0.16)
    parts = (("embedding", RED, "embedding"), ("positions", ORANGE, "position table"), ("blocks", BLUE, "blocks"))
    for place, row in enumerate(sizes):
        left = 0.0
        for key, colour, _ in parts:
            axes.barh(place, row[key] / 1e6, left=left, height=0.68, color=colour, edgecolor=PAPER, linewidth=0.8)
            if key != "positions":
                box = {"facecolor": PAPER, "linewidth": 0, "pad": 1.2}  # readable on any colour
                kind = f"{row['type']} " if key == "embedding" else ""
                words = f"{kind}{row[key] / 1e6:.1f}"
                axes.text(left + 0.8, place, words, va="center", fontsize=8.5, bbox=box)
            left += row[key] / 1e6
        axes.text(left + 0.6, place, f"{left:.1f}", va="center", fontsize=9, color=INK)
    axes.set_yticks(range(len(sizes)), [row["name"] for row in sizes])
    axes.set_ylim(len(sizes) - 0.4, -0.6)
    axes.set_xlim(0, 1.08 * max(row["embedding"] + row["positions"] + row["blocks"] for row in sizes) / 1e6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("MB, without metadata and tokenizer")
    draw_legend(axes, [("s", colour, words) for _, colour, words in parts])
    return figure


def roundings(document: Any) -> Any:
    """For each part and type: the divergence of rounded weights, and with rounded activations."""
    rows = document["roundings"]
    names = {"blk": "blocks", "token_embd": "embedding"}
    figure, axes = empty_axes("Weights and activations", document, height=1.5 + 0.27 * len(rows), left=0.2)
    for place, row in enumerate(rows):
        weights, both = (row[key]["kld"]["value"] for key in ("weights", "both"))
        axes.plot([weights, both], [place, place], color=PALE, linewidth=1.5, zorder=1.5)
        axes.plot([both], [place], marker="D", color=RED, markersize=7, markeredgecolor=PAPER)
        axes.plot([weights], [place], marker="o", color=BLUE, markersize=5, markeredgecolor=PAPER)
    values = [row[key]["kld"]["value"] for row in rows for key in ("weights", "both")]
    axes.set_xscale("log")
    axes.set_xlim(low := min(values) / 1.4, high := max(values) * 1.4)
    log_ticks(axes.xaxis, low, high)
    axes.set_yticks(range(len(rows)), [f"{names.get(row['part'], row['part'])} {row['type']}" for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("mean KL divergence from F32, nats")
    draw_legend(axes, [("o", BLUE, "weights rounded"), ("D", RED, "activations too")])
    return figure


def size_kld(document: Any, text: str) -> Any:
    """Size against KL divergence on one text, with the lines of stock and searched files."""
    figure, axes = empty_axes("Size against KL divergence", document, height=5.2)
    labels: list[tuple[tuple[float, float], str]] = []
    drawn = [file | {"kind": SAME.get(file["kind"], file["kind"])} for file in document["files"]]
    drawn = sorted((file for file in drawn if file["kind"] in KINDS), key=lambda file: file["bytes"])
    shown = []
    for kind, (marker, colour, words) in KINDS.items():
        files = [file for file in drawn if file["kind"] == kind]
        if not files:
            continue
        shown.append((marker, colour, words))
        found = [file["quality"][text]["kld"] for file in files]
        xs, ys = [file["bytes"] / 1e6 for file in files], [kld["value"] for kld in found]
        line = "none" if kind == "level" else "-"
        axes.plot(xs, ys, color=colour, marker=marker, linestyle=line, markersize=6.5, markeredgecolor=PAPER, zorder=3)
        axes.vlines(xs, [kld["low"] for kld in found], [kld["high"] for kld in found], color=colour, linewidth=1)
        if kind != "searched":  # these stand below the stock files whose sizes they have
            labels += [((x, y), short(file["name"])) for x, y, file in zip(xs, ys, files, strict=True)]
    points = [point for point, _ in labels]
    values = [file["quality"][text]["kld"]["value"] for file in drawn]
    axes.set_yscale("log")
    axes.set_ylim(low := min(values) / 1.5, high := max(values) * 1.5)
    log_ticks(axes.yaxis, low, high)
    sizes = [file["bytes"] / 1e6 for file in drawn]
    axes.set_xlim(min(sizes) - 0.1 * (max(sizes) - min(sizes)), max(sizes) + 0.12 * (max(sizes) - min(sizes)))
    axes.set_xlabel(f"size, MB; scored on {drawable(text, 40)}")
    axes.set_ylabel("mean KL divergence from F32, nats")
    draw_legend(axes, shown)
    label_points(axes, points, [name for _, name in labels], INK, 8)
    return figure


def steps(document: Any, text: str) -> Any:
    """How the divergence grows when a step is left out, by size."""
    ablated = {file["name"]: file for file in document["files"] if file["kind"] == "ablated"}
    pairs = [pair for pair in document["pairs"] if pair["text"] == text and pair["a"] in ablated]
    rows = list(dict.fromkeys(tuple(file["without"]) for file in ablated.values()))
    names = [row[0] if len(row) == 1 else "all of them" for row in rows]
    figure, axes = empty_axes("KL divergence without a step", document, height=1.6 + 0.52 * len(rows), left=0.17)
    levels = list(dict.fromkeys(ablated[pair["a"]]["beside"] for pair in pairs))
    for pair in pairs:
        file, ratio = ablated[pair["a"]], pair["kld_ratio"]
        place = rows.index(tuple(file["without"])) + 0.14 * (levels.index(file["beside"]) - (len(levels) - 1) / 2)
        colour = LEVEL_COLOURS.get(file["beside"], INK)
        axes.plot([ratio["low"], ratio["high"]], [place, place], color=colour, linewidth=1.2)
        axes.plot([ratio["value"]], [place], color=colour, marker="o", markersize=5.5, markeredgecolor=PAPER)
    axes.axvline(1, color=INK, linewidth=1.2, linestyle="--", zorder=0.9)
    ends = [pair["kld_ratio"][end] for pair in pairs for end in ("low", "high")]
    axes.set_xscale("log")
    axes.set_xlim(low := min(0.9, *ends) / 1.05, high := max(1.2, *ends) * 1.1)
    log_ticks(axes.xaxis, low, high)
    axes.set_yticks(range(len(rows)), names)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"mean KL divergence, times that with all steps; {drawable(text, 40)}")
    draw_legend(axes, [("o", LEVEL_COLOURS.get(level, INK), level) for level in levels])
    return figure


def short(name: str) -> str:
    """Without the recipe, which the marker tells."""
    return name.removeprefix("stock ").removeprefix("lean ")


if __name__ == "__main__":
    main()
