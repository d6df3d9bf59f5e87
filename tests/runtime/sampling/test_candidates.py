"""The candidate filters, compared with plain definitions in float64."""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.runtime.sampling.candidates import at_least, log_total, nucleus, top_k, top_k_candidates, typical
from hypothesis import given, settings
from hypothesis import strategies as st

Row = npt.NDArray[np.float32]

EDGE = 1e-6  # of the probability: sums of float32 exponentials may differ by that much from float64 ones


def normal(size: int, seed: int = 0, spread: float = 3.0) -> Row:
    return (spread * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def probabilities(logits: Row) -> npt.NDArray[np.float64]:
    weights: npt.NDArray[np.float64] = np.exp(logits.astype(np.float64) - float(logits.max()))
    weights /= weights.sum()
    return weights


def tied(logits: Row) -> Row:
    """Few different values, so that many tokens share a place."""
    return np.round(logits).astype(np.float32)


def holed(logits: Row) -> Row:
    """Every third token forbidden, except the most likely one."""
    forbidden = np.arange(len(logits)) % 3 == 1
    forbidden[logits.argmax()] = False
    return np.where(forbidden, -np.inf, logits).astype(np.float32)


SHAPES: list[Callable[[Row], Row]] = [lambda logits: logits, tied, holed]
rows = st.builds(
    lambda size, seed, spread, shape: shape(normal(size, seed, spread)),
    st.one_of(st.integers(1, 40), st.sampled_from([255, 256, 257, 1023, 4096, 8189])),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.01, 1.0, 4.0, 30.0]),
    st.sampled_from(SHAPES),
)
shares = st.one_of(st.floats(0, 0.9999), st.sampled_from([0.0, 0.5, 0.9, 0.95, 0.999]))


def is_a_beginning(found: npt.NDArray[np.intp], scores: npt.NDArray[np.float64]) -> bool:
    """Whether no token that was left out has a higher score than one that was found."""
    rest = np.setdiff1d(np.arange(len(scores)), found)
    return len(set(found.tolist())) == len(found) and (not len(rest) or scores[rest].max() <= scores[found].min())


class TestTopK:
    @given(rows, st.integers(1, 9000))
    @settings(deadline=None, derandomize=True)
    def test_top_k_by_descending_logit(self, logits: Row, count: int) -> None:
        found = top_k_candidates(logits, count)
        assert len(found) >= min(count, len(logits))
        assert is_a_beginning(found, logits.astype(np.float64))
        assert (np.diff(found) > 0).all()
        expected = sorted(range(len(logits)), key=lambda token: (-logits[token], token))[:count]
        assert top_k(logits, count).tolist() == expected

    @pytest.mark.parametrize("size", [8189, 50257])
    @pytest.mark.parametrize("count", [1, 10, 40, 3000])
    def test_candidates_are_few_more_than_k(self, size: int, count: int) -> None:
        assert len(top_k_candidates(normal(size), count)) <= max(2 * count, 80)

    @pytest.mark.parametrize("count", [3, 64, 200])
    def test_ties_are_all_candidates(self, count: int) -> None:
        assert len(top_k_candidates(np.zeros(8189, np.float32), count)) == 8189

    @pytest.mark.parametrize("count", [1, 5, 6, 40])
    def test_k_above_the_vocabulary(self, count: int) -> None:
        logits = np.full(8189, -np.inf, np.float32)
        logits[[7, 70, 700, 7000, 8188]] = 1, 5, 3, 4, 2
        assert top_k(logits, count)[:5].tolist() == [70, 7000, 700, 8188, 7][:count]

    def test_logits_are_not_changed(self) -> None:
        for count in (1, 40, 3000):
            logits = normal(8189)
            top_k_candidates(logits, count)
            assert np.array_equal(logits, normal(8189))


