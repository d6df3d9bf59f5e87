"""Draws the plots of the report with matplotlib (the extra `report`), as PNG and SVG.

They are drawn on figure objects, without pyplot and its global state. The same document and version of matplotlib give
the same bytes. Every series has a label or marker in addition to its colour.
"""

import io
import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

from dgpt2_quant.bench.document.format_numbers import label, name_of, of_several_runs
from dgpt2_quant.bench.document.schema import BenchJson, RateJson, Result

from .advice import WITHIN, recommend
from .plot_axes import (
    BLUE,
    GREEN,
    HEIGHT,
    INK,
    ORANGE,
    PALE,
    PAPER,
    PURPLE,
    RED,
    SKY,
    STYLE,
    draw_legend,
    draw_markers,
    drawable,
    empty_axes,
    log_ticks,
    set_limits,
    with_kld_axis,
)
from .plot_labels import label_points, spread

PLOTS = ("size_kld", "speed_kld", "perplexity", "batch", "peers")
CAPTIONS = {
    "size_kld": "Size and KL divergence: lower and further left is better.",
    "speed_kld": "Decode speed and KL divergence: lower and further right is better. The line joins the files that no"
    " other file beats in both; thin lines are the range over the rounds.",
    "perplexity": "Perplexity with the 95 % interval of its ratio to the reference's, the dashed line. The band is"
    " within 1 % of the reference; squares are files outside it.",
    "batch": "Decode speed of all sequences together, by batch size.",
    "peers": "Decode speed at batch 1, divided by the reference's in the same round; thin lines are the range over the"
    " rounds.",
}
_CURVES = 8  # files in the plot by batch size


def draw_plots(document: BenchJson) -> dict[str, bytes]:
    """The image files by name (`size_kld.png`, ...), without plots that lack data. Empty without matplotlib."""
    if find_spec("matplotlib") is None or not document["results"]:
        return {}
    import matplotlib

    draw: dict[str, Callable[[BenchJson], Any]] = {
        "size_kld": _size_kld,
        "speed_kld": _speed_kld,
        "perplexity": _perplexity,
        "batch": _batch,
        "peers": _peers,
    }
    files = {}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's style must not change the report
        matplotlib.rcParams.update(STYLE)
        for name in PLOTS:
            if (figure := draw[name](document)) is not None:
                files[f"{name}.png"] = _saved(figure, "png", {"Software": None})
                files[f"{name}.svg"] = _saved(figure, "svg", {"Date": None, "Creator": None})
    return files


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the points (speed, KL divergence) that no other point beats, the fastest first."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (-points[i][0], points[i][1])):
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front


def batch_curves(document: BenchJson) -> dict[str, list[tuple[int, RateJson]]]:
    """Each file's decode speeds by batch size, for the setting (tokens, depth, threads) with the most batch sizes."""
    points = [(row, point) for row in document["results"] for point in row["speed"] if point["measure"] == "decode"]
    batches: dict[tuple[int, int, int], set[int]] = {}
    for _, point in points:
        batches.setdefault((-point["depth"], point["threads"], point["tokens"]), set()).add(point["batch"])
    if not batches or max(map(len, batches.values())) < 2:
        return {}
    setting = max(batches, key=lambda key: (len(batches[key]), key))
    curves: dict[str, dict[int, RateJson]] = {}
    for row, point in points:
        if (-point["depth"], point["threads"], point["tokens"]) == setting:
            curves.setdefault(label(row), {})[point["batch"]] = point["tps"]
    return {name: sorted(curve.items()) for name, curve in curves.items() if len(curve) > 1}


def _size_kld(document: BenchJson) -> Any:
    rows = document["results"]
    figure, axes = empty_axes("Size and KL divergence", document, height=_height(rows))
    points = with_kld_axis(axes, document, [row["bytes"] / 1e6 for row in rows], left=True)
    draw_markers(axes, rows, points, ["o"] * len(rows), [BLUE] * len(rows))
    axes.set_xlabel("size, MB")
    set_limits(axes, [x for x, _ in points], logarithmic=True)
    label_points(axes, points, [_short(row) for row in rows], INK, _label_size(rows))
    return figure


