"""The arithmetic on rows of logits against its definitions in float64."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.bench.quality import logit_rows as rows
from dgpt2_quant.bench.quality.logit_rows import FileScores

ROWS, VOCABULARY = 60, 300
Logits = npt.NDArray[np.float32]
Targets = npt.NDArray[np.int64]


def random_pair(noise: float = 0.5) -> tuple[Logits, Logits, Targets]:
    """The logits of a reference and of a level, and the tokens that came."""
    random = np.random.default_rng(3)
    reference = random.normal(0, 3, (ROWS, VOCABULARY)).astype(np.float32)
    level = (reference + random.normal(0, noise, reference.shape)).astype(np.float32)
    return reference, level, random.integers(0, VOCABULARY, ROWS)


def probabilities(logits: Logits) -> npt.NDArray[np.float64]:
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def compared(
    reference: Logits, level: Logits, targets: Targets, *, threads: int = 1, cuts: tuple[int, ...] = ()
) -> FileScores:
    """All rows of a level, handed over in parts."""
    result = rows.no_scores(len(targets))
    with rows.on_threads(threads) as for_blocks:
        wanted = rows.reference_rows(reference, targets, for_blocks)
        for start, end in zip((0, *cuts), (*cuts, len(targets)), strict=True):
            rows.compare(level[start:end], wanted, start, result, for_blocks)
    return result


def test_compare_matches_the_definition() -> None:
    reference, level, targets = random_pair()
    found = compared(reference, level, targets)
    p, q = probabilities(reference), probabilities(level)
    for row, target in enumerate(targets):
        kld = sum(p[row, token] * math.log(p[row, token] / q[row, token]) for token in range(VOCABULARY))
        assert found.kld[row] == pytest.approx(kld, abs=1e-6)
        assert found.nll[row] == pytest.approx(-math.log(q[row, target]), abs=1e-6)
        assert found.top[row] == q[row].argmax()


def test_pad_tokens_take_their_share_of_the_probability() -> None:
    reference, level, targets = random_pair()
    for pads in (level[:, :2] - 3, level[:, :1] + 200):  # as if rare tokens, and far above all others
        found = compared(reference, np.concatenate([level, pads], axis=1), targets)
        p, q = probabilities(reference), probabilities(np.concatenate([level, pads], axis=1))
        expected = np.array([p[row] @ np.log(p[row] / q[row, :VOCABULARY]) for row in range(ROWS)])
        assert found.kld == pytest.approx(expected, abs=1e-5)
        assert found.nll == pytest.approx(-np.log(q[np.arange(ROWS), targets]), abs=1e-5)
        assert np.array_equal(found.top, q.argmax(axis=-1))


def test_expected_matches_the_definition() -> None:
    reference, _, targets = random_pair()
    with rows.on_threads(2) as for_blocks:
        found = rows.reference_rows(reference, targets, for_blocks)
        alone = rows.nll(reference, targets, for_blocks)
    p = probabilities(reference)
    assert found.nll == pytest.approx(-np.log(p[np.arange(ROWS), targets]), abs=1e-6)
    assert np.array_equal(found.nll, alone)
    assert np.array_equal(found.top, p.argmax(axis=-1))
    assert found.top_p == pytest.approx(p.max(axis=-1), abs=1e-6)


@pytest.mark.parametrize("options", [{"threads": 3}, {"cuts": (1, 2, 17)}, {"threads": 2, "cuts": (30,)}], ids=str)
def test_threads_and_batches_do_not_change_the_bits(options: dict[str, object]) -> None:
    pair = random_pair()
    found, whole = compared(*pair, **options), compared(*pair)  # type: ignore[arg-type]
    for name in ("nll", "kld", "top"):
        assert np.array_equal(getattr(found, name), getattr(whole, name))


def test_the_logits_are_not_modified() -> None:
    reference, level, targets = random_pair()
    for array in (reference, level):
        array.flags.writeable = False
    compared(reference, level, targets)


def test_a_distribution_does_not_diverge_from_itself() -> None:
    reference, _, targets = random_pair()
    # a shift of all logits of a row changes no probability
    shifted = (reference.astype(np.float64) + 64).astype(np.float32)
    assert compared(reference, reference, targets).kld.max() == 0
    assert compared(reference, shifted, targets).kld.max() < 1e-9


@pytest.mark.parametrize("noise", [1e-6, 1e-4, 1e-3])
def test_small_divergences_are_not_rounded_to_zero(noise: float) -> None:
    reference, level, targets = random_pair(noise)
    found = compared(reference, level, targets).kld
    p, q = probabilities(reference), probabilities(level)
    exact = (p * np.log(p / q)).sum(axis=-1)
    assert (found >= 0).all()
    assert found == pytest.approx(exact, abs=2e-9, rel=1e-3)


def test_the_divergence_is_from_the_reference() -> None:
    sure, unsure = np.log(np.float32([[0.98, 0.01, 0.01]])), np.log(np.float32([[0.5, 0.25, 0.25]]))
    target = np.array([0])
    from_sure, from_unsure = compared(sure, unsure, target).kld[0], compared(unsure, sure, target).kld[0]
    assert from_sure == pytest.approx(0.98 * math.log(0.98 / 0.5) + 0.02 * math.log(0.01 / 0.25), abs=1e-6)
    assert from_unsure == pytest.approx(0.5 * math.log(0.5 / 0.98) + 0.5 * math.log(0.25 / 0.01), abs=1e-6)


def test_large_logits_do_not_overflow() -> None:
    logits = np.float32([[1e4, -1e4, 0], [-1e4, -1e4, -1e4]])
    with rows.on_threads(1) as for_blocks:
        assert rows.nll(logits, np.array([1, 0]), for_blocks) == pytest.approx([2e4, math.log(3)])
