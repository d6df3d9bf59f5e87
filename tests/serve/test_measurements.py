"""`/v1/measurements`: figures of a bench.json, and a measurement in the server while texts of others go on."""

import hashlib
import http.client
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.bench.document.read import read_document
from dgpt2_quant.bench.quality.compare_files import compare_files
from dgpt2_quant.bench.quality.divergence import divergence, resampled
from dgpt2_quant.core.text import load_text
from dgpt2_quant.serve.calls.figures import figures_of
from dgpt2_quant.serve.calls.models import ModelFile
from dgpt2_quant.serve.calls.settings import Limits, Settings

from ..waiting import wait_for
from .conftest import Running, running

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def served(served: Running) -> Iterator[Running]:
    served.models.figures = {}
    yield served
    wait_for(lambda: not served.models.measuring, 20)


def listed(served: Running) -> dict[str, Any]:
    return {one["id"]: one for one in served.client.get("/v1/measurements").json()["data"]}


def start(served: Running) -> http.client.HTTPConnection:
    """A measurement whose events are not read."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    connection.request("POST", "/v1/measurements", "{}", {"content-type": "application/json"})
    return connection


def events(text: str) -> list[Any]:
    *parts, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(part.removeprefix("data: ")) for part in parts]


def test_sizes_are_known_and_nothing_else_is_made_up(served: Running, files: list[ModelFile]) -> None:
    found = listed(served)
    assert list(found) == [file.id for file in files]
    for file, one in zip(files, found.values(), strict=True):
        assert (one["quant_type"], one["bytes"]) == (file.quant_type, file.path.stat().st_size)
        assert one["source"] is one["kld"] is one["decode_tps"] is None
    assert found["storybook:F32"]["bits_per_weight"] > found["storybook:Q8_0"]["bits_per_weight"] > 8


@pytest.mark.slow
def test_a_measurement_streams_its_progress_and_then_its_figures(served: Running, files: list[ModelFile]) -> None:
    *steps, final = events(served.post("/v1/measurements", rounds=1).text)
    assert len(steps) > 4
    assert [step["done"] for step in steps] == sorted(step["done"] for step in steps)
    assert all(0 <= step["done"] <= step["of"] for step in steps)
    assert {"KL divergence" in step["what"] for step in steps} == {True, False}
    assert listed(served) == {one["id"]: one for one in final["data"]}
    base, other = final["data"]
    assert (base["kld"], base["reference"], base["source"]) == (None, None, "measured here")
    assert time.time() - 60 < other["measured_at"] <= time.time()
    paths = [file.path for file in files]
    quality = compare_files(paths[0], paths[1:], load_text("evaluation").text, threads=1, reference_cache=0)
    wanted = divergence(quality, 0, resampled(quality))
    assert other["reference"] == "storybook:F32"
    assert other["kld"]["value"] == pytest.approx(wanted.kld_mean, rel=1e-4)
    assert other["kld"]["low"] < other["kld"]["value"] < other["kld"]["high"]
    assert other["same_top"] == pytest.approx(wanted.top1_agreement, abs=0.002)
    assert other["ppl_ratio"]["value"] == pytest.approx(wanted.ppl_ratio, abs=1e-5)
    assert other["tokens_scored"] == len(quality.base.nll)
    for one in (base, other):
        assert one["decode_tps"]["rounds"] == one["prompt_tps"]["rounds"] == 1
        assert one["decode_tps"]["median"] > 0


def test_one_measurement_at_a_time_and_texts_of_others_go_on(served: Running) -> None:
    measuring = start(served)
    wait_for(lambda: served.models.measuring)
    assert served.post("/v1/completions", prompt="The wolf", max_tokens=5).status_code == 200
    assert served.post("/v1/compare", text="The wolf went").status_code == 200
    assert served.post("/v1/embeddings", input="The wolf went").status_code == 200
    assert served.models.measuring
    assert served.client.get("/v1/measurements").json()["measuring"]
    second = served.post("/v1/measurements")
    assert (second.status_code, second.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    measuring.close()
    wait_for(lambda: not served.models.measuring, 5)
    assert served.models.figures == {}


def test_a_measurement_must_end_in_time(files: list[ModelFile]) -> None:
    with running(files, Settings(port=0, limits=Limits(request_seconds=0.5))) as served:
        *_, error = events(served.post("/v1/measurements").text)
        assert error["error"]["code"] == "request_timeout"
        wait_for(lambda: not served.models.measuring)


def test_the_end_of_the_server_ends_a_measurement(files: list[ModelFile]) -> None:
    with running(files, Settings(port=0, shutdown_seconds=0.2)) as served:
        measuring = start(served)
        wait_for(lambda: served.models.measuring)
        served.server.should_exit = True
        started = time.perf_counter()
        with closing(measuring), measuring.getresponse() as response:
            text = response.read().decode()
    assert time.perf_counter() - started < 10
    assert "shutting down" in text


def test_a_server_that_lets_everybody_in_does_not_measure(files: list[ModelFile]) -> None:
    with running(files[:1], Settings(host="0.0.0.0", port=0)) as served:
        assert served.client.get("/v1/measurements").status_code == 200
        assert served.post("/v1/measurements").status_code == 403


def test_figures_of_a_bench_json_are_those_of_the_same_content(files: list[ModelFile], tmp_path: Path) -> None:
    document = json.loads((ROOT / "docs" / "bench" / "storybook.json").read_text("utf-8"))
    first, second = document["results"][:2]
    content = files[1].path.read_bytes()
    first |= {"type": "Q8_0", "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    second |= {"type": "Q8_0", "recipe": "other", "bytes": len(content), "sha256": "0" * 64}
    document["results"] = [second, first]
    document["reference"] |= {"type": "F32", "bytes": files[0].path.stat().st_size}
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(document), "utf-8")
    figures = figures_of(read_document(path), files)
    assert figures["storybook:Q8_0"]["kld"] == first["kld_interval"]
    assert figures["storybook:Q8_0"]["reference"] == "F32"
    assert figures["storybook:F32"]["decode_tps"] == document["reference"]["decode_tps"]
    assert {one["source"] for one in figures.values()} == {"bench.json"}
    document["results"] = [second]
    document["reference"]["bytes"] += 1
    path.write_text(json.dumps(document), "utf-8")
    assert figures_of(read_document(path), files) == {}
