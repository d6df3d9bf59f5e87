"""Generated calibration text: drawn from the model's distribution, deterministic."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.core.errors import CheckpointError, UsageError
from dgpt2_quant.quantize.calibration import collect as calibrate
from dgpt2_quant.quantize.calibration import sample_text
from dgpt2_quant.quantize.calibration.collect import SAMPLED, SAMPLED_TOKENS, collect, cut, load_calibration_text
from dgpt2_quant.quantize.calibration.numpy_gpt2 import Reference, from_source, softmax
from dgpt2_quant.quantize.calibration.sample_text import draw, sample
from dgpt2_quant.quantize.checkpoint.source import open_model

from ...checkpoints import TOKENS, make_checkpoint
from ..random_reference import random_reference

COUNT, LENGTH = 5, 12


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("at_once", ["all", "in turns", "together"])
def test_tokens_are_drawn_from_the_model_distribution(
    tied: bool, at_once: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_reference(tied=tied)
    met: list[Any] = []

    def watched(probabilities: Any, rng: Any) -> Any:
        met.append(probabilities)
        return draw(probabilities, rng)

    monkeypatch.setattr(sample_text, "draw", watched)
    if at_once == "in turns":  # two sequences: keys and values of 2 x 2 layers x 12 x 16 numbers each
        monkeypatch.setattr(sample_text, "_CACHE_BYTES", 2 * 2 * 2 * LENGTH * 16 * 4)
    if at_once == "together":
        monkeypatch.setattr(sample_text, "_ROWS", 2)
    monkeypatch.setattr(sample_text, "_COLUMNS", 8)
    tokens = np.reshape(sample(model, 7, COUNT, LENGTH), (COUNT, LENGTH))
    assert (tokens[:, 0] == 7).all()
    turns, drawn, behind = [2, 2, 1] if at_once == "in turns" else [COUNT], [], np.concatenate(met)
    for turn in turns:  # in each, positions in order
        steps, behind = np.split(behind, [(LENGTH - 1) * turn])
        drawn += [*steps.reshape(LENGTH - 1, turn, -1).transpose(1, 0, 2)]
    assert len(behind) == 0
    for sequence, probabilities in zip(tokens, drawn, strict=True):
        expected = softmax(model.logits(sequence[:-1].tolist()))
        np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_deterministic_and_all_sequences_differ() -> None:
    model = random_reference(dtype=np.float32)
    tokens = sample(model, 7, COUNT, LENGTH)
    assert tokens == sample(model, 7, COUNT, LENGTH)
    assert all(type(token) is int and 0 <= token < 20 for token in tokens)
    assert len({tuple(row) for row in np.reshape(tokens, (COUNT, LENGTH)).tolist()}) == COUNT


def test_draw_frequencies() -> None:
    probabilities = np.array([[0.0, 0.5, 0.2, 0.0, 0.3, 0.0]], np.float32)
    tokens = draw(np.repeat(probabilities, 20_000, axis=0), np.random.default_rng(0))
    shares = np.bincount(tokens, minlength=6) / 20_000
    assert shares[[0, 3, 5]].tolist() == [0, 0, 0]
    np.testing.assert_allclose(shares, probabilities[0], atol=0.015)


@pytest.mark.parametrize("count", [3, 1000, 50_257])
@pytest.mark.parametrize("behind", [0, 300])
def test_draw_at_the_upper_end_has_a_probability(count: int, behind: int) -> None:
    class Last:
        def random(self, count: int) -> Any:
            return np.full(count, np.nextafter(1, 0))  # 1 when rounded to float32

    probabilities = np.zeros((2, count + behind), np.float32)
    probabilities[:, :count] = np.random.default_rng(0).dirichlet(np.ones(count), 2)
    assert draw(probabilities, Last()).tolist() == [count - 1] * 2  # type: ignore[arg-type]


def test_progress_reaches_the_total() -> None:
    shown: list[tuple[int, int, str]] = []
    sample(random_reference(), 0, COUNT, LENGTH, progress=lambda *seen: shown.append(seen))
    done = [seen[0] for seen in shown]
    assert done == sorted(done)
    assert {seen[1] for seen in shown} == {COUNT * LENGTH}
    assert done[-1] == COUNT * LENGTH


def test_length_1_gives_the_first_token() -> None:
    assert sample(random_reference(), 3, 2, 1) == [3, 3]


class TestAsACalibrationText:
    """`sampled` as the calibration text."""

    @pytest.fixture
    def source(self, tmp_path: Any) -> Any:
        return open_model(str(make_checkpoint(tmp_path / "tiny", width=16, heads=2, layers=1, context=8)))

    def test_chunks_begin_with_bos(self, source: Any) -> None:
        text = cut(source, None, chunks=4)
        assert (text.name, text.size, text.count, len(text.tokens)) == (SAMPLED, 8, 4, 32)
        assert set(text.tokens[::8]) == {len(TOKENS) - 1}
        assert text.tokens == cut(source, None, chunks=4).tokens != cut(source, None, chunks=5).tokens

    def test_default_number_of_tokens(self, source: Any) -> None:
        assert len(cut(source, None).tokens) == SAMPLED_TOKENS
        assert len(cut(source, None, 7).tokens) == 7 * -(-SAMPLED_TOKENS // 7)

    def test_interrupted_text_continues_after_the_last_batch(
        self, source: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sample_text, "_AT_ONCE", 16)  # as for a large model
        whole = cut(source, None, chunks=43)
        store: dict[str, Any] = {}
        steps: list[int] = []

        def interrupt(done: int, total: int, what: str) -> None:
            if done > 30 * 8:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            cut(source, None, chunks=43, store=store, progress=interrupt)
        found = cut(source, None, chunks=43, store=store, progress=lambda done, *_: steps.append(done))
        assert len(steps) == 8  # positions of the last of three batches
        assert steps[-1] == 43 * 8
        assert found.tokens == whole.tokens
        assert found.sums
        assert whole.sums
        assert found.sums.keys() == whole.sums.keys()
        assert all(np.array_equal(found.sums[name], whole.sums[name]) for name in whole.sums)

    def test_importance_is_collected_during_sampling(self, source: Any) -> None:
        """Equal to collecting over the generated text afterwards."""
        text = cut(source, None, chunks=43)
        found, expected = collect(source, text), collect(source, replace(text, sums=None))
        assert found.entries.keys() == expected.entries.keys()
        assert replace(found, entries={}) == replace(expected, entries={})
        for name, entry in found.entries.items():
            other = expected.entries[name]
            assert entry.count == other.count == 43 * 8
            np.testing.assert_allclose(entry.sum_squares, other.sum_squares, rtol=1e-4)
            np.testing.assert_allclose(entry.sums, other.sums, rtol=1e-4, atol=1e-3)

    def test_non_finite_weights_are_refused(self, source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        reference = from_source(source)
        weights = {**reference.weights, "blk.0.ffn_up.bias": np.full(16 * 4, np.inf, np.float32)}
        monkeypatch.setattr(calibrate, "from_source", lambda _: Reference(reference.sizes, weights))
        with pytest.raises(CheckpointError, match=r"the input of blk\.0\.ffn_down\.weight is not finite"):
            cut(source, None)

    def test_file_named_sampled_is_a_text(self, source: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / SAMPLED).write_text("0123456789")
        assert cut(source, load_calibration_text(SAMPLED)).count == 1
        (tmp_path / SAMPLED).write_text("0123")
        with pytest.raises(UsageError, match="the text sampled has 4 tokens"):
            cut(source, load_calibration_text(SAMPLED))
