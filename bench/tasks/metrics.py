"""What a task is: items, what a model makes of each, and metrics of the sums over them.

Every metric is a function of one sum over items divided by another (a mean is a sum over a count). So its interval
comes from drawing items anew and summing (the bootstrap; Efron 1979), and the interval of a change between two levels
from the same draws for both: items are easy or hard for all levels alike, and a difference is far better known than
either value. Items that have something in common are drawn together, as blocks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime.model import Model

from .schema import MetricJson

_DRAWS = 2000
_AT_ONCE = 50  # draws whose counts are held in memory together
_SEED = 20190214
_TAILS = (0.025, 0.975)  # of 95 %
END_OF_TEXT = "<|endoftext|>"

FloatArray = npt.NDArray[np.float64]
Advance = Callable[[int, int], None]
"""Called with (items done, items in all)."""


@dataclass(frozen=True)
class Settings:
    """`limit`: only so many items, the first ones; `context` and `stride` of the windows of a text; whether special
    tokens are parsed in texts, and CRLF line ends kept in running text."""

    limit: int | None = None
    context: int | None = None
    stride: int | None = None
    parse_special: bool = True
    keep_crlf: bool = False


@dataclass(frozen=True)
class Metric:
    """`of` the quotient of the sums of two columns of a part, `column` and `over`."""

    column: int
    over: int
    of: Callable[[FloatArray], FloatArray] = np.asarray
    part: int = 0

    def values(self, sums: FloatArray) -> FloatArray:
        """Sums of shape (..., columns) to values of shape (...): infinite where they are too large for a double, NaN
        where there is nothing to divide by."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return self.of(sums[..., self.column] / sums[..., self.over])


@dataclass(frozen=True)
class Scores:
    """What a model made of the items: parts of shape (items, columns), what a task adds to a level's JSON, and the
    block (from 0) that each item is drawn with; None where each is drawn by itself."""

    parts: Sequence[FloatArray]
    details: dict[str, Any] = field(default_factory=dict)
    blocks: Sequence[int] | None = None

    def to_draw(self) -> list[FloatArray]:
        """The parts with a row for each thing that is drawn: an item, or the sum of a block."""
        if self.blocks is None:
            return list(self.parts)
        found = [np.zeros((max(self.blocks) + 1, part.shape[1])) for part in self.parts]
        for sums, part in zip(found, self.parts, strict=True):
            np.add.at(sums, np.asarray(self.blocks), part)
        return found


class Probe(Protocol):
    """A task with its data, ready to be put to one model after the other."""

    @property
    def metrics(self) -> Mapping[str, Metric]: ...

    def measure(self, model: Model, advance: Advance) -> Scores: ...


def first_token(model: Model) -> int:
    """The token that begins a text: `<|endoftext|>`. Raises `UsageError` for a model without it."""
    tokens = model.tokenize(END_OF_TEXT, add_special=False)
    if len(tokens) != 1:
        raise UsageError(f"{model.path} has no token {END_OF_TEXT}", "Texts are scored behind it; take a GPT-2.")
    return tokens[0]


def fit(model: Model, tokens: Sequence[int], behind: int) -> list[int]:
    """The last of a prefix's tokens, as many as fit the context before `behind` more. Raises `UsageError`."""
    room = model.positions - behind
    if room < 1:
        raise UsageError(f"{behind} tokens do not fit a context of {model.positions}", "Take a larger --ctx-size.")
    return list(tokens[-room:])


def common_prefix(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all begin with, so that each has at least one more."""
    length = min(map(len, texts)) - 1
    first = texts[0]
    return next((i for i in range(length) if any(text[i] != first[i] for text in texts)), max(length, 0))


def summarize(metrics: Mapping[str, Metric], scores: Scores, reference: Scores | None) -> dict[str, MetricJson]:
    """Each metric with its interval, and its change against the reference with that one's. Null are intervals where a
    single item (or block) has anything of what the metric is divided by, changes against nothing, and whatever is no
    finite number."""
    parts = scores.to_draw()
    drawn = [_drawn_sums(part) for part in parts]
    base = None if reference is None else [_drawn_sums(part) for part in reference.to_draw()]
    found: dict[str, MetricJson] = {}
    for name, metric in metrics.items():
        part, sums = parts[metric.part], drawn[metric.part]
        value, values = float(metric.values(part.sum(axis=0))), metric.values(sums)
        there = sums[:, metric.over] != 0  # a draw may have no item of some kind
        alone = np.count_nonzero(part[:, metric.over]) < 2
        low, high = (None, None) if alone else _interval(values[there])
        change = change_low = change_high = None
        if base is not None and reference is not None:
            with np.errstate(invalid="ignore"):  # two infinite values
                change = _finite(value - float(metric.values(reference.parts[metric.part].sum(axis=0))))
                changes = (values - metric.values(base[metric.part]))[there]
            change_low, change_high = (None, None) if alone or change is None else _interval(changes)
        found[name] = {
            "value": _finite(value),
            "low": low,
            "high": high,
            "change_against_f16": change,
            "change_low": change_low,
            "change_high": change_high,
        }
    return found


def _drawn_sums(part: FloatArray) -> FloatArray:
    """The sums over items drawn with replacement, shape (draws, columns). The draws depend on the number of items
    alone: two levels have the same."""
    count = len(part)
    random, shares = np.random.default_rng(_SEED), np.full(count, 1 / count)
    draws = [random.multinomial(count, shares, size=_AT_ONCE) @ part for _ in range(_DRAWS // _AT_ONCE)]
    return np.concatenate(draws)


def _interval(values: FloatArray) -> tuple[float | None, float | None]:
    """Both ends or neither: to leave out what overflows would make the interval narrower than it is."""
    with np.errstate(invalid="ignore"):  # between two infinite values
        low, high = np.quantile(values, _TAILS)
    return (float(low), float(high)) if np.isfinite([low, high]).all() else (None, None)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
