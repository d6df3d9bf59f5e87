"""Text that the model writes: drawn from its own distribution, the same each time."""

from typing import Any

import numpy as np
import pytest
from dgpt2_quant.quantize import sample_text
from dgpt2_quant.quantize.calibrate import SAMPLED, SAMPLED_TOKENS, cut
from dgpt2_quant.quantize.errors import UsageError
from dgpt2_quant.quantize.model_source import open_model
from dgpt2_quant.quantize.reference import softmax
from dgpt2_quant.quantize.sample_text import draw, sample

from .checkpoints import TOKENS, make_checkpoint
from .random_reference import random_reference

COUNT, LENGTH = 5, 12


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("groups", [1, 3])
def test_every_token_is_drawn_from_the_references_distribution(
    tied: bool, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_reference(tied=tied)
    met: list[Any] = []

    def watched(probabilities: Any, rng: Any) -> Any:
        met.append(probabilities)
        return draw(probabilities, rng)

    monkeypatch.setattr(sample_text, "draw", watched)
    if groups == 3:  # two sequences at a time: of keys and values, 2 x 2 layers x 12 x 16 numbers each
        monkeypatch.setattr(sample_text, "_CACHE_BYTES", 2 * 2 * 2 * LENGTH * 16 * 4)
    tokens = np.reshape(sample(model, 7, COUNT, LENGTH), (COUNT, LENGTH))
    assert (tokens[:, 0] == 7).all()
    assert len(met) == groups * (LENGTH - 1)
    for group in range(groups):
        steps = np.stack(met[group * (LENGTH - 1) : (group + 1) * (LENGTH - 1)], axis=1)
        first = 0 if groups == 1 else 2 * group
        for sequence, probabilities in zip(tokens[first : first + len(steps)], steps, strict=True):
            expected = softmax(model.logits(sequence[:-1].tolist()))
            np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_it_is_the_same_each_time_and_no_sequence_twice() -> None:
    model = random_reference(dtype=np.float32)
    tokens = sample(model, 7, COUNT, LENGTH)
    assert tokens == sample(model, 7, COUNT, LENGTH)
    assert all(type(token) is int and 0 <= token < 20 for token in tokens)
    assert len({tuple(row) for row in np.reshape(tokens, (COUNT, LENGTH)).tolist()}) == COUNT


def test_draws_follow_the_probabilities() -> None:
    probabilities = np.array([[0.0, 0.5, 0.2, 0.0, 0.3, 0.0]], np.float32)
    tokens = draw(np.repeat(probabilities, 20_000, axis=0), np.random.default_rng(0))
    shares = np.bincount(tokens, minlength=6) / 20_000
    assert shares[[0, 3, 5]].tolist() == [0, 0, 0]
    np.testing.assert_allclose(shares, probabilities[0], atol=0.015)


def test_a_draw_at_the_very_end_is_a_token() -> None:
    class Last:
        def random(self, count: int) -> Any:
            return np.full(count, np.nextafter(1, 0))  # rounded to float32 it is 1

    assert draw(np.full((2, 3), 1 / 3, np.float32), Last()).tolist() == [2, 2]  # type: ignore[arg-type]


def test_progress_goes_to_the_end() -> None:
    shown: list[tuple[int, int, str]] = []
    sample(random_reference(), 0, COUNT, LENGTH, progress=lambda *seen: shown.append(seen))
    done = [seen[0] for seen in shown]
    assert done == sorted(done)
    assert {seen[1] for seen in shown} == {COUNT * LENGTH}
    assert done[-1] == COUNT * LENGTH


def test_one_token_is_the_first() -> None:
    assert sample(random_reference(), 3, 2, 1) == [3, 3]


class TestAsACalibrationText:
    """`sampled` in the place of a text."""

    @pytest.fixture
    def source(self, tmp_path: Any) -> Any:
        return open_model(str(make_checkpoint(tmp_path / "tiny", width=16, heads=2, layers=1, context=8)))

    def test_it_is_cut_into_contexts_that_begin_with_a_text(self, source: Any) -> None:
        text = cut(source, SAMPLED, chunks=4)
        assert (text.name, text.size, text.count, len(text.tokens)) == (SAMPLED, 8, 4, 32)
        assert set(text.tokens[::8]) == {len(TOKENS) - 1}
        assert text.sha256 == cut(source, SAMPLED, chunks=4).sha256 != cut(source, SAMPLED, chunks=5).sha256

    def test_there_is_enough_of_it(self, source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[int, int]] = []

        def sampled(reference: Any, first: int, count: int, length: int, progress: Any = None) -> list[int]:
            asked.append((count, length))
            return [first] * count * length

        monkeypatch.setattr(sample_text, "sample", sampled)
        assert len(cut(source, SAMPLED).tokens) == SAMPLED_TOKENS
        cut(source, SAMPLED, 7)
        assert asked == [(SAMPLED_TOKENS // 8, 8), (-(-SAMPLED_TOKENS // 7), 7)]

    def test_a_file_of_that_name_is_a_text(self, source: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / SAMPLED).write_text("0123456789")
        assert cut(source, SAMPLED).count == 1
        (tmp_path / SAMPLED).write_text("0123")
        with pytest.raises(UsageError, match="the text sampled has 4 tokens"):
            cut(source, SAMPLED)
