"""The plots: which there are, that they say what the document does, and that the same document gives the same bytes."""

import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from typing import Any

import pytest
from dgpt2_quant.bench.report import plots
from dgpt2_quant.bench.report.plot_labels import label_points, spread
from dgpt2_quant.bench.report.plots import PLOTS, batch_curves, draw_plots, pareto
from dgpt2_quant.core.quant_types import QUANT_TYPES

from ..documents import document, peer, rate, result

LEVELS = [
    result("Q8_0", bytes=8_000_000, kld_mean=5e-4, decode_tps=rate(300)),
    result("Q5_0", bytes=6_000_000, kld_mean=4e-3, decode_tps=rate(290)),
    result("Q4_0", bytes=5_000_000, kld_mean=9e-3, decode_tps=rate(400), ppl_ratio=1.02),
]
ALL = document(*LEVELS, peers=[peer("Other $x$", sane=False)])


def drawn(svg: bytes) -> str:
    """The texts of a drawing, which matplotlib writes as comments next to the outlines."""
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))
    return "\n".join(str(node.text) for node in ET.fromstring(svg, parser).iter() if node.tag is ET.Comment)


def crowd() -> list[Any]:
    return [
        result(name, bytes=2_000_000 + 40_000 * number, kld_mean=0.1 / (number + 1), decode_tps=rate(300 + number % 7))
        for number, name in enumerate(QUANT_TYPES)
    ]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return draw_plots(ALL)


