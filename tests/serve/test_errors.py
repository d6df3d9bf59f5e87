"""What is refused, and how: OpenAI's error body with the name of the field, never a trace."""

from typing import Any

import pytest
from dgpt2_quant.serve.calls.models import ModelFile
from dgpt2_quant.serve.calls.settings import Limits, Settings

from .conftest import Running, running

WRONG: list[tuple[dict[str, Any], str | None, str]] = [
    ({"prompt": 5}, "prompt", "not 5"),
    ({"prompt": []}, "prompt", "empty list"),
    ({"prompt": [-1]}, "prompt", "token ids 0-"),
    ({"prompt": [99999]}, "prompt", "99999"),
    ({"prompt": [[1], ["a"]]}, "prompt", ""),
    ({"prompt": "a\ud800"}, None, "not JSON"),
    ({"prompt": "word " * 600}, "prompt", "at most 512 tokens"),
    ({"max_tokens": -1}, "max_tokens", ""),
    ({"max_tokens": "many"}, "max_tokens", "'many'"),
    ({"max_tokens": True}, "max_tokens", "True"),
    ({"temperature": -0.1}, "temperature", "-0.1"),
    ({"temperature": "hot"}, "temperature", "'hot'"),
    ({"top_p": 2}, "top_p", "2"),
    ({"n": 0}, "n", "0"),
    ({"n": 1000}, "n", "at most"),
    ({"n": 2, "best_of": 1}, "best_of", "at least"),
    ({"best_of": 2, "stream": True}, "best_of", "streamed"),
    ({"logprobs": 1000}, "logprobs", "0-100"),
    ({"logit_bias": {"a": 1}}, "logit_bias", "'a'"),
    ({"logit_bias": {"99999": 1}}, "logit_bias", "99999"),
    ({"stop": [""]}, "stop", ""),
    ({"suffix": "end"}, "suffix", "not supported"),
    ({"stream_options": {}}, "stream_options", "needs `stream`"),
    ({"grammar": "root ::= [a]"}, "grammar", "--allow-grammar"),
    ({"include_stop_str_in_output": True}, "include_stop_str_in_output", "not supported"),
    ({"repetition_penalty": 0}, "repetition_penalty", "0"),
    ({"stop": "x" * 1001}, "stop", "1000"),
    ({"stream": True, "stream_options": {"banana": 1}}, "stream_options.banana", "Unrecognized"),
    ({"prompt": [1.5] * 100_000}, "prompt", "1.5"),
    ({f"field{number}": 1 for number in range(1000)}, None, "at most 400 fields"),
    ({"seed": 10**30, "temperature": 5, "n": 1, "banana": 1}, "banana", "Unrecognized"),
]


@pytest.mark.parametrize(("body", "param", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_field_is_named(served: Running, body: dict[str, Any], param: str | None, words: str) -> None:
    import json

    data = json.dumps({"prompt": "Once", **body})  # keeps the lone surrogate as an escape
    response = served.client.post("/v1/completions", content=data, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert words in error["message"]


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'"text"', b"\xff", b'{"temperature": NaN}', b'{"seed": 1e999}', b"[" * 10_000]
)
def test_what_is_not_a_json_object_is_refused(served: Running, body: bytes) -> None:
    response = served.client.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert response.json()["error"]["message"]


def test_other_statuses(served: Running) -> None:
    client = served.client
    assert client.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert client.post("/v1/completions", content=b" " * (12 << 20)).status_code == 413  # it is read to its end
    missing = served.post("/v1/completions", prompt="a", model="nobody")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert client.get("/v1/nothing").json()["error"]["message"] == "there is no such route"
    wrong = client.get("/v1/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert "detail" not in wrong.json()
    chat = served.post("/v1/chat/completions", messages=[{"role": "user", "content": "Hi"}])
    assert chat.status_code == 400
    assert "/v1/completions" in chat.json()["error"]["message"]


def test_request_ids_are_echoed_if_clean(served: Running) -> None:
    get = served.client.get
    assert get("/v1/models", headers={"x-request-id": "my-id.7"}).headers["x-request-id"] == "my-id.7"
    assert get("/v1/models", headers={"x-request-id": "a" * 101}).headers["x-request-id"] != "a" * 101
    assert len(get("/v1/models").headers["x-request-id"]) == 24


@pytest.mark.parametrize("origin", ["http://[", "http://[foo]", "null", "://"])
def test_an_origin_that_is_no_url_is_refused(served: Running, origin: str) -> None:
    assert served.client.get("/v1/models", headers={"origin": origin}).status_code == 403


def test_no_redirects(served: Running) -> None:
    assert served.client.post("/v1/completions/", json={"prompt": "a"}).status_code == 404


def test_a_limit_of_tokens_holds_for_defaults_and_refuses_more(files: list[ModelFile]) -> None:
    with running(files[:1], Settings(port=0, limits=Limits(tokens=5))) as served:
        assert served.post("/v1/completions", prompt="a", ignore_eos=True).json()["usage"]["completion_tokens"] == 5
        for path, body in (("/score", {"input_data": ["a"]}), ("/generate", {"inputs": "a"})):
            assert served.post(path, **body).status_code == 200
        assert served.post("/completion", prompt="a").json()["tokens_predicted"] == 5
        for path, body, name in (
            ("/v1/completions", {"prompt": "a", "max_tokens": 6}, "max_tokens"),
            ("/completion", {"prompt": "a", "n_predict": 6}, "n_predict"),
            ("/generate", {"inputs": "a", "parameters": {"max_new_tokens": 6}}, "max_new_tokens"),
            ("/score", {"inputs": {"input_string": ["a"]}, "parameters": {"max_length": 30}}, "max_length"),
        ):
            refused = served.post(path, **body)
            assert (refused.status_code, name in refused.text) == (400, True)
