"""The recommendation, and that each sentence follows from its rule and from nothing else."""

import math
from typing import Any

import pytest
from dgpt2_quant.bench.report.advice import advise, recommend, with_advice

from ..documents import document, environment, peer, rate, result


def exact(value: float, by: float = 0.0) -> dict[str, float]:
    return {"value": value, "low": value - by, "high": value + by}


def row(name: str, ratio: float, size: int, speed: float, *, by: float = 0.0, **changed: Any) -> Any:
    speeds = {"median": speed, "min": speed * 0.99, "max": speed * 1.01, "rounds": 5}
    ratios = {"median": speed / 100, "min": speed / 101, "max": speed / 99, "rounds": 5}
    changed = {"ppl_ratio_interval": exact(ratio, by), "decode_tps": speeds, "decode_ratio": ratios} | changed
    return result(name, ppl_ratio=ratio, bytes=size, **changed)


def pair(a: str, b: str, low: float, high: float) -> Any:
    difference = {"value": (low + high) / 2, "low": low, "high": high}
    return {"a": a, "b": b, "kld_difference": difference, "nll_difference": difference}


def advice(*rows: Any, **changed: Any) -> str:
    changed = {"pairs": [], "noise_floor": None} | changed
    reference = {**document()["reference"], "tokens_scored": 20_000} | changed.pop("reference", {})
    return "\n".join(advise(document(*rows, reference=reference, **changed)))


@pytest.mark.parametrize(
    ("rows", "smallest", "fastest"),
    [
        ([], None, None),
        ([row("Q4_0", 1.011, 1, 9)], None, None),
        ([row("Q4_0", 1.01, 1, 9)], "Q4_0", "Q4_0"),
        ([row("Q4_0", 0.98, 1, 9)], "Q4_0", "Q4_0"),  # better than the reference is no loss
        ([row("Q8_0", 1.0, 8, 3), row("Q5_K_M", 1.004, 5, 2), row("Q4_0", 1.1, 4, 9)], "Q5_K_M", "Q8_0"),
        ([row("Q8_0", 1.0, 5, 3), row("Q5_K_M", 1.0, 5, 3)], "Q8_0", "Q8_0"),  # ties: the first that was asked for
        ([row("Q8_0", math.nan, 1, 9), row("F16", 1.0, 16, 1)], "F16", "F16"),
    ],
)
def test_recommendations(rows: list[Any], smallest: str | None, fastest: str | None) -> None:
    found = recommend(rows)
    assert (found["smallest_within_1pct_ppl"], found["fastest_within_1pct_ppl"]) == (smallest, fastest)
    assert found["fastest_disturbed"] is False


def test_advice_mentions_disturbed_speeds() -> None:
    calm, loud = row("Q8_0", 1.0, 8, 300), row("Q4_0", 1.0, 4, 400, disturbed=True)
    worse = row("Q5_0", 1.5, 9, 200, kld_mean=0.004, disturbed=True)  # by the speed of none of them it is dominated
    unknown = row("Q4_0", 1.0, 4, 400, disturbed=None)
    assert recommend([calm, loud])["fastest_disturbed"] is True
    assert recommend([calm, worse])["fastest_disturbed"] is False  # not within 1 %
    assert recommend([calm, unknown])["fastest_disturbed"] is None
    warned = "disturbed the timing: measure again on a quiet machine to choose by speed"
    assert warned in advice(calm, loud)
    assert "Do not use these" not in advice(worse, loud)
    assert "Do not use these" in advice({**worse, "disturbed": False}, {**loud, "disturbed": False})
    assert warned not in advice(calm, unknown)
    assert "as fast as that, but other programs disturbed the timing." in advice(loud, peers=[peer("Slow")])


def test_skipped_rounds_are_reported() -> None:
    measured = row("Q4_0", 1.0, 4, 400, decode_ratio=rate(4.0, rounds=2))
    for asked, reported in ((2, False), (5, True)):
        said = advice(measured, runs=[environment(rounds_asked=asked, disturbed_seconds=61.0)])
        assert ("The machine was busy: 2 of 5 rounds were measured." in said) is reported
    assert "The machine was busy" not in advice(measured)  # an older document, which does not say


def test_speeds_of_several_runs_compare_by_ratio() -> None:
    slow_machine = row("Q4_0", 1.0, 4, 50, run=1, decode_ratio=rate(5.0))
    fast_machine = row("Q8_0", 1.0, 8, 500, run=0, decode_ratio=rate(3.0))
    assert recommend([fast_machine, slow_machine])["fastest_within_1pct_ppl"] == "Q4_0"
    slow_machine["run"] = 0
    assert recommend([fast_machine, slow_machine])["fastest_within_1pct_ppl"] == "Q8_0"
    slow_machine["run"] = 1
    assert "measured in several runs" in advice(fast_machine, slow_machine, runs=[environment()] * 2)


def test_what_to_ship() -> None:
    said = advice(row("Q8_0", 1.0001, 3_000_000, 300), row("Q4_0", 1.006, 1_500_000, 400, by=0.002))
    assert said.splitlines()[:2] == [
        "Ship Q4_0: the smallest file (1.5 MB, 25 % of F32's size) within 1 % of F32's perplexity, +0.60 % (95 %"
        " interval +0.40 % to +0.80 %), KL divergence 0.00123.",
        "It also decodes fastest, at 4.00 times F32's speed.",
    ]