@pytest.fixture
def _sizes_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A drawing takes a tenth of a second, and there are ten of them."""
    monkeypatch.setattr(plots, "PLOTS", ("size_kld",))


def test_plots_are_deterministic(files: dict[str, bytes]) -> None:
    assert list(files) == [f"{name}.{kind}" for name in PLOTS for kind in ("png", "svg")]
    assert draw_plots(ALL) == files
    for name in PLOTS:
        png = files[f"{name}.png"]
        assert png.startswith(b"\x89PNG")
        width, height = struct.unpack(">II", png[16:24])
        assert 900 <= width <= 1400, "as wide as a README shows it, or a little more"
        assert height <= 1.5 * width
        assert ET.fromstring(files[f"{name}.svg"]).tag.endswith("svg")
        for kind in ("png", "svg"):
            assert b"dc:date" not in files[f"{name}.{kind}"]


def test_texts_in_the_plots(files: dict[str, bytes]) -> None:
    for name in ("size_kld", "speed_kld", "perplexity", "batch", "peers"):
        text = drawn(files[f"{name}.svg"])
        assert "tiny" in text
        assert all(row["type"] in text for row in LEVELS), name
    assert "noise floor: 1.0e-09, below this plot" in drawn(files["size_kld.svg"])
    assert "Other $x$ F32" in drawn(files["peers.svg"])  # no mathematics
    assert "hatched" in drawn(files["peers.svg"])


@pytest.mark.usefixtures("_sizes_only")
def test_a_near_noise_floor_is_a_line() -> None:
    floor = {**document()["noise_floor"], "kld_mean": 1e-4}
    near, without = (draw_plots(document(*LEVELS, noise_floor=f))["size_kld.svg"] for f in (floor, None))
    assert "noise floor" in drawn(near)
    assert "below this plot" not in drawn(near)
    assert "noise floor" not in drawn(without)


@pytest.mark.parametrize(
    "rows",
    [
        [result("Q4_0")],
        [result("F32", kld_mean=0.0), result("F16", kld_mean=0.0)],  # nothing for a logarithm
        [result("F32", kld_mean=0.0), result("IQ1_S", kld_mean=7.5, ppl_ratio_interval=rate(900.0) | {"value": 900.0,
         "low": 800.0, "high": 1000.0})],
        [result("Q4_0"), result("Q4_0", recipe="lean")],
        crowd(),
        [result("x" * 400 + "\n\x1b<b>&$_^{"), result("雪" * 9)],
    ],
    ids=["one", "zeros", "far", "recipes", "all", "hostile"],
)  # fmt: skip
def test_unusual_documents_can_be_drawn(rows: list[Any]) -> None:
    files = draw_plots(document(*rows))
    assert "size_kld.png" in files
    if rows[0]["kld_mean"] == 0:
        assert "F32 (0)" in drawn(files["size_kld.svg"])


def test_plots_without_data_are_omitted() -> None:
    files = draw_plots(document(*({**row, "speed": []} for row in LEVELS)))
    assert sorted({name.split(".")[0] for name in files}) == ["perplexity", "size_kld", "speed_kld"]
    assert draw_plots(document()) == {}


def test_without_matplotlib_there_are_no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert draw_plots(ALL) == {}


def test_matplotlib_loads_only_when_something_is_drawn() -> None:
    code = f"import sys, {plots.__name__}; print('matplotlib' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_drawing_keeps_the_settings_of_matplotlib(files: dict[str, bytes]) -> None:
    import matplotlib

    with matplotlib.rc_context({"font.size": 23.0}):
        inside = draw_plots(ALL)["perplexity.png"]
        assert matplotlib.rcParams["font.size"] == 23.0
    assert files["perplexity.png"] == inside
    assert "matplotlib.pyplot" not in sys.modules


def test_the_pareto_front() -> None:
    assert pareto([(300, 5e-4), (290, 4e-3), (400, 9e-3)]) == [2, 0]
    assert pareto([(300, 1.0), (300, 0.5)]) == [1]
    assert pareto([(1, 1.0), (2, 0.5), (3, 0.1)]) == [2]


def test_batch_curves_are_of_one_setting() -> None:
    def point(batch: int, depth: int, tps: float, measure: str = "decode") -> Any:
        return {**LEVELS[0]["speed"][0], "batch": batch, "depth": depth, "tps": rate(tps), "measure": measure}

    points = [point(8, 0, 80), point(1, 0, 10), point(1, 256, 9), point(4, 256, 30), point(4, 0, 40)]
    points.append(point(16, 0, 999, "prompt"))
    curves = batch_curves(document(result("Q4_0", speed=points), result("Q8_0", speed=points[:1])))
    assert {name: [(batch, found["median"]) for batch, found in curve] for name, curve in curves.items()} == {
        "Q4_0": [(1, 10), (4, 40), (8, 80)]
    }
    assert batch_curves(document(result("Q4_0", speed=points[:1]))) == {}


def test_labels_do_not_overlap() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    figure = Figure(figsize=(7.5, 6.4), dpi=100)
    axes = figure.add_axes((0.1, 0.1, 0.85, 0.8))
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    points = [(2 + 0.2 * number, 8 - 0.2 * number) for number in range(30)]
    label_points(axes, points, [f"LEVEL_{number}" for number in range(30)], "black", 7.5)
    renderer = FigureCanvasAgg(figure).get_renderer()
    for text in axes.texts:
        text.update_positions(renderer)
    boxes = [Text.get_window_extent(text, renderer) for text in axes.texts]  # without the lines to the points
    assert len(boxes) == 30
    overlaps = [(a, b) for a, one in enumerate(boxes) for b, other in enumerate(boxes[:a]) if one.overlaps(other)]
    assert overlaps == []


def test_spread_keeps_order_and_distance() -> None:
    moved = spread([5.0, 1.0, 5.1, 5.2], 1.0, 9.0)
    assert [moved.index(value) for value in sorted(moved)] == [1, 0, 2, 3]
    assert all(b - a >= 0.999 for a, b in zip(sorted(moved), sorted(moved)[1:], strict=False))
    assert spread([1.0, 9.0], 1.0, 9.0) == [1.0, 9.0]
    assert max(spread([8.9, 9.0], 1.0, 9.0)) == 9.0


@pytest.mark.usefixtures("_sizes_only")
def test_ticks_are_plain_numbers() -> None:
    one = drawn(draw_plots(document(result("Q4_0", kld_mean=0.00123)))["size_kld.svg"])
    assert "0.001" in one.split()
    assert "8e-4" in drawn(draw_plots(document(result("Q4_0", kld_mean=7e-4)))["size_kld.svg"]).split()
    wide = drawn(draw_plots(document(*crowd()))["size_kld.svg"])
    assert not any(mark in one + wide for mark in ("$", "times"))
