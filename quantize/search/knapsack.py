"""The best choice of a type for each matrix under a budget: a multiple-choice knapsack, solved on a grid.

Dynamic programming over the part of the budget that is used. Where the bytes of all options have a common divisor that
is coarse enough, the grid is exact. Otherwise what an option uses is rounded up, so that every solution keeps the
budget, and a second run, which rounds down, gives a bound for all solutions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd, inf
from typing import Literal

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.quant_types import TensorType

Amount = Literal["bytes", "loss"]
_CELLS = 50_000  # of the grid


@dataclass(frozen=True)
class Option:
    """Types for one matrix (for two, if an embedding is split), and their cost."""

    types: Mapping[str, TensorType]
    bytes: int
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


def allocate(groups: Sequence[Sequence[Option]], minimise: Amount, budget: float) -> Allocation | None:
    """One option of each group with the least sum of `minimise` and at most `budget` of the other amount; None if
    nothing fits."""
    found = _solve(groups, minimise, budget, up=True)
    return None if found is None else Allocation(found)


def lower_bound(groups: Sequence[Sequence[Option]], minimise: Amount, budget: float) -> float:
    """A sum that no allocation within the budget is below; infinity where there is none."""
    found = _solve(groups, minimise, budget, up=False)
    return inf if found is None else Allocation(found).total(minimise)


def _solve(groups: Sequence[Sequence[Option]], minimise: Amount, budget: float, *, up: bool) -> list[Option] | None:
    cells, used = _grid(groups, "loss" if minimise == "bytes" else "bytes", budget, up)
    if cells < 0:
        return None
    best = np.full(cells + 1, inf)  # the least sum, by the cells that have been used so far
    best[0] = 0.0
    choices: list[npt.NDArray[np.int16]] = []
    for options, cells_of in zip(groups, used, strict=True):
        following, chosen = np.full(cells + 1, inf), np.full(cells + 1, -1, np.int16)
        for index, (option, taken) in enumerate(zip(options, cells_of, strict=True)):
            if taken > cells:
                continue
            offered = best[: cells + 1 - taken] + getattr(option, minimise)
            better = offered < following[taken:]
            following[taken:][better] = offered[better]
            chosen[taken:][better] = index
        best = following
        choices.append(chosen)
    if not np.isfinite(best).any():
        return None
    place, found = int(best.argmin()), []
    for options, cells_of, chosen in zip(reversed(groups), reversed(used), reversed(choices), strict=True):
        index = int(chosen[place])
        found.append(options[index])
        place -= cells_of[index]
    return found[::-1]


def _grid(groups: Sequence[Sequence[Option]], amount: Amount, budget: float, up: bool) -> tuple[int, list[list[int]]]:
    """The budget in whole cells, and the cells that each option uses beyond the cheapest of its group."""
    amounts = [[float(getattr(option, amount)) for option in options] for options in groups]
    least = [min(group) for group in amounts]
    beyond = [[value - low for value in group] for group, low in zip(amounts, least, strict=True)]
    left = min(budget - sum(least), sum(max(group) for group in beyond))
    if left < 0:
        return -1, []
    step = float(gcd(*(int(value) for group in beyond for value in group))) if amount == "bytes" else 0.0
    if not step or left / step > _CELLS:
        step = max(left, 1e-30) / _CELLS
    rounded = np.ceil if up else np.floor
    used = [[int(rounded(value / step - 1e-9 if up else value / step + 1e-9)) for value in group] for group in beyond]
    return int(np.floor(left / step + 1e-9)), used
