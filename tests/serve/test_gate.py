"""Keys, hosts and origins; what is public; what is in the log and in the metrics."""

import json
from pathlib import Path

import pytest
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.serve.calls.models import ModelFile
from dgpt2_quant.serve.calls.settings import Settings, is_loopback
from dgpt2_quant.serve.keys import read_keys

from ..waiting import wait_for
from .conftest import Running, running


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"host": "localhost:1234"}, 200),
        ({"host": "[::1]:80"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": "model.internal"}, 200),
        ({"origin": "http://localhost:3000"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_a_server_without_keys_answers_only_to_its_own_names(
    files: list[ModelFile], headers: dict[str, str], status: int
) -> None:
    with running(files[:1], Settings(port=0, hosts=("model.internal",))) as served:
        response = served.client.get("/v1/models", headers=headers)
        assert response.status_code == status
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_keys(files: list[ModelFile]) -> None:
    with running(files[:1], Settings(port=0, keys=("first", "second"))) as served:
        get = served.client.get
        for headers in ({"authorization": "Bearer second"}, {"authorization": "", "x-api-key": "first"}):
            assert get("/v1/models", headers=headers).status_code == 200
        for headers in ({"authorization": ""}, {"authorization": "Bearer firs"}, {"authorization": "Basic first"}):
            wrong = get("/v1/models", headers=headers)
            assert (wrong.status_code, wrong.headers["www-authenticate"]) == (401, "Bearer")
            assert get("/health", headers=headers).status_code == 200
            for path in ("/slots", "/props", "/metrics", "/openapi.json", "/", "/nothing"):
                assert get(path, headers=headers).status_code == 401, path


def test_no_text_in_log_metrics_slots_or_props(served: Running) -> None:
    secret = "Rumpelstiltskin"
    served.post("/v1/completions", prompt=secret, model=secret)
    served.post("/v1/completions", prompt=secret, max_tokens=3)
    served.post("/v1/completions", **{"prompt": secret, secret: 1})
    shown = [served.client.get(path).text for path in ("/metrics", "/slots", "/props")]
    assert secret not in "".join([served.log.getvalue(), *shown])


def test_the_access_log_counts(served: Running) -> None:
    served.post("/v1/completions", prompt="The wolf", max_tokens=3)
    served.client.get("/web/main.js")
    served.client.get("/web/none.js")
    wait_for(lambda: "POST /v1/completions 200, storybook:F32 2+3 tokens" in served.log.getvalue())
    wait_for(lambda: "GET /web/none.js 404" in served.log.getvalue())
    assert "main.js" not in served.log.getvalue()


def test_metrics_have_llama_cpps_names_and_histograms(served: Running) -> None:
    served.post("/v1/completions", prompt="The wolf", max_tokens=3)
    text = served.client.get("/metrics").text
    for name in (
        "llamacpp:prompt_tokens_total",
        "llamacpp:tokens_predicted_total",
        "llamacpp:requests_processing",
        'dgpt2_quant_time_to_first_token_seconds_bucket{le="0.1",model="storybook:F32"}',
        'dgpt2_quant_requests_total{code="200",route="/v1/completions"}',
    ):
        assert f"\n{name}" in text, name


def test_the_file_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# ours\n\n  one \ntwo\n", "utf-8")
    assert read_keys(path) == ("one", "two")
    path.write_text("# none\n", "utf-8")
    with pytest.raises(UsageError, match="has no API key"):
        read_keys(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_keys(tmp_path / "absent")


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, ["localhost", "127.0.0.1", "127.8.8.8", "::1", "[::1]"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "10.0.0.1", "localhost.evil.example", ""]))


def test_the_openapi_document_has_every_route(served: Running) -> None:
    found = json.loads(served.client.get("/openapi.json").text)
    assert {"/v1/completions", "/v1/models/{name}", "/score", "/tokenize"} <= found["paths"].keys()
    body = found["paths"]["/v1/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["$ref"].split("/")[-1] in found["components"]["schemas"]
