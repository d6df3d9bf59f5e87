"""Files compared on a text: higher quant types score better, and scores match the logits."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.bench.quality.compare_files import compare_files
from dgpt2_quant.bench.quality.divergence import divergence, noise_floor, resampled
from dgpt2_quant.bench.quality.windows import Windowing
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.core.text import load_text
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model

from ...checkpoints import make_checkpoint
from ...runtime.gguf_edit import rewrite

TEXT = load_text("evaluation").text[:6000]
SHORT = Windowing(context=64)


def test_higher_quant_types_score_better(short_files: dict[str, Path]) -> None:
    seen: list[tuple[int, int, str]] = []
    levels = ("F32", "F16", "Q8_0", "Q5_K_M", "Q4_0")
    files = [short_files[level] for level in levels]
    quality = compare_files(
        short_files["F32"], files, TEXT, threads=1, progress=lambda *arguments: seen.append(arguments)
    )
    count = len(quality.tokens) // 512
    assert count >= 2
    assert (quality.windowing.context, quality.lengths) == (512, [255] * count)
    steps = count * len(files)
    assert [(done, total) for done, total, _ in seen] == [(step, steps) for step in range(steps + 1)]
    assert seen[0][2] == f"perplexity and KL divergence, {files[0].name}"

    draws = resampled(quality)
    itself, *others = (divergence(quality, number, draws) for number in range(len(files)))
    assert (itself.kld_mean, itself.kld_max, itself.top1_agreement, itself.rms_dp) == (0, 0, 1, 0)
    assert (itself.ppl_ratio, itself.mean_dp) == (1, 0)
    kld = [level.kld_mean for level in others]
    assert kld == sorted(kld)
    assert 0 < kld[0] < 1e-4
    assert kld[1] < kld[3] / 10
    assert others[1].top1_agreement > others[3].top1_agreement
    assert others[1].rms_dp < others[3].rms_dp
    for level in others:
        order = (level.kld_median, level.kld_p90, level.kld_p95, level.kld_p99, level.kld_p999, level.kld_max)
        assert list(order) == sorted(order)
        assert level.kld_interval["low"] <= level.kld_mean <= level.kld_interval["high"]
        assert sum(part["tokens"] for part in level.by_confidence) == 255 * count

    floor = noise_floor(quality)
    assert 0 < floor["kld_mean"] < kld[1] / 10  # what F16 loses is of the order of rounding, what Q8_0 loses is not
    assert 0.99 < floor["top1_agreement"] <= 1


def test_scores_match_the_logits(short_files: dict[str, Path]) -> None:
    quality = compare_files(short_files["F32"], [short_files["Q4_0"]], TEXT[:900], windowing=SHORT, threads=1)
    row = 0
    with (
        Model.load(short_files["F32"], ctx_size=64, threads=1) as base,
        Model.load(short_files["Q4_0"], ctx_size=64, threads=1) as level,
    ):
        for window in quality.windows:
            p, q = (log_softmax(model.logits(window.tokens, 32)[:-1]) for model in (base, level))
            rows, targets = slice(row, row + 31), window.targets
            index = np.arange(31)
            assert quality.base.nll[rows] == pytest.approx(-p[index, targets], abs=1e-6)
            assert quality.files[0].nll[rows] == pytest.approx(-q[index, targets], abs=1e-6)
            assert quality.files[0].kld[rows] == pytest.approx((np.exp(p) * (p - q)).sum(axis=-1), abs=1e-6)
            assert np.array_equal(quality.base.top[rows], p.argmax(axis=-1))
            assert np.array_equal(quality.files[0].top[rows], q.argmax(axis=-1))
            row += 31
    assert row == len(quality.base.nll) > 90


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=-1, keepdims=True)
    return exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))


def test_threads_change_nothing(short_files: dict[str, Path]) -> None:
    files = short_files["F32"], [short_files["Q4_0"]]
    one, two = (compare_files(*files, TEXT[:3000], threads=threads) for threads in (1, 2))
    assert np.array_equal(one.files[0].kld, two.files[0].kld)
    assert np.array_equal(one.base.nll, two.base.nll)


def test_windows_that_overlap(short_files: dict[str, Path]) -> None:
    windowing = Windowing("strided", 64, 16)
    quality = compare_files(short_files["F32"], [short_files["Q8_0"]], TEXT[:900], windowing=windowing, threads=1)
    assert quality.windowing == windowing
    assert len(quality.base.nll) == len(quality.files[0].kld) == len(quality.tokens) - 1
    assert quality.lengths[:3] == [63, 16, 16]


def test_chunks_are_never_longer_than_the_model(short_files: dict[str, Path]) -> None:
    quality = compare_files(short_files["Q4_0"], [], TEXT[:3000], windowing=Windowing(context=4096), threads=1)
    assert quality.windowing.context == 512


@pytest.mark.parametrize(("parse_special", "more"), [(True, 1), (False, 8)])
def test_special_tokens_are_parsed_or_read_as_letters(
    parse_special: bool, more: int, short_files: dict[str, Path]
) -> None:
    text = "<|endoftext|>" + TEXT[:900]
    plain = compare_files(short_files["Q4_0"], [], TEXT[:900], windowing=SHORT, threads=1)
    marked = compare_files(short_files["Q4_0"], [], text, parse_special=parse_special, windowing=SHORT, threads=1)
    assert len(marked.tokens) == len(plain.tokens) + more


def test_a_text_shorter_than_a_chunk_is_refused(short_files: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="the text has 4 tokens, and needs at least one chunk of 512"):
        compare_files(short_files["Q4_0"], [], "Once upon a time", threads=1)


def test_another_vocabulary_is_refused(short_files: dict[str, Path], tmp_path: Path) -> None:
    (other,) = convert(str(make_checkpoint(tmp_path / "checkpoint")), type=["f32"], output=tmp_path)
    with pytest.raises(UsageError, match="vocabulary") as caught:
        compare_files(short_files["F32"], [short_files["Q8_0"], Path(other.path)], TEXT, threads=1)
    assert other.path in str(caught.value)


def with_padding(file: Path, target: Path) -> Path:
    """The same model with three pad tokens after the real ones, which are always the likeliest."""
    header = read_header(file)
    embedding = header.tensors["token_embd.weight"]
    count, width = embedding.shape
    rows = np.fromfile(file, "<f4", width * count, offset=embedding.start).reshape(count, width)
    loud = np.concatenate([rows, 50 * rows[5:6], -50 * rows[5:6], 80 * rows[9:10]])
    metadata = {
        "tokenizer.ggml.tokens": [*header.metadata["tokenizer.ggml.tokens"], "[PAD0]", "[PAD1]", "[PAD2]"],
        "tokenizer.ggml.token_type": [*header.metadata["tokenizer.ggml.token_type"], 5, 5, 5],
    }
    tensors = {"token_embd.weight": ((count + 3, width), TensorType.F32, loud.tobytes())}
    return rewrite(file, target, metadata=metadata, tensors=tensors)


def test_pad_tokens_of_a_file_are_in_the_softmax(short_files: dict[str, Path], tmp_path: Path) -> None:
    plain, padded = short_files["F32"], with_padding(short_files["F32"], tmp_path / "padded.gguf")
    with Model.load(padded, threads=1) as model:
        assert (model.vocabulary, model.real_vocabulary) == (8192, 8189)
        rows = model.logits([1, 2, 3])
    assert (rows[:, 8189:].max(axis=1) > rows[:, :8189].max(axis=1)).all()
    quality = compare_files(plain, [padded], TEXT[:900], windowing=SHORT, threads=1)
    (window, *_) = quality.windows
    with Model.load(padded, threads=1) as model:
        logits = model.logits(window.tokens, window.first)[: len(window.targets)].astype(np.float64)
    largest = logits.max(axis=1, keepdims=True)
    log_totals = largest[:, 0] + np.log(np.exp(logits - largest).sum(axis=1))
    expected = log_totals - logits[np.arange(len(window.targets)), window.targets]
    assert quality.files[0].nll[: len(expected)] == pytest.approx(expected, abs=1e-3)
    assert (quality.files[0].kld > 1).all()
    assert (quality.files[0].top >= 8189).all()


def test_pad_tokens_of_a_reference_are_ignored(short_files: dict[str, Path], tmp_path: Path) -> None:
    plain, padded = short_files["F32"], with_padding(short_files["F32"], tmp_path / "padded.gguf")
    alone, turned = (compare_files(file, [plain], TEXT[:900], windowing=SHORT, threads=1) for file in (plain, padded))
    assert turned.base.nll == pytest.approx(alone.base.nll, abs=1e-5)
    assert turned.files[0].kld.max() < 1e-9
