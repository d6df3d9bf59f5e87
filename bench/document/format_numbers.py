"""Formats numbers for reports, with the digits that are significant."""

from .blocks import visible
from .schema import BenchJson, Interval, RateJson, Result


def with_error(value: float, error: float) -> str:
    return f"{value:.3f} ± {error:.3f}"


DISTURBED = "†"  # marks a disturbed timing


def speed(rate: RateJson, disturbed: bool | None = False) -> str:
    """Tokens per second: median and range over the rounds."""
    return marked(f"{rate['median']:.0f} ({rate['min']:.0f}-{rate['max']:.0f})", disturbed)


def marked(cell: str, disturbed: bool | None) -> str:
    """The cell, with the mark if the timing was disturbed."""
    return f"{cell} {DISTURBED}" if disturbed else cell


def ratio(rate: RateJson) -> str:
    """The ratio of two speeds in the same round: median and range."""
    return f"{rate['median']:.2f} ({rate['min']:.2f}-{rate['max']:.2f})"


def small(value: float) -> str:
    """A KL divergence, or another number of any magnitude below some tens."""
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return f"{value:.1e}"
    return f"{value:.5f}" if abs(value) < 0.1 else f"{value:.3f}"


def percent(fraction: float, digits: int = 1) -> str:
    return f"{100 * fraction:.{digits}f} %"


def change(fraction: float, digits: int = 2) -> str:
    """A relative change, with its sign."""
    return f"{100 * fraction:+.{digits}f} %"


def with_interval(interval: Interval) -> str:
    """A value and its 95 % interval."""
    return f"{small(interval['value'])} ({small(interval['low'])} to {small(interval['high'])})"


def ratio_interval(interval: Interval) -> str:
    return f"{interval['value']:.4f} ({interval['low']:.4f} to {interval['high']:.4f})"


def full_name(type: str, recipe: str) -> str:
    """The name of a file: its quant type, and its recipe unless that is `stock`."""
    return type if recipe == "stock" else f"{type} {recipe}"


def name_of(result: Result) -> str:
    """The name of a result in `pairs`."""
    return full_name(result["type"], result["recipe"])


def label(result: Result) -> str:
    """The name of a result in a report."""
    return visible(name_of(result))


def of_several_runs(document: BenchJson) -> bool:
    """Whether the files were timed in different runs, so that their speeds cannot be compared directly."""
    return len({result["run"] for result in document["results"]}) > 1
