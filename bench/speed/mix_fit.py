"""Which mixes to time, and what each matrix costs by their times: a linear system, solved with some foresight.

A token's time is taken for a sum: a fixed part, and one cost for each matrix by its shape and type. To time one change
of one kind of matrix at a time would take as many files and use each for one cost alone. Here every kind has another
type in every file, each type as often as any other, so that each file tells of all kinds at once (a weighing design).

Noise is held back by what is known beforehand: a kernel's time goes by the bytes that it reads, at a rate of its type.
The rates are fitted first, a few numbers for many files. Then every cost may differ from its rate times its bytes, but
pays for it: with little noise the measured costs come out, with much of it the rates.

Every file has all kinds of matrix, so that sums, and what another type of the same matrix would change, are measured;
how much of the time belongs to which kind is not, and follows from the bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.gguf_file import tensor_bytes
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.core.quant_types import TensorType

from .mixes import Entry, Mix

TIMES_EACH = 5  # how often each type is timed in each kind of matrix
_DESIGNS = 8  # random ones, of which the best is taken; the best of 32 is hardly better
_MODEL_ERROR = 0.01  # of a file's time: how far from a sum of its parts it is taken to be
_KERNEL_SPREAD = 0.3  # how far costs are taken to be from their type's rate, relative (one standard deviation)
_TYPE_SPREAD = 0.5  # and the rates of the types from the rate of all
_LEAST_RATE = 1e-15  # seconds a byte: a million gigabytes a second
_LEAST_SHARE = 0.1  # of what is expected: noise makes nothing free of cost
_REFITS = 8

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Costs:
    """Seconds for each entry, and the standard error that the timings' noise leaves in it; `misfit` is how far the sums
    are from the files' times, relative (root mean square, surer files counting more)."""

    seconds: dict[Entry, float]
    spread: dict[Entry, float]
    misfit: float


def make_mixes(sizes: Hyperparameters, types: Mapping[str, Sequence[TensorType]]) -> list[Mix]:
    """The files to time, where each kind of matrix can have these types. The same call gives the same files."""
    rng = np.random.default_rng(0)
    designs = [_random_mixes(rng, sizes, types) for _ in range(_DESIGNS)]
    return min(designs, key=_uncertainty)


def _random_mixes(
    rng: np.random.Generator, sizes: Hyperparameters, types: Mapping[str, Sequence[TensorType]]
) -> list[Mix]:
    """Each kind runs through its types `TIMES_EACH` times, in an order of its own each time."""
    count = TIMES_EACH * max(map(len, types.values()))
    columns = {}
    for kind, choices in types.items():
        turns = [choices[index] for _ in range(-(-count // len(choices))) for index in rng.permutation(len(choices))]
        columns[kind] = turns[:count]
    rows = dict.fromkeys(zip(*columns.values(), strict=True))
    return [Mix(sizes, dict(zip(columns, row, strict=True))) for row in rows]


def _uncertainty(mixes: Sequence[Mix]) -> float:
    """What all costs together would be uncertain by, if all types took their bytes' time."""
    entries = entries_of(mixes)
    matrix, expected = _counts(mixes, entries), _bytes(entries)
    errors = _MODEL_ERROR * (matrix @ expected)
    weighed = matrix / errors[:, None]
    precision = weighed.T @ weighed + np.diag((_KERNEL_SPREAD * expected) ** -2)
    return float(np.trace(np.linalg.inv(precision)))


def entries_of(mixes: Sequence[Mix]) -> list[Entry]:
    """The shapes and types that are in these files, each once."""
    return sorted({entry for mix in mixes for entry in mix.entries()})


def fit_costs(mixes: Sequence[Mix], seconds: Sequence[float], errors: Sequence[float], fixed: float) -> Costs:
    """What each shape and type costs, by the files' seconds a token and their standard errors. No cost is zero or less.

    Where the files' times are further from any sum than their errors say, the errors are taken for larger than they
    are said to be (until the residuals' chi-square is one for each degree of freedom).
    """
    entries, times = entries_of(mixes), np.array(seconds)
    matrix = _counts(mixes, entries)
    uncertain = np.hypot(errors, _MODEL_ERROR * times)
    left = np.maximum(times - fixed, 0.0)
    for _ in range(_REFITS):
        fit = _fit(matrix, left, uncertain, entries)
        residuals = (matrix @ fit.found - left) / uncertain
        excess = float(residuals @ residuals) / max(len(times) - fit.freedom, 1.0)
        if excess <= 1:
            break
        uncertain = uncertain * np.sqrt(excess)
    misfit = np.average(((matrix @ fit.found + fixed) / times - 1) ** 2, weights=uncertain**-2.0)
    return Costs(
        dict(zip(entries, fit.found.tolist(), strict=True)),
        dict(zip(entries, fit.errors.tolist(), strict=True)),
        float(np.sqrt(misfit)),
    )


@dataclass(frozen=True)
class _Fit:
    """A solution, its standard errors that come from the data's, and how many numbers the data decided."""

    found: Vector
    errors: Vector
    freedom: float


def _fit(matrix: Vector, left: Vector, uncertain: Vector, entries: Sequence[Entry]) -> _Fit:
    """First the types' rates, in seconds a byte, then the single costs."""
    sizes = _bytes(entries)
    types = sorted({tensor_type for _, tensor_type in entries})
    by_type = sizes[:, None] * np.array([[own is tensor_type for tensor_type in types] for _, own in entries])
    usual = max(float(np.median(left / (matrix @ sizes))), _LEAST_RATE)
    prior = np.full(len(types), usual)
    expected = by_type @ _shrunk(matrix @ by_type, left, uncertain, prior, _TYPE_SPREAD * prior).found
    return _shrunk(matrix, left, uncertain, expected, _KERNEL_SPREAD * expected)


def _shrunk(matrix: Vector, times: Vector, errors: Vector, prior: Vector, leeway: Vector) -> _Fit:
    """The x nearest to both `matrix @ x = times` and `x = prior`, each in units of its standard deviation, and nowhere
    less than `_LEAST_SHARE` of the prior.

    What would be less is set to that, and the rest solved again, until nothing is.
    """
    weighed, aims = matrix / errors[:, None], times / errors
    data = weighed.T @ weighed
    precision, right = data + np.diag(leeway**-2), weighed.T @ aims + prior * leeway**-2
    found, free = _LEAST_SHARE * prior, np.ones(len(prior), bool)
    while free.any():
        rest = right[free] - precision[np.ix_(free, ~free)] @ found[~free]
        solved = np.linalg.solve(precision[np.ix_(free, free)], rest)
        less = solved < found[free]
        if not less.any():
            found[free] = solved
            break
        free[np.flatnonzero(free)[less]] = False
    inverse = np.linalg.inv(precision)
    return _Fit(found, np.sqrt(np.diag(inverse @ data @ inverse)), float(np.trace(inverse @ data)))


def _counts(mixes: Sequence[Mix], entries: Sequence[Entry]) -> Vector:
    """How many matrices of each entry each file has, shape (files, entries)."""
    place = {entry: column for column, entry in enumerate(entries)}
    counts = np.zeros((len(mixes), len(entries)))
    for row, mix in enumerate(mixes):
        for entry, count in mix.entries().items():
            counts[row, place[entry]] = count
    return counts


def _bytes(entries: Sequence[Entry]) -> Vector:
    return np.array([tensor_bytes(shape, tensor_type) for shape, tensor_type in entries], float)
