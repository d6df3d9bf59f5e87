"""Intervals by bootstrap: what they cover, that they are paired, and that they are always the same."""

import numpy as np
import pytest
from dgpt2_quant.bench.quality.bootstrap import BLOCK, Bootstrap, token_blocks


def items(count: int) -> Bootstrap:
    """Of values that have nothing to do with one another."""
    return Bootstrap(np.arange(count))


def test_the_value_is_the_mean() -> None:
    values = np.array([1.0, 2.0, 6.0, 7.0])
    found = items(4).mean(values)
    assert found["value"] == 4
    assert 1 <= found["low"] < 4 < found["high"] <= 7
    assert Bootstrap(np.array([0, 0, 0, 1])).mean(values)["value"] == 4  # blocks of different sizes


def test_the_interval_of_independent_values() -> None:
    values = np.random.default_rng(1).normal(5, 2, 4000)
    found = items(4000).mean(values)
    half = 1.96 * values.std() / np.sqrt(4000)
    assert found["high"] - found["low"] == pytest.approx(2 * half, rel=0.1)


def test_intervals_cover_the_mean_95_percent_of_the_time() -> None:
    random = np.random.default_rng(2)
    draws = items(100)
    intervals = [draws.mean(random.exponential(3, 100)) for _ in range(300)]
    assert 0.9 < np.mean([found["low"] <= 3 <= found["high"] for found in intervals]) < 0.98


def test_correlated_neighbours_widen_the_interval() -> None:
    values = np.repeat(np.random.default_rng(3).normal(0, 1, 100), 32)
    alone, together = items(3200).mean(values), Bootstrap(token_blocks([3200])).mean(values)
    assert together["high"] - together["low"] > 4 * (alone["high"] - alone["low"])


def test_a_difference_is_paired() -> None:
    random = np.random.default_rng(4)
    a = random.normal(0, 10, 2000)
    b = a + 0.01 + random.normal(0, 0.01, 2000)
    draws = items(2000)
    difference = draws.mean(b - a)
    assert 0.009 < difference["low"] < difference["high"] < 0.011
    assert draws.mean(a)["high"] - draws.mean(a)["low"] > 0.5


def test_the_same_scores_give_the_same_interval() -> None:
    values = np.arange(50.0)
    assert items(50).mean(values) == items(50).mean(values)


def test_a_function_of_the_mean() -> None:
    values = np.log(np.random.default_rng(5).uniform(1, 2, 500))
    plain, exp = items(500).mean(values), items(500).mean(values, of=np.exp)
    assert exp["value"] == pytest.approx(np.exp(plain["value"]))
    assert exp["low"] == pytest.approx(np.exp(plain["low"]))


def test_boolean_values() -> None:
    assert items(4).mean(np.array([True, True, True, False]))["value"] == 0.75


def test_one_value_has_an_empty_interval() -> None:
    assert items(1).mean(np.array([3.0])) == {"value": 3.0, "low": 3.0, "high": 3.0}


def test_blocks_do_not_span_runs() -> None:
    found = token_blocks([BLOCK + 1, 10 * BLOCK, 0, 1])
    assert found[: BLOCK + 2].tolist() == [0] * BLOCK + [1, 2]
    assert np.bincount(found).tolist() == [BLOCK, 1, *[BLOCK] * 10, 1]
    assert token_blocks([]).tolist() == []


def test_a_short_text_has_shorter_blocks() -> None:
    assert np.bincount(token_blocks([64])).tolist() == [6] * 10 + [4]
    assert token_blocks([3, 2]).tolist() == [0, 1, 2, 3, 4]
    found = Bootstrap(token_blocks([2])).mean(np.array([1.0, 3.0]))
    assert (found["low"], found["value"], found["high"]) == (1, 2, 3)


def test_a_very_long_text_has_longer_blocks() -> None:
    assert token_blocks([1_000_000])[-1] < 4000
