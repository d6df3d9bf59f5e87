"""The allocation of types under a budget, compared with trying all of them."""

from itertools import product
from math import inf

import numpy as np
import pytest
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.search.knapsack import Allocation, Option, allocate, lower_bound

KINDS = (TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K, TensorType.Q8_0)


def groups(seed: int, count: int = 5, unit: int = 96) -> list[list[Option]]:
    rng = np.random.default_rng(seed)
    return [
        [
            Option({f"m{number}": kind}, unit * int(rng.integers(1, 40)), float(rng.random()))
            for kind in KINDS[: int(rng.integers(1, 5))]
        ]
        for number in range(count)
    ]


def by_trying(choices: list[list[Option]], minimise: str, amount: str, budget: float) -> float | None:
    sums = (
        {name: sum(getattr(option, name) for option in chosen) for name in ("bytes", "loss")}
        for chosen in product(*choices)
    )
    return min((total[minimise] for total in sums if total[amount] <= budget), default=None)


@pytest.mark.parametrize("seed", range(20))
def test_bytes_are_allocated_exactly(seed: int) -> None:
    choices = groups(seed)
    budget = sum(np.mean([option.bytes for option in group]) for group in choices)
    found = allocate(choices, "loss", budget)
    assert found is not None
    best = by_trying(choices, "loss", "bytes", budget)
    assert found.total("loss") == pytest.approx(best)
    assert lower_bound(choices, "loss", budget) == pytest.approx(best)
    assert found.total("bytes") <= budget


@pytest.mark.parametrize("seed", range(20))
def test_a_loss_is_kept_and_the_bound_holds(seed: int) -> None:
    choices = groups(seed)
    limit = sum(np.mean([option.loss for option in group]) for group in choices)
    found = allocate(choices, "bytes", limit)
    best = by_trying(choices, "bytes", "loss", limit)
    assert found is not None
    assert best is not None
    assert found.total("loss") <= limit
    assert lower_bound(choices, "bytes", limit) <= best <= found.total("bytes") <= 1.02 * best


def test_a_budget_below_the_least_gives_none() -> None:
    choices = groups(1)
    least = sum(min(option.bytes for option in group) for group in choices)
    assert allocate(choices, "loss", least - 1) is None
    assert lower_bound(choices, "loss", least - 1) == inf
    found = allocate(choices, "loss", least)
    assert isinstance(found, Allocation)
    assert found.total("bytes") == least


def test_an_allocation_has_a_type_for_each_group() -> None:
    found = allocate(groups(2), "bytes", 100.0)
    assert found is not None
    assert sorted(found.types) == [f"m{number}" for number in range(5)]
