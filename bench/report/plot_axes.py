"""Common parts of the plots: colours, an empty figure, the axis of the KL divergence, markers, ticks, limits.

The colours are by Okabe and Ito (jfly.uni-koeln.de/color); colour-blind readers can distinguish them.
"""

import math
from collections.abc import Sequence
from typing import Any

from dgpt2_quant.bench.document.blocks import visible
from dgpt2_quant.bench.document.format_numbers import small
from dgpt2_quant.bench.document.schema import BenchJson, Result

# spelled as in the SVG, where a page in dark mode replaces them
INK, PALE, PAPER, GRID = "#24292e", "#6a7078", "#fefefe", "#d9dde1"
BLUE, RED, GREEN, ORANGE, PURPLE, SKY = "#0072b2", "#d55e00", "#009e73", "#e69f00", "#b8619a", "#56b4e9"
STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "text.parse_math": False,  # a dollar sign in a name is not markup
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": PALE,
    "axes.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "svg.hashsalt": "dgpt2-quant",
    "svg.fonttype": "path",  # the same look wherever it is shown
}
_WIDTH, HEIGHT, _DPI = 7.5, 4.6, 160
_FLOOR_NEAR = 30.0  # times below the smallest KL divergence; a lower noise floor is only written as text


def empty_axes(
    title: str, document: BenchJson, *, height: float = HEIGHT, left: float = 0.12, right: float = 0.975
) -> tuple[Any, Any]:
    """An empty figure with axes at a fixed place, so that labels can be laid out; `height` in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI)
    axes = figure.add_axes((left, 0.62 / height, right - left, 1 - 1.1 / height))
    name = drawable(document["model"]["name"], 30)
    figure.text(0.02, 1 - 0.15 / height, f"{title}: {name}", fontsize=11, va="top")
    return figure, axes


def with_kld_axis(
    axes: Any, document: BenchJson, xs: Sequence[float], *, left: bool = False
) -> list[tuple[float, float]]:
    """Makes y logarithmic, draws the noise floor, and returns each file's point; a divergence of 0 is at the bottom.

    The noise floor is labelled on the `left` or the right, where no files with a small divergence are.
    """
    rows, floor = document["results"], document["noise_floor"]
    positive = [row["kld_mean"] for row in rows if row["kld_mean"] > 0]
    bottom, top = (min(positive), max(positive)) if positive else (1e-6, 1e-3)
    axes.set_ylabel(f"mean KL divergence from {drawable(document['reference']['type'])}, nats")
    noise = floor["kld_mean"] if floor else 0.0
    near = bottom / _FLOOR_NEAR < noise < top * _FLOOR_NEAR
    if near:
        bottom, top = min(bottom, noise), max(top, noise)
    margin = max(1.5, (top / bottom) ** 0.08)
    foot = bottom / margin if len(positive) == len(rows) else bottom / margin**3
    axes.set_yscale("log")
    axes.set_ylim(foot, top * margin)
    log_ticks(axes.yaxis, foot, top * margin)
    x, side = (0.01, "left") if left else (0.995, "right")
    place = {"ha": side, "va": "bottom", "color": PALE, "fontsize": 9}
    if near:
        axes.axhline(noise, color=PALE, linewidth=1.1, linestyle=":")
        axes.text(x, noise, "noise floor", transform=axes.get_yaxis_transform(), **place)
    elif floor:
        below = f"noise floor: {small(noise)}" + (", below this plot" if noise < bottom else "")
        axes.text(x, 0.015, below, transform=axes.transAxes, **place)
    return [(x, row["kld_mean"] or foot * margin**0.8) for x, row in zip(xs, rows, strict=True)]


def draw_markers(
    axes: Any,
    rows: Sequence[Result],
    points: Sequence[tuple[float, float]],
    shapes: Sequence[str],
    colours: Sequence[str],
) -> None:
    for row, (x, y), shape, colour in zip(rows, points, shapes, colours, strict=True):
        if row["kld_mean"] > 0:
            style = {"marker": shape, "markersize": 7, "markeredgecolor": PAPER, "markeredgewidth": 0.6}
        else:
            style = {"marker": "v", "markersize": 7, "markerfacecolor": PAPER}
        axes.plot([x], [y], color=colour, linestyle="none", zorder=3, **style)


def draw_legend(axes: Any, entries: Sequence[tuple[str, str, str]]) -> None:
    """Draws the legend above the axes, where no labels are."""
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, marker=shape, linestyle="none") for shape, colour, _ in entries]
    texts = [text for *_, text in entries]
    place = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.985), "ncols": len(entries)}
    axes.legend(handles, texts, frameon=False, fontsize=9, labelcolor=INK, handletextpad=0, columnspacing=1.2, **place)


def set_limits(axes: Any, xs: Sequence[float], *, logarithmic: bool = False) -> None:
    """Sets the x limits with room for labels on both sides; a single value is in the middle."""
    low, high = min(xs), max(xs)
    if logarithmic and high > 2.5 * low:
        room = (high / low) ** 0.12
        axes.set_xscale("log")
        axes.set_xlim(low / room, high * room)
        log_ticks(axes.xaxis, low / room, high * room)
    else:
        room = 0.13 * (high - low) or 0.3 * high
        axes.set_xlim(max(0.0, low - room), high + room)


def log_ticks(axis: Any, low: float, high: float) -> None:
    """Sets ticks with plain numbers on a logarithmic axis, more of them on a short one."""
    from matplotlib.ticker import NullFormatter

    steps = (1, 1.5, 2, 3, 4, 5, 6, 8) if high < 10 * low else (1, 2, 5) if high < 100 * low else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**power for power in powers for step in steps]
    axis.set_ticks(shown := [tick for tick in ticks if low <= tick <= high], [_plain(tick) for tick in shown])
    axis.set_minor_formatter(NullFormatter())


def _plain(value: float) -> str:
    """0.001, but 1e-4."""
    return f"{value:g}" if value >= 9e-4 else f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")


def drawable(text: str, longest: int = 18) -> str:
    """A shortened name in Latin-1, which the plots' font has; other characters become question marks."""
    seen = visible(text).encode("latin-1", "replace").decode("latin-1")
    return seen if len(seen) <= longest else seen[: longest - 2] + ".."