def test_an_interval_above_one_percent_is_reported() -> None:
    doubtful, sure = row("Q4_0", 1.008, 1, 4, by=0.004), row("Q5_K_M", 1.004, 2, 3, by=0.001)
    assert "The smallest file with its whole interval within 1 % is Q5_K_M." in advice(doubtful, sure)
    assert "No file's is." in advice(doubtful)
    assert "a longer text" not in advice(sure)


def test_nothing_within_one_percent() -> None:
    said = advice(row("Q4_0", 1.05, 1, 4), row("Q5_0", 1.018, 2, 3)).splitlines()
    assert said[0].startswith("No file is within 1 % of F32's perplexity")
    assert "The nearest is Q5_0, +1.80 %" in said[0]
    assert not any(word in line for line in said for word in ("Ship", "fastest"))


def test_the_fastest_and_those_that_overlap_with_it() -> None:
    rows = [row("Q4_0", 1.0, 4, 400), row("Q4_K_M", 1.0, 5, 401), row("Q8_0", 1.0, 8, 300)]
    assert "Of these, Q4_K_M decodes fastest, at 4.01 times F32's speed; over the rounds this overlaps with Q4_0." in (
        advice(*rows)
    )


def test_dominated_files() -> None:
    worse = row("Q5_0", 1.0, 5, 300, kld_mean=0.004)
    better = row("Q4_K_M", 1.0, 4, 400, kld_mean=0.003)
    assert "smaller, faster and nearer to the reference: Q5_0 (Q4_K_M)." in advice(worse, better)
    for change in ({"bytes": 5}, {"decode_tps": rate(299)}, {"kld_mean": 0.004}):
        assert "Do not use" not in advice(worse, {**better, **change})


@pytest.mark.parametrize(
    ("low", "high", "advised"), [(-0.001, 0.002, True), (-0.002, -0.001, True), (0.0001, 0.002, False)]
)
def test_of_two_equal_files_the_smaller_is_advised(low: float, high: float, advised: bool) -> None:
    rows = [row("Q4_K_M", 1.0, 5, 4), row("Q4_K_S", 1.0, 4, 3)]
    sentence = "Use Q4_K_S instead of Q4_K_M: smaller, and not measurably further"
    assert (sentence in advice(*rows, pairs=[pair("Q4_K_M", "Q4_K_S", low, high)])) is advised
    assert (sentence in advice(*rows, pairs=[pair("Q4_K_S", "Q4_K_M", -high, -low)])) is advised
    assert sentence not in advice(*rows)  # no pair, no verdict
    lean = row("Q4_K_S", 1.0, 3, 3, recipe="lean")
    for named in ("Q4_K_S", "Q4_K_S lean"):
        said = advice(*rows, lean, pairs=[pair("Q4_K_M", "Q4_K_S", 0.1, 0.2), pair("Q4_K_S", named, low, high)])
        assert ("Use Q4_K_S lean instead of Q4_K_S:" in said) is (advised and named == "Q4_K_S lean")


def test_files_that_perplexity_does_not_distinguish_from_the_reference() -> None:
    rows = [row("F16", 1.0001, 9, 2, by=0.001), row("Q8_0", 0.9999, 5, 3, by=0.001), row("Q4_0", 1.01, 3, 4, by=0.001)]
    assert "does not distinguish F16 and Q8_0 from F32" in advice(*rows)
    assert "does not distinguish" not in advice(rows[2])


def test_the_noise_floor() -> None:
    floor = document()["noise_floor"]
    rows = [row("F16", 1.0, 9, 2, kld_interval=exact(2e-9, 1.5e-9)), row("Q8_0", 1.0, 5, 3, kld_interval=exact(1e-5))]
    said = advice(*rows, noise_floor=floor)
    assert "F16 is at the noise floor: no further from F32 than it is from itself (batches of 32 tokens" in said
    assert "Q8_0 is at the noise floor" not in said


def test_peers() -> None:
    peers = [peer("Slow", decode_ratio=rate(0.5)), peer("Quick", precision="int8", decode_ratio=rate(2.0))]
    peers.append(peer("Wild", decode_ratio=rate(9.0), sane=False))
    said = advice(row("Q4_0", 1.0, 4, 400), peers=peers)
    assert "The fastest peer is Quick int8, at 2.00 times" in said
    assert "Q4_0 decodes 2.0 times as fast as that." in said
    assert "The reference finds the output of Wild F32 unlikely" in said


def test_warnings() -> None:
    calm = row("Q4_0", 1.0, 4, 400)
    said = advice(
        {**calm, "disturbed": True, "load_disturbed": True, "decode_ratio": rate(4.0, rounds=1)},
        peers=[peer("Quick", disturbed=True)],
        reference={"tokens_scored": 4_845},
    )
    assert "while these were timed: Q4_0 and Quick F32." in said
    assert "disturbed the load time and the first token of Q4_0." in said
    assert "Speeds are from 1 round:" in said
    assert "4,845 tokens were scored, of which about 5 are above the 99.9 % quantile" in said
    quiet = advice(calm, {**calm, "disturbed": None}, reference={"tokens_scored": 10_000})
    assert not any(word in quiet for word in ("disturbed", "spread", "quantile"))


def test_with_advice_sets_both_keys() -> None:
    whole = with_advice(document(row("Q4_0", 1.0, 4, 400)))
    assert whole["recommended"] == {
        "smallest_within_1pct_ppl": "Q4_0",
        "fastest_within_1pct_ppl": "Q4_0",
        "fastest_disturbed": False,
    }
    assert whole["advice"] == advise(whole)
    assert advise(document()) == []
