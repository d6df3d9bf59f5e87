"""Files compared on a text: the better level comes out better."""

from pathlib import Path

import pytest
from dgpt2_quant.bench.quality import compare
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.errors import UsageError
from dgpt2_quant.quantize.text import load_text
from dgpt2_quant.runtime import Model

from ..quantize.checkpoints import make_checkpoint

TEXT = load_text("evaluation").text[:6000]


def test_better_levels_come_out_better(storybook_files: dict[str, Path]) -> None:
    seen: list[tuple[int, int, str]] = []
    levels = ("F32", "F16", "Q8_0", "Q5_K_M", "Q4_0")
    files = [storybook_files[level] for level in levels]
    found = compare(storybook_files["F32"], files, TEXT, threads=1, progress=lambda *arguments: seen.append(arguments))

    with Model.load(storybook_files["F32"], threads=1) as model:
        tokens = len(model.tokenize(TEXT))
    count = tokens // 512
    assert (found.tokens, found.context, found.reference.tokens) == (tokens, 512, 255 * count)
    assert count >= 2
    assert seen == [(number + 1, count, "perplexity and KL divergence") for number in range(count)]

    itself, *others = found.results
    assert (itself.kld_mean, itself.kld_max, itself.top1, itself.rms_dp) == (0, 0, 1, 0)
    assert itself.perplexity == found.reference
    kld = [level.kld_mean for level in others]
    assert kld == sorted(kld)
    assert 0 < kld[0] < 1e-4
    assert kld[1] < kld[3] / 10
    assert others[1].top1 > others[3].top1
    assert others[1].rms_dp < others[3].rms_dp
    for level in others:
        assert level.kld_median <= level.kld_p99 <= level.kld_p999 <= level.kld_max
        assert level.perplexity.perplexity == pytest.approx(found.reference.perplexity, rel=0.2)


def test_shorter_chunks(storybook_files: dict[str, Path]) -> None:
    found = compare(storybook_files["F32"], [], TEXT[:1000], context=64, threads=1)
    assert found.context == 64
    assert found.reference.tokens == 31 * (found.tokens // 64)


def test_chunks_are_never_longer_than_the_model(storybook_files: dict[str, Path]) -> None:
    assert compare(storybook_files["Q4_0"], [], TEXT[:3000], context=4096, threads=1).context == 512


def test_a_control_token_in_the_text_is_text(storybook_files: dict[str, Path]) -> None:
    plain = compare(storybook_files["Q4_0"], [], TEXT[:3000], threads=1)
    marked = compare(storybook_files["Q4_0"], [], "<|endoftext|>" + TEXT[:3000], threads=1)
    assert marked.tokens == plain.tokens + 8


def test_a_text_shorter_than_a_chunk_is_refused(storybook_files: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="the text has 4 tokens; at least one chunk of 512"):
        compare(storybook_files["Q4_0"], [], "Once upon a time", threads=1)


def test_another_vocabulary_is_refused(storybook_files: dict[str, Path], tmp_path: Path) -> None:
    (other,) = convert(str(make_checkpoint(tmp_path / "checkpoint")), type=["f32"], output=tmp_path)
    with pytest.raises(UsageError, match="vocabulary") as caught:
        compare(storybook_files["F32"], [storybook_files["Q8_0"], Path(other.path)], TEXT, threads=1)
    assert str(storybook_files["F32"]) in str(caught.value)