def _speed_kld(document: BenchJson) -> Any:
    rows = document["results"]
    several = of_several_runs(document)
    rates = [row["decode_ratio"] if several else row["decode_tps"] for row in rows]
    figure, axes = empty_axes("Decode speed and KL divergence", document, height=_height(rows))
    points = with_kld_axis(axes, document, [rate["median"] for rate in rates])
    front = pareto([(x, row["kld_mean"]) for (x, _), row in zip(points, rows, strict=True)])
    on_front = [index in front for index in range(len(rows))]
    colours = [RED if best else BLUE for best in on_front]
    for (_, y), rate, colour in zip(points, rates, colours, strict=True):
        axes.plot([rate["min"], rate["max"]], [y, y], color=colour, alpha=0.35, linewidth=1, zorder=1.5)
    axes.plot(*zip(*(points[index] for index in front), strict=True), color=RED, linewidth=1.2, zorder=2)
    draw_markers(axes, rows, points, ["D" if best else "o" for best in on_front], colours)
    draw_legend(axes, [("D", RED, "Pareto front"), ("o", BLUE, "beaten in both")])
    base = drawable(document["reference"]["type"])
    axes.set_xlabel(f"decode speed, times {base}'s in the same round" if several else "decode speed, tokens/s, batch 1")
    set_limits(axes, [rate[end] for rate in rates for end in ("min", "max")])
    label_points(axes, points, [_short(row) for row in rows], INK, _label_size(rows))
    return figure


def _perplexity(document: BenchJson) -> Any:
    rows, reference = document["results"], document["reference"]
    base = reference["perplexity"]
    figure, axes = empty_axes("Perplexity by file", document, height=max(2.6, 1.5 + 0.26 * len(rows)))
    places = range(len(rows))
    for place, row in zip(places, rows, strict=True):
        low, high = (row["ppl_ratio_interval"][end] * base for end in ("low", "high"))
        good = row["ppl_ratio"] <= WITHIN
        colour = BLUE if good else RED
        axes.plot(
            [low, high], [place, place], color=colour, linewidth=2, solid_capstyle="butt", marker="|", markersize=7
        )
        axes.plot([row["perplexity"]], [place], color=colour, marker="o" if good else "s", markersize=6)
    axes.axvspan(base, base * WITHIN, color=GREEN, alpha=0.13, linewidth=0)
    axes.axvline(base, color=INK, linewidth=1.2, linestyle="--")
    largest = max(row["ppl_ratio_interval"]["high"] for row in rows) * base
    if largest > 3 * base:
        least = min(base, *(row["ppl_ratio_interval"]["low"] * base for row in rows))
        limits = max(least, base / 10) / 1.05, largest * 1.05
        axes.set_xscale("log")
        axes.set_xlim(*limits)
        log_ticks(axes.xaxis, *limits)
    axes.set_yticks(list(places), [drawable(label(row)) for row in rows], fontsize=_label_size(rows) + 1)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    name, error = drawable(reference["type"]), reference["perplexity_stderr"]
    axes.set_xlabel(f"perplexity; dashed: {name}, {base:.3f} (± {error:.3f} for the choice of the text, shared by all)")
    return figure


