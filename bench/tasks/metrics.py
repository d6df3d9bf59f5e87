"""Metrics of tasks: computed from sums over the scores of items, with intervals.

Every metric is a function of sums over items, mostly of the quotient of two (a mean is a sum divided by a count). Its
interval is from bootstrap draws of the items (Efron 1979). The interval of a change between two files uses the same
draws for both: items are easy or hard for all files alike, so a difference is much more certain than either value.
Items that are not independent are drawn together, as blocks.
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
_AT_ONCE = 50  # draws in memory together
_SEED = 20190214
_TAILS = (0.025, 0.975)  # of 95 %
END_OF_TEXT = "<|endoftext|>"

FloatArray = npt.NDArray[np.float64]
Advance = Callable[[int, int], None]
"""Called with (items done, items in all)."""


@dataclass(frozen=True)
class Settings:
    """`limit` is the number of items, from the first; `context` and `stride` are for windows of a text; `parse_special`
    parses special tokens in texts, `keep_crlf` keeps CRLF in running text."""

    limit: int | None = None
    context: int | None = None
    stride: int | None = None
    parse_special: bool = True
    keep_crlf: bool = False


@dataclass(frozen=True)
class Metric:
    """A function `of` the sum of `column` divided by the sum of `over`, two columns of a part of the scores."""

    column: int
    over: int
    of: Callable[[FloatArray], FloatArray] = np.asarray
    part: int = 0

    def values(self, sums: FloatArray) -> FloatArray:
        """Values of shape (...) from sums of shape (..., columns): infinite on overflow, NaN for a division by 0."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return self.of(sums[..., self.column] / sums[..., self.over])


@dataclass(frozen=True)
class MacroF1:
    """The mean F1 score of `classes` classes, of those that occur. From the column `first` on, each class has its true
    positives; then each has the number of items that are labelled with it plus those predicted as it."""

    first: int
    classes: int
    over: int
    part: int = 0

    def values(self, sums: FloatArray) -> FloatArray:
        """Values of shape (...) from sums of shape (..., columns)."""
        middle, end = self.first + self.classes, self.first + 2 * self.classes
        hits, occurrences = sums[..., self.first : middle], sums[..., middle:end]
        with np.errstate(divide="ignore", invalid="ignore"):
            scores = np.where(occurrences > 0, 2 * hits / occurrences, 0)
            found: FloatArray = scores.sum(axis=-1) / (occurrences > 0).sum(axis=-1)
        return found


class Measure(Protocol):
    """A metric; `over` is a column that is 0 for items and draws that do not contribute."""

    @property
    def over(self) -> int: ...
    @property
    def part(self) -> int: ...
    def values(self, sums: FloatArray) -> FloatArray: ...


@dataclass(frozen=True)
class Scores:
    """A model's scores: parts of shape (items, columns), what a task adds to the JSON of a file, and the block (from 0)
    of each item; None if each item is a block."""

    parts: Sequence[FloatArray]
    details: dict[str, Any] = field(default_factory=dict)
    blocks: Sequence[int] | None = None

    def to_draw(self) -> list[FloatArray]:
        """The parts with one row per block."""
        if self.blocks is None:
            return list(self.parts)
        found = [np.zeros((max(self.blocks) + 1, part.shape[1])) for part in self.parts]
        for sums, part in zip(found, self.parts, strict=True):
            np.add.at(sums, np.asarray(self.blocks), part)
        return found


class Probe(Protocol):
    """A task with its data, which measures one model after another."""

    @property
    def metrics(self) -> Mapping[str, Measure]: ...

    def measure(self, model: Model, advance: Advance) -> Scores: ...


def first_token(model: Model) -> int:
    """The token before a text: that of the file if it states one, else `<|endoftext|>`.

    Raises `UsageError` for a model without it.
    """
    if model.first_token is not None:
        return model.first_token
    tokens = model.tokenize(END_OF_TEXT, add_special=False)
    if len(tokens) != 1:
        raise UsageError(f"{model.path} lacks the token {END_OF_TEXT}, after which texts are scored", "Use a GPT-2.")
    return tokens[0]


def fit(model: Model, tokens: Sequence[int], following: int) -> list[int]:
    """The last tokens of a prefix that fit the context before `following` more tokens. Raises `UsageError`."""
    room = model.positions - following
    if room < 1:
        message = f"{following} tokens do not fit a context of {model.positions}"
        raise UsageError(message, "Use a larger `ctx_size`.")
    return list(tokens[-room:])


def common_prefix(texts: Sequence[Sequence[int]]) -> int:
    """The number of tokens that all texts begin with, so that each has at least one more."""
    length = min(map(len, texts)) - 1
    first = texts[0]
    return next((i for i in range(length) if any(text[i] != first[i] for text in texts)), max(length, 0))


def relative_log_probs(model: Model, begin: int, texts: Sequence[str], *, parse_special: bool = True) -> FloatArray:
    """The log-probability of each text after the token `begin`, in nats, without the tokens that all begin with."""
    tokens = [[begin, *model.tokenize(text, special=parse_special, add_special=False)] for text in texts]
    shared = common_prefix(tokens)
    endings = [text[shared:] for text in tokens]
    prefix = fit(model, tokens[0][:shared], max(map(len, endings)))
    return np.array([part.log_probs.sum(dtype=np.float64) for part in model.score_continuations(prefix, endings)])


def summarize(metrics: Mapping[str, Measure], scores: Scores, reference: Scores | None) -> dict[str, MetricJson]:
    """Each metric and its change from the reference, with intervals.

    None are intervals if only one block contributes to the divisor, changes without a reference, and values that are
    not finite.
    """
    parts = scores.to_draw()
    drawn = [_drawn_sums(part) for part in parts]
    base = None if reference is None else [_drawn_sums(part) for part in reference.to_draw()]
    found: dict[str, MetricJson] = {}
    for name, metric in metrics.items():
        part, sums = parts[metric.part], drawn[metric.part]
        value, values = float(metric.values(part.sum(axis=0))), metric.values(sums)
        there = sums[:, metric.over] != 0  # a draw may lack items of a kind
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
    """The sums over items drawn with replacement, shape (draws, columns). The draws depend only on the number of items:
    they are the same for two files."""
    count = len(part)
    random, shares = np.random.default_rng(_SEED), np.full(count, 1 / count)
    draws = [random.multinomial(count, shares, size=_AT_ONCE) @ part for _ in range(_DRAWS // _AT_ONCE)]
    return np.concatenate(draws)


def _interval(values: FloatArray) -> tuple[float | None, float | None]:
    """Both ends or neither: omitting values that overflow would make the interval too narrow."""
    with np.errstate(invalid="ignore"):  # between two infinite values
        low, high = np.quantile(values, _TAILS)
    return (float(low), float(high)) if np.isfinite([low, high]).all() else (None, None)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
