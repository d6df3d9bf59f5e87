"""Places labels of points in a plot, each at the first free place around its point.

The places are tried in a fixed order, near ones first, so the same points give the same picture. A distant label has a
line to its point.
"""

from collections.abc import Sequence
from typing import Any

_NEAR = 7.0  # pixels at 72 dpi, from the point to its label
_RINGS = (1.0, 2.2, 3.8, 5.6, 7.6, 10.0, 13.0, 17.0)  # distances, times _NEAR
_SIDES = (
    (1, 0),
    (-1, 0),
    (0, 1),
    (0, -1),
    (1, 1),
    (-1, 1),
    (1, -1),
    (-1, -1),
    (1, 0.5),
    (-1, 0.5),
    (1, -0.5),
    (-1, -0.5),
)
_POINT = 4.5  # half the size of a marker

Box = tuple[float, float, float, float]


def label_points(axes: Any, points: Sequence[tuple[float, float]], names: Sequence[str], ink: str, size: float) -> None:
    """Writes each name next to its point (in data coordinates); the axes' limits must be final."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = axes.figure
    renderer = FigureCanvasAgg(figure).get_renderer()
    unit = figure.dpi / 72
    frame = axes.get_window_extent(renderer)
    spots = [tuple(axes.transData.transform(point)) for point in points]
    half = _POINT * unit
    taken: list[Box] = [(x - half, y - half, x + half, y + half) for x, y in spots]
    # from right to left, so that the crowded points at the small end are placed last, where there is room
    for index in sorted(range(len(points)), key=lambda i: (-spots[i][0], -spots[i][1], names[i])):
        text = axes.annotate(names[index], points[index], fontsize=size, color=ink, annotation_clip=False)
        extent = text.get_window_extent(renderer)
        text.remove()
        box, offset, far = _place(spots[index], extent.width, extent.height, unit, taken, frame)
        taken.append(box)
        arrow = {"arrowstyle": "-", "color": ink, "linewidth": 0.5, "alpha": 0.6, "shrinkA": 0, "shrinkB": 3}
        axes.annotate(
            names[index],
            points[index],
            xytext=(offset[0] / unit, offset[1] / unit),
            textcoords="offset points",
            fontsize=size,
            color=ink,
            ha="center",
            va="center",
            annotation_clip=False,
            arrowprops=arrow if far else None,
        )


def _place(
    spot: tuple[float, ...], width: float, height: float, unit: float, taken: Sequence[Box], frame: Any
) -> tuple[Box, tuple[float, float], bool]:
    """The label's box, its centre relative to the point, and whether it is far; the best one if none is free."""
    x, y = spot
    least: tuple[float, Box, tuple[float, float], bool] | None = None
    for ring in _RINGS:
        for right, up in _SIDES:
            away = _NEAR * unit * ring
            dx = right * (away + width / 2)
            dy = up * (away * 0.8 + height / 2)
            box = (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
            if box[0] < frame.x0 or box[2] > frame.x1 or box[1] < frame.y0 or box[3] > frame.y1:
                continue
            far = ring > _RINGS[0]
            hidden = sum(_overlap(box, other) for other in taken)
            if far:
                hidden += sum(_crosses(spot, (x + dx, y + dy), other) for other in taken)
            if hidden == 0:
                return box, (dx, dy), far
            if least is None or hidden < least[0]:
                least = hidden, box, (dx, dy), far
    if least is None:  # wider than the whole plot
        return (x, y, x, y), (0.0, height), False
    return least[1], least[2], least[3]


def _crosses(start: tuple[float, ...], end: tuple[float, float], box: Box) -> float:
    """How much of a line crosses a box, roughly, as an area; 0 for the box in which it starts."""
    if box[0] <= start[0] <= box[2] and box[1] <= start[1] <= box[3]:
        return 0.0
    steps = [
        (start[0] + (end[0] - start[0]) * part / 12, start[1] + (end[1] - start[1]) * part / 12) for part in range(9)
    ]
    return float(sum(box[0] <= x <= box[2] and box[1] <= y <= box[3] for x, y in steps))


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def spread(values: Sequence[float], least: float, most: float) -> list[float]:
    """The values in the same order, moved apart by at least `least`, none above `most`."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    moved = [values[index] for index in order]
    for _ in range(200):
        for index in range(len(moved) - 1):
            lack = least - (moved[index + 1] - moved[index])
            if lack > 1e-9:
                moved[index] -= lack / 2
                moved[index + 1] += lack / 2
    result = [0.0] * len(values)
    above = max(0.0, max(moved, default=most) - most)
    for place, index in enumerate(order):
        result[index] = moved[place] - above
    return result
