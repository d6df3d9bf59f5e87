"""Perplexity against its definition in float64, and against llama-perplexity's own arithmetic."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.bench.perplexity import chunks, log_softmax, scored_half, summarize
from dgpt2_quant.bench.quality import compare
from dgpt2_quant.quantize.errors import UsageError
from dgpt2_quant.quantize.text import load_text
from dgpt2_quant.runtime import Model


def random_logits(rows: int = 40, vocabulary: int = 500, scale: float = 5) -> npt.NDArray[np.float32]:
    return np.random.default_rng(1).normal(0, scale, (rows, vocabulary)).astype(np.float32)


def test_log_softmax_is_the_definition() -> None:
    logits = random_logits()
    exact = logits.astype(np.float64)
    exact -= np.log(np.exp(exact).sum(axis=-1, keepdims=True))
    found = log_softmax(logits)
    assert found.dtype == np.float32
    assert np.abs(found - exact).max() < 1e-5


@pytest.mark.parametrize("shift", [0, 1000, -1000])
def test_log_softmax_sums_to_one(shift: float) -> None:
    sums = np.exp(log_softmax(random_logits() + np.float32(shift)).astype(np.float64)).sum(axis=-1)
    assert np.abs(sums - 1).max() < 1e-4


def test_log_softmax_leaves_the_logits_alone() -> None:
    logits = random_logits()
    log_softmax(logits)
    assert np.array_equal(logits, random_logits())


def test_summary_is_the_definition() -> None:
    nll = np.random.default_rng(2).exponential(3, 1000)
    found = summarize(nll.astype(np.float32))
    mean = sum(nll) / 1000
    deviation = math.sqrt(sum((value - mean) ** 2 for value in nll) / 1000)
    assert found.tokens == 1000
    assert found.nll == pytest.approx(mean)
    assert found.perplexity == pytest.approx(math.exp(mean))
    assert found.stderr == pytest.approx(math.exp(mean) * deviation / math.sqrt(999))


def test_a_sure_model_has_perplexity_1_and_a_guessing_one_that_of_its_choices() -> None:
    assert summarize(np.zeros(9)).perplexity == 1
    even = -log_softmax(np.zeros((9, 50), np.float32))[:, 0]
    assert summarize(even).perplexity == pytest.approx(50)
    assert summarize(even).stderr == pytest.approx(0, abs=1e-6)


def test_whole_chunks_only() -> None:
    assert [list(chunk) for chunk in chunks(range(11), 4)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [list(chunk) for chunk in chunks(range(8), 4)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert chunks([1, 2, 3, 4], 4) == [[1, 2, 3, 4]]


def test_a_text_shorter_than_a_chunk_is_refused() -> None:
    with pytest.raises(UsageError, match="the text has 511 tokens; at least one chunk of 512"):
        chunks(range(511), 512)


def test_the_scored_tokens_are_those_of_the_second_half() -> None:
    first, targets = scored_half(range(100, 108))
    # the logits at 4, 5 and 6 predict the tokens at 5, 6 and 7
    assert (first, targets.tolist()) == (4, [105, 106, 107])
    assert len(scored_half(range(512))[1]) == 255


def test_the_figures_are_those_of_llama_perplexity(storybook_files: dict[str, Path]) -> None:
    text = load_text().text
    nll = []
    with Model.load(storybook_files["F32"], threads=1) as model:
        tokens = model.tokenize(text, special=False)
        for start in (0, 512):
            chunk = tokens[start : start + 512]
            # tools/perplexity/perplexity.cpp: log_softmax() on rows n_ctx/2 .. n_ctx-2, each against the next token
            for position, row in enumerate(model.logits(chunk).astype(np.float64)[256:511], 256):
                largest = row.max()
                nll.append(math.log(np.exp(row - largest).sum()) + largest - row[chunk[position + 1]])
    mean, mean_of_squares = sum(nll) / len(nll), sum(value**2 for value in nll) / len(nll)
    two_chunks = model_text(storybook_files["F32"], tokens[:1024])
    found = compare(storybook_files["F32"], [], two_chunks, threads=1)
    assert found.tokens == 1024
    assert found.reference.tokens == len(nll) == 510
    assert found.reference.perplexity == pytest.approx(math.exp(mean), rel=1e-5)
    error = math.sqrt((mean_of_squares - mean**2) / (len(nll) - 1)) * math.exp(mean)
    assert found.reference.stderr == pytest.approx(error, rel=1e-4)


def model_text(path: Path, tokens: list[int]) -> str:
    with Model.load(path, threads=1) as model:
        text = model.detokenize(tokens)
        assert model.tokenize(text, special=False) == tokens
    return text
