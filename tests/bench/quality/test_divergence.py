"""The figures of a level from hand-made scores, and from random ones by their definitions."""

import math

import numpy as np
import pytest
from dgpt2_quant.bench.quality.compare_files import Noise, Quality
from dgpt2_quant.bench.quality.divergence import divergence, noise_floor, pairs, resampled, summarize
from dgpt2_quant.bench.quality.logit_rows import FileScores, TokenScores
from dgpt2_quant.bench.quality.windows import Window, Windowing
from dgpt2_quant.core.errors import RuntimeFailure

NONE: list[float] = []


def quality(base: TokenScores, *levels: FileScores, noise: FileScores | None = None) -> Quality:
    """Of one window that has all tokens."""
    count = len(base.nll)
    window = Window(range(count + 1), 0)
    return Quality(
        range(count + 1), Windowing(), [window], base, list(levels), Noise("on another road", noise or levels[0])
    )


def base(nll: list[float], top: list[int] | None = None, top_p: list[float] | None = None) -> TokenScores:
    count = len(nll)
    return TokenScores(np.array(nll), np.array(top or [0] * count), np.array(top_p or [0.5] * count))


def found(nll: list[float], kld: list[float] | None = None, top: list[int] | None = None) -> FileScores:
    count = len(nll)
    return FileScores(np.array(nll), np.array(kld or [0.0] * count), np.array(top or [0] * count))


def test_figures_of_known_values() -> None:
    reference = base([math.log(2), math.log(4), 1, 1], top=[1, 2, 3, 4])
    level = found([math.log(4), math.log(2), 1, 1], [1.0, 0.0, 2.0, 5.0], top=[1, 2, 0, 4])
    whole = quality(reference, level)
    result = divergence(whole, 0, resampled(whole))
    assert (result.kld_mean, result.kld_median, result.kld_max) == (2, 1.5, 5)
    assert result.kld_stderr == pytest.approx(math.sqrt(14 / 3 / 4))
    assert result.top1_agreement == 0.75
    assert result.mean_dp == pytest.approx(0)  # one gained what the other lost
    assert result.rms_dp == pytest.approx(math.sqrt(2 * 0.25**2 / 4))
    assert result.ppl_ratio == pytest.approx(1)
    assert result.perplexity.tokens == 4
    assert result.perplexity.nll == pytest.approx((math.log(8) + 2) / 4)


def test_percentiles_of_a_row_of_numbers() -> None:
    numbers = [float(number) for number in range(1001)]
    whole = quality(base([1.0] * 1001), found([1.0] * 1001, numbers[::-1]))
    result = divergence(whole, 0, resampled(whole))
    percentiles = (result.kld_median, result.kld_p90, result.kld_p95, result.kld_p99, result.kld_p999)
    assert percentiles == pytest.approx((500, 900, 950, 990, 999))
    assert result.nll_correlation is None  # they do not vary


def test_the_ratio_of_perplexities_and_its_interval_are_paired() -> None:
    random = np.random.default_rng(1)
    nll = random.exponential(3, 4000)
    worse = nll + random.normal(0.01, 0.02, 4000)
    whole = quality(base(nll.tolist()), found(worse.tolist()))
    result = divergence(whole, 0, resampled(whole))
    interval = result.ppl_ratio_interval
    assert result.ppl_ratio == interval["value"] == pytest.approx(math.exp((worse - nll).mean()))
    assert result.ppl_ratio == pytest.approx(result.perplexity.perplexity / summarize(nll).perplexity)
    assert 1.008 < interval["low"] < interval["value"] < interval["high"] < 1.012
    assert result.nll_correlation == pytest.approx(np.corrcoef(nll, worse)[0, 1])


def test_by_the_references_confidence() -> None:
    reference = base([1.0] * 5, top=[0] * 5, top_p=[0.05, 0.2, 0.2, 0.95, 1.0])
    whole = quality(reference, found([1.0] * 5, [9.0, 1.0, 3.0, 5.0, 6.0], top=[0, 0, 1, 0, 0]))
    parts = divergence(whole, 0, resampled(whole)).by_confidence
    assert [(part["low"], part["high"]) for part in parts] == [
        (0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 0.9), (0.9, 1),
    ]  # fmt: skip
    assert [part["tokens"] for part in parts] == [1, 2, 0, 0, 0, 2]
    assert [part["kld_mean"] for part in parts] == [9, 2, None, None, None, 5.5]
    assert [part["top1_agreement"] for part in parts] == [1, 0.5, None, None, None, 1]


def test_pairs_use_the_same_tokens() -> None:
    nll = np.random.default_rng(2).exponential(3, 500)
    kld = np.random.default_rng(3).exponential(0.01, 500)
    levels = [found((nll + step).tolist(), (kld + step).tolist()) for step in (0.0, 0.1, 0.3)]
    whole = quality(base(nll.tolist()), *levels)
    rows = pairs(whole, ["Q8_0", "Q5_0", "Q4_0"], resampled(whole))
    assert [(row["a"], row["b"]) for row in rows] == [("Q8_0", "Q5_0"), ("Q8_0", "Q4_0"), ("Q5_0", "Q4_0")]
    for row, step in zip(rows, (0.1, 0.3, 0.2), strict=True):
        for key in ("kld_difference", "nll_difference"):
            interval = row[key]  # type: ignore[literal-required]
            assert list(interval.values()) == pytest.approx([step] * 3)


def test_the_noise_floor_is_of_the_first_tokens() -> None:
    reference = base([1.0, 2.0, 3.0], top=[1, 2, 3])
    noise = found([1.0, 2.1], [0.0, 0.2], top=[1, 9])
    floor = noise_floor(quality(reference, found([1.0] * 3), noise=noise))
    assert floor["how"] == "on another road"
    assert (floor["kld_mean"], floor["kld_max"], floor["top1_agreement"]) == (0.1, 0.2, 0.5)
    assert floor["ppl_ratio"] == pytest.approx(math.exp(0.05))


def test_perplexity_matches_its_definition() -> None:
    nll = np.random.default_rng(2).exponential(3, 1000)
    result = summarize(nll)
    mean = sum(nll) / 1000
    deviation = math.sqrt(sum((value - mean) ** 2 for value in nll) / 1000)
    assert (result.tokens, result.nll) == (1000, pytest.approx(mean))
    assert result.perplexity == pytest.approx(math.exp(mean))
    assert result.stderr == pytest.approx(math.exp(mean) * deviation / math.sqrt(999))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_overflow_are_an_error(bad: float) -> None:
    with pytest.raises(RuntimeFailure, match="not finite"):
        summarize(np.array([1.0, bad]))


def test_perplexity_of_certain_and_uniform_models() -> None:
    assert summarize(np.zeros(9)).perplexity == 1
    even = summarize(np.full(9, math.log(50)))
    assert (even.perplexity, even.stderr) == (pytest.approx(50), pytest.approx(0, abs=1e-6))