class TestNucleus:
    @given(rows, shares)
    @settings(deadline=None, derandomize=True)
    def test_the_smallest_set_with_the_share(self, logits: Row, share: float) -> None:
        found = nucleus(logits, share)
        mass = probabilities(logits)
        assert is_a_beginning(found, mass)
        assert mass[found].sum() >= share - EDGE
        last = logits[found].min()
        # different logits may tie, too, when their exponentials are rounded to float32
        without_the_last = mass[found[mass[found] > mass[found].min() * (1 + 1e-6)]]
        assert not len(without_the_last) or without_the_last.sum() < share + EDGE
        if logits.max() - last < 80:  # beyond it float32 knows of no difference
            assert set(found.tolist()) == set((logits >= last).nonzero()[0].tolist())

    @given(rows, shares, st.floats(1e-4, 1))
    @settings(deadline=None, derandomize=True)
    def test_with_a_min_p_bound(self, logits: Row, share: float, share_of_the_top: float) -> None:
        least = float(logits.max()) + math.log(share_of_the_top)
        both = set(nucleus(logits, share).tolist()) & set(at_least(logits, least).tolist())
        found = set(nucleus(logits, share, least).tolist())
        mass = probabilities(logits)
        assert found
        # the two ways sum up differently, so that a token on the edge may come or not
        assert all(mass[token] < EDGE or abs(mass[list(both)].sum() - share) < EDGE for token in found ^ both)

    @pytest.mark.parametrize("share", [0.3, 0.9, 0.999])
    def test_flat_logits_need_more_candidates(self, share: float) -> None:
        logits = normal(8189, spread=0.1)
        ordered = np.sort(probabilities(logits))[::-1]
        assert len(nucleus(logits, share)) == int(np.searchsorted(ordered.cumsum(), share)) + 1

    def test_share_0_leaves_the_most_likely(self) -> None:
        assert nucleus(normal(8189), 0).tolist() == [int(normal(8189).argmax())]

    def test_one_token(self) -> None:
        assert nucleus(np.zeros(1, np.float32), 0.5).tolist() == [0]


class TestAtLeast:
    @given(rows, st.floats(-40, 40, width=32))
    @settings(deadline=None, derandomize=True)
    def test_the_bound_and_at_least_the_most_likely(self, logits: Row, bound: float) -> None:
        expected = [token for token, logit in enumerate(logits) if logit >= bound]
        assert at_least(logits, bound).tolist() == (expected or [int(logits.argmax())])


class TestTypical:
    @given(rows, st.floats(0.01, 0.99))
    @settings(deadline=None, derandomize=True)
    def test_tokens_nearest_to_the_entropy(self, logits: Row, share: float) -> None:
        found = typical(logits, share)
        mass = probabilities(logits)
        possible = mass > 0
        surprise = np.full(len(mass), np.inf)
        surprise[possible] = -np.log(mass[possible])
        entropy = float((mass[possible] * surprise[possible]).sum())
        distance = np.abs(surprise - entropy)
        # "nearest first" up to the rounding of float32, of which the surprises have some
        rounding = 1e-5 * (1 + float(np.abs(logits[possible]).max()))
        rest = np.setdiff1d(np.arange(len(mass)), found)
        assert (np.diff(distance[found]) >= -rounding).all()
        assert not len(rest) or distance[rest].min() >= distance[found].max() - rounding
        assert mass[found].sum() > share - EDGE
        assert mass[found[:-1]].sum() <= share + EDGE

    def test_the_most_likely_token_can_be_dropped(self) -> None:
        # entropy 1.75 bits: the tokens of a quarter, with 2 bits, are the nearest to it
        logits = np.log(np.array([0.5, 0.25, 0.125, 0.125], np.float32))
        assert typical(logits, 0.2).tolist() == [1]

    def test_flat_logits_need_more_candidates(self) -> None:
        assert 0.8 * 8189 < len(typical(normal(8189, spread=0.01), 0.9)) < 8189

    def test_a_forbidden_token_is_never_typical(self) -> None:
        logits = np.array([-np.inf, 0, -np.inf, 0], np.float32)
        assert sorted(typical(logits, 0.9).tolist()) == [1, 3]


class TestLogTotal:
    @given(rows, st.sampled_from([-1e4, -90.0, 0.0, 90.0, 1e4]))
    @settings(deadline=None, derandomize=True)
    def test_log_sum_exp(self, logits: Row, offset: float) -> None:
        shifted = logits + np.float32(offset)
        top = float(shifted.max())
        expected = top + math.log(math.fsum(math.exp(float(logit) - top) for logit in shifted))
        assert log_total(shifted) == pytest.approx(expected, abs=1e-5)
