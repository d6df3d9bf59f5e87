"""The allocation of types under budgets, compared with trying all of them."""

from itertools import product

import numpy as np
import pytest
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.search.knapsack import Allocation, Option, allocate, lower_bound

KINDS = (TensorType.Q4_K, TensorType.Q5_K, TensorType.Q6_K, TensorType.Q8_0)


def groups(seed: int, count: int = 5, unit: int = 96) -> list[list[Option]]:
    rng = np.random.default_rng(seed)
    return [
        [
            Option({f"m{number}": kind}, unit * int(rng.integers(1, 40)), float(rng.random()), float(rng.random()))
            for kind in KINDS[: int(rng.integers(1, 5))]
        ]
        for number in range(count)
    ]


def by_trying(choices: list[list[Option]], minimise: str, budgets: dict[str, float]) -> float | None:
    sums = (
        {amount: sum(getattr(option, amount) for option in chosen) for amount in ("bytes", "time", "loss")}
        for chosen in product(*choices)
    )
    fitting = [total[minimise] for total in sums if all(total[name] <= limit for name, limit in budgets.items())]
    return min(fitting, default=None)


@pytest.mark.parametrize("seed", range(20))
def test_bytes_are_allocated_exactly(seed: int) -> None:
    choices = groups(seed)
    budget = sum(np.mean([option.bytes for option in group]) for group in choices)
    found = allocate(choices, "loss", {"bytes": budget})
    assert found is not None
    best = by_trying(choices, "loss", {"bytes": budget})
    assert found.total("loss") == pytest.approx(best)
    assert lower_bound(choices, "loss", {"bytes": budget}) == pytest.approx(best)
    assert found.total("bytes") <= budget


@pytest.mark.parametrize("seed", range(20))
def test_two_budgets_are_kept_and_the_bound_holds(seed: int) -> None:
    choices = groups(seed)
    limits = {
        "bytes": sum(np.mean([option.bytes for option in group]) for group in choices),
        "loss": 1.1 * sum(np.mean([option.loss for option in group]) for group in choices),
    }
    found = allocate(choices, "time", limits)
    best = by_trying(choices, "time", limits)
    if found is None or best is None:
        assert found is None  # a grid may miss one that just fits, but never finds one that does not
        return
    assert found.total("bytes") <= limits["bytes"]
    assert found.total("loss") <= limits["loss"]
    assert lower_bound(choices, "time", limits) <= best <= found.total("time") <= 1.02 * best + 0.02


def test_a_loss_can_be_the_budget() -> None:
    choices = groups(3)
    limit = 1.05 * sum(min(option.loss for option in group) for group in choices)
    found = allocate(choices, "bytes", {"loss": limit})
    assert found is not None
    assert found.total("loss") <= limit
    assert found.total("bytes") == by_trying(choices, "bytes", {"loss": limit})


def test_a_budget_below_the_least_gives_none() -> None:
    choices = groups(1)
    least = sum(min(option.bytes for option in group) for group in choices)
    assert allocate(choices, "loss", {"bytes": least - 1}) is None
    found = allocate(choices, "loss", {"bytes": least})
    assert isinstance(found, Allocation)
    assert found.total("bytes") == least


def test_an_allocation_has_a_type_for_each_group() -> None:
    found = allocate(groups(2), "bytes", {"loss": 100.0})
    assert found is not None
    assert sorted(found.types) == [f"m{number}" for number in range(5)]
