"""Perplexity of one file, against its definition in float64 by either method."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.bench.perplexity import perplexity
from dgpt2_quant.core.errors import ModelNotFoundError, UsageError
from dgpt2_quant.core.text import load_text
from dgpt2_quant.runtime import Model


def log_probs(model: Model, tokens: list[int]) -> npt.NDArray[np.float64]:
    exact = model.logits(tokens).astype(np.float64)
    exact -= exact.max(axis=-1, keepdims=True)
    return exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))


@pytest.fixture(scope="module")
def tale(tmp_path_factory: pytest.TempPathFactory, short_files: dict[str, Path]) -> tuple[Path, list[int]]:
    """A text of 1,100 tokens or so, and these."""
    path = tmp_path_factory.mktemp("text") / "tale.txt"
    path.write_text(load_text().text[:4300], "utf-8")
    with Model.load(short_files["F32"], threads=1) as model:
        tokens = model.tokenize(path.read_text("utf-8"), special=False)
    assert 1024 <= len(tokens) < 1536
    return path, tokens


def test_the_figures_are_those_of_llama_perplexity(short_files: dict[str, Path], tale: tuple[Path, list[int]]) -> None:
    path, tokens = tale
    nll = []
    with Model.load(short_files["F32"], threads=1) as model:
        for start in (0, 512):
            chunk = tokens[start : start + 512]
            # tools/perplexity/perplexity.cpp: log_softmax() on rows n_ctx/2 .. n_ctx-2, each against the next token
            rows = log_probs(model, chunk)
            nll += [-rows[position, chunk[position + 1]] for position in range(256, 511)]
    mean, mean_of_squares = sum(nll) / len(nll), sum(value**2 for value in nll) / len(nll)
    found = perplexity(str(short_files["F32"]), text=path, threads=1)
    assert (found["method"], found["context"], found["stride"]) == ("llama.cpp", 512, None)
    assert found["text"]["tokens"] == len(tokens)
    assert found["tokens_scored"] == len(nll) == 510
    assert found["nll"] == pytest.approx(mean, rel=1e-6)
    assert found["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
    error = math.sqrt((mean_of_squares - mean**2) / (len(nll) - 1)) * math.exp(mean)
    assert found["perplexity_stderr"] == pytest.approx(error, rel=1e-4)
    assert found["tps"] > 0


@pytest.mark.parametrize(("context", "stride"), [(256, 64), (256, None), (512, 512), (2048, 100)])
def test_the_strided_method_is_that_of_the_documentation(
    short_files: dict[str, Path], tale: tuple[Path, list[int]], tmp_path: Path, context: int, stride: int | None
) -> None:
    path = tmp_path / "begin.txt"
    path.write_text(tale[0].read_text("utf-8")[:2400], "utf-8")
    length, step = min(context, 512), stride or 128
    nll = []
    with Model.load(short_files["F32"], threads=1) as model:
        tokens = model.tokenize(path.read_text("utf-8"), special=False)
        assert len(tokens) > 512
        before = 0  # the end of the window before, as in the documentation's loop
        for begin in range(0, len(tokens), step):
            end = min(begin + length, len(tokens))
            rows = log_probs(model, tokens[begin:end])
            labels = range(max(before, begin + 1), end)  # those of the earlier windows are masked
            nll += [-rows[label - begin - 1, tokens[label]] for label in labels]
            before = end
            if end == len(tokens):
                break
    found = perplexity(str(short_files["F32"]), text=path, ctx_size=context, method="strided", stride=stride, threads=1)
    assert (found["method"], found["context"], found["stride"]) == ("strided", length, step)
    assert found["tokens_scored"] == len(nll)
    assert found["nll"] == pytest.approx(sum(nll) / len(nll), rel=1e-6)


def test_a_stride_means_the_strided_method(short_files: dict[str, Path], tale: tuple[Path, list[int]]) -> None:
    assert perplexity(str(short_files["Q4_0"]), text=tale[0], stride=300, threads=1)["method"] == "strided"


def test_threads_change_nothing_but_the_speed(short_files: dict[str, Path], tale: tuple[Path, list[int]]) -> None:
    one, two = (perplexity(str(short_files["Q4_0"]), text=tale[0], threads=threads) for threads in (1, 2))
    assert one["perplexity"] == two["perplexity"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"text": "absent.txt"}, ModelNotFoundError, "no text 'absent.txt'"),
        ({"ctx_size": 0}, UsageError, "`ctx_size` must be .* not 0"),
        ({"ctx_size": 3}, UsageError, "a context of 3 positions is too short"),
        ({"stride": 0}, UsageError, "`stride` must be 1-512 .* not 0"),
        ({"stride": 513}, UsageError, "`stride` must be 1-512 .* not 513"),
        ({"method": "llama.cpp", "stride": 8}, UsageError, "`stride` needs the strided method"),
        ({"method": "best"}, UsageError, "`method` must be one of .* not 'best'"),
    ],
)
def test_wrong_arguments(
    short_files: dict[str, Path], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        perplexity(str(short_files["Q4_0"]), threads=1, **options)


def test_a_text_that_is_too_short(short_files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("The end.")
    with pytest.raises(UsageError, match="the text has 3 tokens, and needs at least one chunk of 512"):
        perplexity(str(short_files["Q4_0"]), text=tmp_path / "short.txt", threads=1)
    found = perplexity(str(short_files["Q4_0"]), text=tmp_path / "short.txt", method="strided", threads=1)
    assert found["tokens_scored"] == 2
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UsageError, match=r"the text empty\.txt is empty"):
        perplexity(str(short_files["Q4_0"]), text=tmp_path / "empty.txt", method="strided", threads=1)
