"""`POST /v1/compare`: its numbers are those of `bench` and of `Model.score`; its limits; whom it keeps waiting."""

import http.client
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.bench.quality.compare_files import compare_files
from dgpt2_quant.bench.quality.divergence import divergence, resampled
from dgpt2_quant.bench.quality.windows import Windowing
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.core.text import load_text
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.serve.calls.models import ModelFile
from dgpt2_quant.serve.calls.settings import Limits, Settings
from dgpt2_quant.serve.dialects.comparison import MOST_COMPARISONS, MOST_CONTEXTS

from ..checkpoints import make_checkpoint
from ..padded import embedding, with_embedding
from ..waiting import wait_for
from .conftest import Running, running

TEXT = load_text("evaluation").text
NAMES = ["storybook:F32", "storybook:Q8_0"]


@pytest.fixture(scope="module")
def served(files: list[ModelFile], short_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Four files of one vocabulary, the last with pad tokens, and one of another vocabulary."""
    folder = tmp_path_factory.mktemp("comparison")
    source = short_files["F32"]
    table = np.concatenate([rows := embedding(source), np.tile(rows[rows.sum(1).argmax()], (19, 1))])
    padded = with_embedding(source, folder / "padded.gguf", TensorType.F32, table.view(np.uint8), 19)
    (other,) = convert(str(make_checkpoint(folder / "other")), type="q8_0", output=folder / "other.Q8_0.gguf")
    more = [
        ModelFile("storybook", "Q4_0", short_files["Q4_0"]),
        ModelFile("padded", "F32", padded),
        ModelFile("other", "Q8_0", Path(other.path)),
    ]
    with running([*files, *more]) as found:
        yield found


def compared(served: Running, text: str, **body: Any) -> dict[str, Any]:
    answer = served.post("/v1/compare", text=text, **body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("characters", [900, 3500], ids=["one window", "several windows"])
def test_the_numbers_are_those_of_bench(served: Running, short_files: dict[str, Path], characters: int) -> None:
    text = TEXT[:characters]
    models = ["storybook:F32", "storybook:Q8_0", "storybook:Q4_0", "padded:F32"]
    found = compared(served, text, models=models)
    paths = [served.models.find(name).file.path for name in models]
    windowing = Windowing("strided", found["context"], found["stride"])
    quality = compare_files(paths[0], paths[1:], text, parse_special=False, windowing=windowing, threads=1)
    draws = resampled(quality)
    assert [token["id"] for token in found["tokens"]] == list(quality.tokens)
    reference, *others = found["models"]
    assert (reference["kld"], reference["mean_kld"], reference["same_top"]) == (None, None, None)
    assert reference["mean_nll"] == pytest.approx(quality.base.nll.mean(), abs=1e-6)
    for number, (one, scores) in enumerate(zip(others, quality.files, strict=True)):
        wanted = divergence(quality, number, draws)
        assert one["positions"] == len(scores.kld) == len(quality.tokens) - 1
        assert one["kld"][0] is None
        np.testing.assert_allclose(one["kld"][1:], scores.kld, rtol=1e-4, atol=1e-7)
        assert one["mean_kld"] == pytest.approx(wanted.kld_mean, rel=1e-5)
        assert one["mean_nll"] == pytest.approx(wanted.perplexity.nll, abs=1e-6)
        assert one["perplexity"] == pytest.approx(wanted.perplexity.perplexity, rel=1e-6)
        assert one["same_top"] == wanted.top1_agreement
    assert others[0]["mean_kld"] < others[1]["mean_kld"]


def test_log_probabilities_are_those_of_score(served: Running) -> None:
    text = "Once upon a time there was a wolf, “who said”: 雪."
    found = compared(served, text, models=[*NAMES, "padded"], top=20)
    for one in found["models"]:
        model = served.models.find(one["id"]).model
        wanted = model.score(text)
        assert one["logprobs"][0] is None
        np.testing.assert_allclose(one["logprobs"][1:], wanted[1:], atol=1e-4)
        assert (one["top"][0], {len(top) for top in one["top"][1:]}) == ([], {20})
        logits = model.logits([token["id"] for token in found["tokens"]])
        for row, top in zip(logits[:, : model.real_vocabulary], one["top"][1:], strict=False):
            assert [entry["id"] for entry in top] == np.argsort(-row, kind="stable")[:20].tolist()
        for token, value, top in zip(found["tokens"][1:], one["logprobs"][1:], one["top"][1:], strict=True):
            same = [entry for entry in top if entry["id"] == token["id"]]
            assert not same or same[0] == {"id": token["id"], "text": token["text"], "logprob": value}


def test_tokens_have_texts_and_offsets_in_characters(served: Running) -> None:
    text = "Two 🐺 wolves <|endoftext|> again"
    for special in (False, True):
        tokens = compared(served, text, models=NAMES[:1], top=0, parse_special=special)["tokens"]
        assert ("<|endoftext|>" in [token["text"] for token in tokens]) == special
        assert tokens[0]["offset"] == 0
        for token in tokens:
            if token["text"].startswith("bytes:"):
                assert text[token["offset"]] in "🐺 "
            else:
                assert text[token["offset"] :].startswith(token["text"])


def test_one_model_is_enough_and_short_texts_too(served: Running) -> None:
    for text, count in (("", 0), ("The", 1), ("The wolf", 2)):
        found = compared(served, text, models=NAMES)
        assert len(found["tokens"]) == count
        for one in found["models"]:
            assert len(one["logprobs"]) == len(one["top"]) == count
            assert one["positions"] == max(0, count - 1)
            assert (one["mean_nll"] is None) == (count < 2)
    alone = compared(served, "The wolf went", models=NAMES[:1])["models"]
    assert [one["id"] for one in alone] == NAMES[:1]
    assert alone[0]["perplexity"] == pytest.approx(math.exp(alone[0]["mean_nll"]))


def test_the_first_models_are_the_default(served: Running) -> None:
    found = compared(served, "The wolf went", top=0)
    assert [one["id"] for one in found["models"]] == [*NAMES, "storybook:Q4_0", "padded:F32"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "you must provide `text`"),
        ({"text": "a", "top": 21}, 400, "`top`"),
        ({"text": "a", "models": []}, 400, "`models`"),
        ({"text": "a", "models": NAMES * 3}, 400, "`models`"),
        ({"text": "a", "models": ["nobody"]}, 404, "nobody"),
        ({"text": "The wolf", "models": ["storybook:F32", "other"]}, 400, "other:Q8_0 lacks that of storybook:F32"),
        ({"text": "the wolf " * 10_000}, 400, "`text` must have at most"),
        ({"text": TEXT[:30_000], "models": NAMES, "top": 20}, 400, "`top` must be at most"),
        ({"text": "a", "window": 3}, 400, "Unrecognized request argument"),
    ],
)
def test_errors(served: Running, body: dict[str, Any], status: int, words: str) -> None:
    answer = served.post("/v1/compare", **body)
    assert answer.status_code == status, answer.text[:500]
    assert words in answer.json()["error"]["message"]


def start(served: Running, text: str) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    body = json.dumps({"text": text, "models": NAMES, "top": 0})
    connection.request("POST", "/v1/compare", body, {"content-type": "application/json"})
    return connection


@pytest.fixture
def long_text(served: Running) -> Iterator[str]:
    model = served.models.find(None).model
    text = TEXT * 3
    most = MOST_CONTEXTS * model.positions
    yield model.detokenize(model.tokenize(text, special=False)[: most * 9 // 10])
    wait_for(lambda: served.models.comparisons == 0, 30)


def test_a_long_comparison_lets_others_in_and_ends_when_its_client_leaves(served: Running, long_text: str) -> None:
    leaving = start(served, long_text)
    wait_for(lambda: served.models.comparing.locked())
    started = time.perf_counter()
    assert served.post("/v1/completions", prompt="The wolf", max_tokens=3).status_code == 200
    assert compared(served, "The wolf went", models=NAMES)["models"][1]["positions"] == 2
    assert served.models.comparisons == 1, "the long one still computes"
    leaving.close()
    wait_for(lambda: served.models.comparisons == 0)
    assert "POST /v1/compare 499" in served.log.getvalue()
    assert time.perf_counter() - started < 20


def test_comparisons_above_the_limit_are_refused_at_once(served: Running, long_text: str) -> None:
    waiting = [start(served, long_text) for _ in range(MOST_COMPARISONS)]
    wait_for(lambda: served.models.comparisons == MOST_COMPARISONS)
    answer = served.post("/v1/compare", text="The wolf")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda one: one.close(), waiting))


def test_a_comparison_must_end_in_time(files: list[ModelFile]) -> None:
    with running(files[:1], Settings(port=0, limits=Limits(request_seconds=0.05))) as served:
        late = served.post("/v1/compare", text=TEXT[:20_000], top=0)
        assert (late.status_code, late.json()["error"]["code"]) == (408, "request_timeout")
        wait_for(lambda: served.models.comparisons == 0)
