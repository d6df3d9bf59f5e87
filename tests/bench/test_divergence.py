"""KL divergence and its company against their definitions in float64."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.bench.divergence import TokenScores, combine, score
from dgpt2_quant.bench.perplexity import log_softmax

ROWS, VOCABULARY = 60, 300


def random_pair(noise: float = 0.5) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The logits of a reference and of a level, and the tokens that came."""
    random = np.random.default_rng(3)
    reference = random.normal(0, 3, (ROWS, VOCABULARY)).astype(np.float32)
    level = (reference + random.normal(0, noise, reference.shape)).astype(np.float32)
    return reference, level, random.integers(0, VOCABULARY, ROWS)


def probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def test_each_token_by_the_definition() -> None:
    reference, level, targets = random_pair()
    found = score(log_softmax(reference), log_softmax(level), targets)
    p, q = probabilities(reference), probabilities(level)
    for row, target in enumerate(targets):
        kld = sum(p[row, token] * math.log(p[row, token] / q[row, token]) for token in range(VOCABULARY))
        assert found.kld[row] == pytest.approx(kld, abs=1e-5)
        assert found.nll[row] == pytest.approx(-math.log(q[row, target]), abs=1e-5)
        assert found.dp[row] == pytest.approx(q[row, target] - p[row, target], abs=1e-6)
        assert found.same_top[row] == (p[row].argmax() == q[row].argmax())
    assert 0 < found.same_top.sum() < ROWS  # both happen


def test_all_chunks_together_by_the_definition() -> None:
    reference, level, targets = random_pair()
    parts = [
        score(log_softmax(reference[rows]), log_softmax(level[rows]), targets[rows])
        for rows in (slice(0, 10), slice(10, 45), slice(45, ROWS))
    ]
    found = combine(parts)
    p, q = probabilities(reference), probabilities(level)
    rows = np.arange(ROWS)
    kld = (p * np.log(p / q)).sum(axis=-1)
    assert found.kld_mean == pytest.approx(kld.mean(), rel=1e-4)
    assert found.kld_stderr == pytest.approx(kld.std(ddof=1) / math.sqrt(ROWS), rel=1e-4)
    assert found.kld_max == pytest.approx(kld.max(), rel=1e-4)
    assert found.kld_median == pytest.approx((np.sort(kld)[29] + np.sort(kld)[30]) / 2, rel=1e-4)
    assert found.top1 == np.mean(p.argmax(axis=-1) == q.argmax(axis=-1))
    assert found.rms_dp == pytest.approx(math.sqrt(np.mean((q[rows, targets] - p[rows, targets]) ** 2)), rel=1e-4)
    assert found.perplexity.tokens == ROWS
    assert found.perplexity.perplexity == pytest.approx(math.exp(-np.log(q[rows, targets]).mean()), rel=1e-4)


def test_a_distribution_does_not_diverge_from_itself() -> None:
    reference, _, targets = random_pair()
    log_probs = log_softmax(reference)
    found = combine([score(log_probs, log_probs.copy(), targets)])
    assert (found.kld_mean, found.kld_stderr, found.kld_median, found.kld_p999, found.kld_max) == (0, 0, 0, 0, 0)
    assert (found.top1, found.rms_dp) == (1, 0)


def test_nearly_equal_distributions_never_diverge_by_less_than_nothing() -> None:
    reference, level, targets = random_pair(noise=1e-6)
    assert (score(log_softmax(reference), log_softmax(level), targets).kld >= 0).all()


def test_it_is_measured_from_the_reference() -> None:
    sure, unsure = np.log(np.float32([[0.98, 0.01, 0.01]])), np.log(np.float32([[0.5, 0.25, 0.25]]))
    target = np.array([0])
    from_sure, from_unsure = score(sure, unsure, target).kld[0], score(unsure, sure, target).kld[0]
    assert from_sure == pytest.approx(0.98 * math.log(0.98 / 0.5) + 0.02 * math.log(0.01 / 0.25), abs=1e-6)
    assert from_unsure == pytest.approx(0.5 * math.log(0.5 / 0.98) + 0.5 * math.log(0.25 / 0.01), abs=1e-6)
    assert score(sure, unsure, target).dp[0] == pytest.approx(-0.48)


def by_hand(kld: list[float], same_top: list[bool], dp: list[float]) -> TokenScores:
    return TokenScores(np.ones(len(kld)), np.array(kld), np.array(same_top), np.array(dp))


def test_hand_made_values() -> None:
    found = combine([by_hand([1.0, 0.0], [True, False], [0.3, -0.4]), by_hand([2.0, 5.0], [True, True], [0.0, 0.0])])
    assert (found.kld_mean, found.kld_median, found.kld_max) == (2, 1.5, 5)
    assert found.kld_stderr == pytest.approx(math.sqrt(14 / 3 / 4))
    assert (found.top1, found.rms_dp) == (0.75, pytest.approx(0.25))
    assert (found.perplexity.tokens, found.perplexity.perplexity) == (4, pytest.approx(math.e))


def test_percentiles_of_a_row_of_numbers() -> None:
    numbers = [float(number) for number in range(1001)]
    found = combine([by_hand(numbers[::-1], [True] * 1001, [0.0] * 1001)])
    assert (found.kld_median, found.kld_p99, found.kld_p999) == (500, pytest.approx(990), pytest.approx(999))


def test_one_token_has_no_spread() -> None:
    found = combine([by_hand([2.0], [True], [0.1])])
    assert (found.kld_mean, found.kld_stderr, found.kld_p99) == (2, 0, 2)
