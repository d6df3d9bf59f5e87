"""How numbers are written for people: with as many digits as mean something."""

from .blocks import visible
from .schema import BenchJson, Interval, RateJson, Result


def with_error(value: float, error: float) -> str:
    return f"{value:.3f} ± {error:.3f}"


DISTURBED = "†"  # marks a timing during which other programs used the machine


def speed(rate: RateJson, disturbed: bool | None = False) -> str:
    """Tokens per second: median, and the range of the rounds."""
    return marked(f"{rate['median']:.0f} ({rate['min']:.0f}-{rate['max']:.0f})", disturbed)


def marked(cell: str, disturbed: bool | None) -> str:
    """With the mark of a disturbed timing where it is one."""
    return f"{cell} {DISTURBED}" if disturbed else cell


def ratio(rate: RateJson) -> str:
    """One speed over another, round by round: median, and the range."""
    return f"{rate['median']:.2f} ({rate['min']:.2f}-{rate['max']:.2f})"


def small(value: float) -> str:
    """A KL divergence, or another number that may be of any size below some tens."""
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
    """A value and its 95 % interval, all three written alike."""
    return f"{small(interval['value'])} ({small(interval['low'])} to {small(interval['high'])})"


def ratio_interval(interval: Interval) -> str:
    return f"{interval['value']:.4f} ({interval['low']:.4f} to {interval['high']:.4f})"


def full_name(type: str, recipe: str) -> str:
    """A level's name: its type, and its recipe when that is not the usual one."""
    return type if recipe == "stock" else f"{type} {recipe}"


def name_of(result: Result) -> str:
    """As pairs call it."""
    return full_name(result["type"], result["recipe"])


def label(result: Result) -> str:
    """To be read by people."""
    return visible(name_of(result))


def of_several_runs(document: BenchJson) -> bool:
    """Whether the levels were timed in different runs, so that their speeds can not be compared as they are."""
    return len({result["run"] for result in document["results"]}) > 1