def _batch(document: BenchJson) -> Any:
    from matplotlib.ticker import NullFormatter, NullLocator

    curves = batch_curves(document)
    if not curves:
        return None
    several = of_several_runs(document)
    names = _chosen_curves(document, list(curves))
    figure, axes = empty_axes("Decode speed by batch size", document, right=0.86)
    colours, markers, ends = [BLUE, RED, GREEN, ORANGE, PURPLE, SKY, INK, PALE], "osD^vPX*", []
    for name, colour, marker in zip(names, colours, markers, strict=False):
        batches = [batch for batch, _ in curves[name]]
        unit = curves[name][0][1]["median"] if several else 1.0
        speeds = [rate["median"] / unit for _, rate in curves[name]]
        axes.plot(batches, speeds, color=colour, marker=marker, markersize=6, linewidth=1.6)
        axes.vlines(
            batches,
            [rate["min"] / unit for _, rate in curves[name]],
            [rate["max"] / unit for _, rate in curves[name]],
            color=colour,
            linewidth=1,
            alpha=0.6,
        )
        ends.append((batches[-1], speeds[-1], colour))
    ticks = sorted({batch for name in names for batch, _ in curves[name]})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(bottom=0)
    top = axes.get_ylim()[1]
    places = spread([y for _, y, _ in ends], 0.047 * top, top)
    for name, (x, y, colour), place in zip(names, ends, places, strict=True):
        axes.annotate(
            drawable(name, 14),
            (x, y),
            xytext=(1.015, place),
            textcoords=("axes fraction", "data"),
            color=INK,
            va="center",
            fontsize=9,
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 4},
        )
    some = f" ({len(names)} of {len(curves)} files)" if len(names) < len(curves) else ""
    axes.set_xlabel(f"sequences decoded at once{some}")
    axes.set_ylabel("times the file's speed at the smallest batch" if several else "tokens/s of all sequences")
    return figure


def _peers(document: BenchJson) -> Any:
    if not document["peers"]:
        return None
    names = _chosen_curves(document, [label(row) for row in document["results"]])
    rows = [row for row in document["results"] if label(row) in names]
    bars: list[tuple[str, RateJson, str, str]] = [(drawable(label(row)), row["decode_ratio"], BLUE, "") for row in rows]
    for peer in document["peers"]:
        hatch = "////" if peer["sane"] is False else ""
        bars.append((drawable(f"{peer['name']} {peer['precision']}", 30), peer["decode_ratio"], ORANGE, hatch))
    bars.sort(key=lambda bar: -bar[1]["median"])
    figure, axes = empty_axes("Decode speed compared with peers", document, height=1.5 + 0.27 * len(bars), left=0.29)
    furthest = max(rate["max"] for _, rate, _, _ in bars)
    for place, (_, rate, colour, hatch) in enumerate(bars):
        axes.barh(place, rate["median"], height=0.66, color=colour, hatch=hatch, edgecolor=PAPER, linewidth=0)
        axes.plot([rate["min"], rate["max"]], [place, place], color=INK, linewidth=1)
        box = {"facecolor": PAPER, "linewidth": 0, "pad": 1}
        axes.text(rate["max"] + furthest / 80, place, f"{rate['median']:.2f}", va="center", fontsize=9, bbox=box)
    axes.axvline(1, color=INK, linewidth=1, linestyle="--", zorder=0.9)
    axes.set_yticks(range(len(bars)), [name for name, *_ in bars])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, furthest * 1.1)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(f"decode speed, times that of {drawable(document['reference']['type'])} in the same round")
    doubtful = any(hatch for *_, hatch in bars)
    draw_legend(axes, [("s", BLUE, "these files"), ("s", ORANGE, "peers" + ", hatched: output not sane" * doubtful)])
    return figure


def _chosen_curves(document: BenchJson, names: Sequence[str]) -> list[str]:
    """The names that fit a plot: the recommended ones, then evenly from the largest to the smallest file."""
    if len(names) <= _CURVES:
        return list(names)
    rows = [row for row in document["results"] if label(row) in names]
    recommended = set(recommend(rows).values())
    wanted = [label(row) for row in rows if name_of(row) in recommended][:_CURVES]
    ordered = [label(row) for row in sorted(rows, key=lambda row: -row["bytes"]) if label(row) not in wanted]
    room = _CURVES - len(wanted)
    wanted += [ordered[math.floor(index * (len(ordered) - 1) / max(1, room - 1))] for index in range(room)]
    return [name for name in names if name in wanted]


def _short(row: Result) -> str:
    name = drawable(label(row))
    return name if row["kld_mean"] > 0 else f"{name} (0)"


def _height(rows: Sequence[Result]) -> float:
    return HEIGHT if len(rows) <= 12 else 6.4


def _label_size(rows: Sequence[Result]) -> float:
    return 9.0 if len(rows) <= 12 else 7.5


def _saved(figure: Any, kind: str, metadata: dict[str, None]) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format=kind, metadata=metadata)
    return file.getvalue()
