"""The best choice of a type for each matrix under budgets: a multiple-choice knapsack, solved on a grid.

Dynamic programming over the used part of each budget. Where the bytes of all options have a common divisor that is
coarse enough, the grid is exact. Otherwise what an option uses is rounded up, so that every solution keeps the budgets,
and a second run, which rounds down, gives a bound for all solutions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd, inf
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.quant_types import TensorType

Amount = Literal["bytes", "time", "loss"]
_CELLS_OF_ONE = 50_000  # of a grid with one budget
_CELLS_OF_TWO = 400  # along each of two budgets


@dataclass(frozen=True)
class Option:
    """Types for one matrix (for two, if an embedding is split), and their costs. `time` has no unit."""

    types: Mapping[str, TensorType]
    bytes: int
    time: float
    loss: float


@dataclass(frozen=True)
class Allocation:
    """An option of each group."""

    options: Sequence[Option]

    def total(self, amount: Amount) -> float:
        return sum(float(getattr(option, amount)) for option in self.options)

    @property
    def types(self) -> dict[str, TensorType]:
        return {name: kind for option in self.options for name, kind in option.types.items()}


def allocate(
    groups: Sequence[Sequence[Option]], minimise: Amount, budgets: Mapping[Amount, float]
) -> Allocation | None:
    """One option of each group with the least sum of `minimise`, within one or two `budgets`; None if nothing fits."""
    found = _solve(groups, minimise, budgets, up=True)
    return None if found is None else Allocation(found)


def lower_bound(groups: Sequence[Sequence[Option]], minimise: Amount, budgets: Mapping[Amount, float]) -> float:
    """A sum that no allocation within the budgets is below; infinity where there is none."""
    found = _solve(groups, minimise, budgets, up=False)
    return inf if found is None else Allocation(found).total(minimise)


def _solve(
    groups: Sequence[Sequence[Option]], minimise: Amount, budgets: Mapping[Amount, float], *, up: bool
) -> list[Option] | None:
    axes = [_Axis(groups, amount, budget, len(budgets), up) for amount, budget in budgets.items()]
    if any(axis.cells < 0 for axis in axes):
        return None
    shape = tuple(axis.cells + 1 for axis in axes)
    best = np.full(shape, inf)  # the least sum, by the cells that have been used so far
    best[(0,) * len(shape)] = 0.0
    choices: list[npt.NDArray[np.int16]] = []
    for number, options in enumerate(groups):
        following, chosen = np.full(shape, inf), np.full(shape, -1, np.int16)
        for index, option in enumerate(options):
            used = [axis.used[number][index] for axis in axes]
            if any(amount > axis.cells for amount, axis in zip(used, axes, strict=True)):
                continue
            here = tuple(slice(amount, None) for amount in used)
            before = tuple(slice(None, size - amount) for amount, size in zip(used, shape, strict=True))
            offered = best[before] + getattr(option, minimise)
            better = offered < following[here]
            following[here][better] = offered[better]
            chosen[here][better] = index
        best = following
        choices.append(chosen)
    if not np.isfinite(best).any():
        return None
    return _followed_back(groups, axes, choices, best)


def _followed_back(
    groups: Sequence[Sequence[Option]], axes: "Sequence[_Axis]", choices: Sequence[Any], best: npt.NDArray[np.float64]
) -> list[Option]:
    place = list(np.unravel_index(int(best.argmin()), best.shape))
    found: list[Option] = []
    for number in range(len(groups) - 1, -1, -1):
        index = int(choices[number][tuple(place)])
        found.append(groups[number][index])
        place = [at - axis.used[number][index] for at, axis in zip(place, axes, strict=True)]
    return found[::-1]


class _Axis:
    """One budget in whole cells, and the cells that each option uses beyond the cheapest of its group."""

    def __init__(self, groups: Sequence[Sequence[Option]], amount: Amount, budget: float, count: int, up: bool) -> None:
        amounts = [[float(getattr(option, amount)) for option in options] for options in groups]
        least = [min(group) for group in amounts]
        beyond = [[value - low for value in group] for group, low in zip(amounts, least, strict=True)]
        left = min(budget - sum(least), sum(max(group) for group in beyond))
        most = _CELLS_OF_ONE if count == 1 else _CELLS_OF_TWO
        step = float(gcd(*(int(value) for group in beyond for value in group))) if amount == "bytes" else 0.0
        if not step or left / step > most:
            step = max(left, 1e-30) / most
        rounded = np.ceil if up else np.floor
        self.cells = int(np.floor(left / step + 1e-9)) if left >= 0 else -1
        self.used = [[int(rounded(value / step - 1e-9 if up else value / step + 1e-9)) for value in g] for g in beyond]
