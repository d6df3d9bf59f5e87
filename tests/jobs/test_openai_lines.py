"""OpenAI's batch lines: the same answers as over HTTP, and errors with the names of fields."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.jobs.lines import Line
from dgpt2_quant.jobs.openai_lines import _COMPLETION, _EMBEDDING, _REFUSED
from dgpt2_quant.jobs.slices import JobSettings, SliceRunner
from dgpt2_quant.runtime import Model
from dgpt2_quant.serve.calls.models import ModelFile
from dgpt2_quant.serve.dialects.openai_completions import CompletionBody
from dgpt2_quant.serve.dialects.openai_embeddings import EmbeddingBody

from ..serve.conftest import Running, running

NAMES = ("tiny:F32", "tiny")


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[Running]:
    from dgpt2_quant.serve.calls.settings import Settings

    settings = Settings(port=0, allow_grammar=True)
    with running([ModelFile("tiny", "F32", tiny)], settings, parallel=1) as found:
        yield found


def answer(model: Model, **given: Any) -> Any:
    line = {"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}, **given}
    runner = SliceRunner(model, JobSettings(NAMES, parallel=1))
    [found] = runner([Line(3, json.dumps({name: value for name, value in line.items() if value is not ...}).encode())])
    runner.close()
    document = json.loads(found.text)
    assert (document["line"], document["id"]) == (3, "batch_req_3")
    assert found.is_error == (document["error"] is not None) == (document["response"] is None)
    return document


BODIES: list[dict[str, Any]] = [
    {"prompt": "the in", "seed": 3},
    {"prompt": "the in", "seed": 3, "temperature": 0, "logprobs": 2, "echo": True, "max_tokens": 4},
    {"prompt": [1, 2, 3], "seed": 3, "n": 2, "logprobs": 0, "top_k": -1, "top_p": 0.9, "min_p": 0.1},
    {"prompt": ["the", ""], "n": 2, "seed": 3, "max_tokens": 6.0, "logit_bias": {"5": -100}, "stop": ["e"]},
    {"prompt": "<|endoftext|>a", "seed": 1, "parse_special": True, "echo": True, "logprobs": 1, "model": "TINY:f32"},
    {"prompt": "a<|endoftext|>", "seed": 1, "skip_special_tokens": False, "logprobs": 1, "user": "u", "stop": None},
    {"prompt": "an", "seed": 2, "frequency_penalty": 1.5, "presence_penalty": 0.5, "repetition_penalty": 1.2},
    {"prompt": "an", "seed": 2, "repeat_penalty": 1.2, "repeat_last_n": 3, "typical_p": 0.5, "min_tokens": 5},
    {"prompt": "an", "seed": 2, "mirostat": 2, "mirostat_tau": 3, "mirostat_eta": 0.2, "ignore_eos": True},
    {"prompt": "an an an", "seed": 2, "dry_multiplier": 0.8, "dry_base": 2, "dry_allowed_length": 1,
     "dry_penalty_last_n": 9, "dry_sequence_breakers": ["\n"]},
    {"prompt": "an", "seed": 2, "grammar": 'root ::= "a"+', "stop_token_ids": [9], "max_tokens": 0},
    {"prompt": "an", "seed": 2, "grammar": 'root ::= "a"+', "add_special_tokens": False},
]  # fmt: skip


@pytest.mark.parametrize("body", BODIES, ids=lambda body: " ".join(body))
def test_completions_are_those_of_the_server(server: Running, model: Model, body: dict[str, Any]) -> None:
    over_http = server.post("/v1/completions", **body).json()
    response = answer(model, body=body)["response"]
    assert response["status_code"] == 200
    assert response["body"]["choices"] == over_http["choices"]
    over_http["usage"].pop("prompt_tokens_details")
    assert response["body"]["usage"] == over_http["usage"]
    assert (response["body"]["object"], response["body"]["model"]) == (over_http["object"], over_http["model"])


@pytest.mark.parametrize(
    "body",
    [
        {"input": "the in"},
        {"input": ["the", "in"], "dimensions": 7, "encoding_format": "base64"},
        {"input": [[1, 2], [3]]},
    ],
)
def test_embeddings_are_those_of_the_server(server: Running, model: Model, body: dict[str, Any]) -> None:
    over_http = server.post("/v1/embeddings", **body).json()
    assert answer(model, url="/v1/embeddings", body=body)["response"]["body"] == over_http


def test_fields_of_the_server_are_known_or_refused() -> None:
    left_out = {"request_id", "cache_prompt", "return_token_ids", "return_tokens_as_token_ids"}
    left_out |= {"spaces_between_special_tokens", "include_stop_str_in_output"}
    assert set(CompletionBody.model_fields) - set(_COMPLETION) - set(_REFUSED) == left_out
    assert set(_COMPLETION) <= set(CompletionBody.model_fields)
    assert set(EmbeddingBody.model_fields) == set(_EMBEDDING)


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"url": "/v1/chat/completions"}, "invalid_url", "not '/v1/chat/completions'"),
        ({"method": "GET"}, "invalid_method", "must be POST"),
        ({"method": ...}, "missing_field", "must have the field `method`"),
        ({"custom_id": 5}, "invalid_value", "`custom_id` must be a text, not 5"),
        ({"temperature": 1}, "unknown_field", "has no field `temperature`"),
        ({"body": {"prompt": "a", "model": "gpt-4"}}, "model_not_found", "this job runs tiny:F32"),
        ({"body": {"prompt": "a", "stream": True}}, "unsupported_value", "`stream`"),
        ({"body": {"prompt": "a", "best_of": 2}}, "unsupported_value", "`best_of` is not supported in a batch"),
        ({"body": {"prompt": "a", "max_tokens": True}}, "invalid_value", "must be an integer, not true"),
        ({"body": {"prompt": "a", "temperature": "1"}}, "invalid_value", 'must be a number, not "1"'),
        ({"body": {"prompt": ["a", 1]}}, "invalid_value", "a list of either"),
        ({"body": {"prompt": [300]}}, "invalid_value", "token ids must be 0-"),
        ({"body": {"prompt": []}}, "invalid_value", "must not be an empty list"),
        ({"body": {"prompt": "a", "n": 0}}, "invalid_value", "`n` must be 1 or more"),
        ({"body": {"prompt": ["a"] * 9, "n": 10**9}}, "invalid_value", "at most 256 texts, not 1000000000 for each"),
        ({"body": {"prompt": ["a"] * 257}}, "invalid_value", "not 1 for each of 257 prompts"),
        ({"body": {"prompt": "a", "top_k": -2}}, "invalid_value", "`top_k` must be 0"),
        ({"body": {"prompt": "a", "logit_bias": {"a": 1}}}, "invalid_value", "must map token ids"),
        ({"url": "/v1/embeddings", "body": {}}, "missing_field", "`input`"),
        ({"url": "/v1/embeddings", "body": {"input": ""}}, "invalid_value", "must not have an empty text"),
        ({"url": "/v1/embeddings", "body": {"input": "a", "dimensions": 65}}, "invalid_value", "must be 1-64"),
    ],
)
def test_wrong_lines_are_errors_with_a_code(model: Model, changes: dict[str, Any], code: str, words: str) -> None:
    error = answer(model, **changes)["error"]
    assert error["code"] == code
    assert words in error["message"]
