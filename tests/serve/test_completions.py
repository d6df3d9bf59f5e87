"""`POST /v1/completions`, against the library itself."""

import json
import math
from typing import Any

import pytest
from dgpt2_quant.runtime import Model

from .conftest import Running

PROMPT = "Once upon a time"


@pytest.fixture
def model(served: Running) -> Model:
    return served.models.find("storybook:F32").model


def complete(served: Running, **body: Any) -> Any:
    response = served.post("/v1/completions", **{"prompt": PROMPT, "temperature": 0} | body)
    assert response.status_code == 200, response.text
    return response.json()


def chunks(served: Running, **body: Any) -> list[Any]:
    with served.client.stream("POST", "/v1/completions", json={"prompt": PROMPT, "stream": True} | body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        text = b"".join(response.iter_bytes()).decode()
    assert text.endswith("data: [DONE]\n\n")
    events = [event for event in text.split("\n\n") if event]
    assert all(event.startswith("data: ") and "\n" not in event for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]


def test_the_answer_is_the_librarys_text(served: Running, model: Model) -> None:
    found = complete(served, max_tokens=12)
    (choice,) = found["choices"]
    (expected,) = model.generate(PROMPT, max_tokens=12, temperature=0)[0]
    assert choice == {"index": 0, "text": expected.text, "logprobs": None, "finish_reason": "length"}
    assert found["object"] == "text_completion"
    assert found["model"] == "storybook:F32"
    assert found["id"].startswith("cmpl-")
    tokens = len(model.tokenize(PROMPT))
    usage = {"prompt_tokens": tokens, "completion_tokens": 12, "total_tokens": tokens + 12}
    assert found["usage"].items() >= usage.items()


def test_all_forms_of_a_prompt(served: Running, model: Model) -> None:
    ids = model.tokenize(PROMPT)
    text = complete(served)["choices"][0]["text"]
    for prompt in (ids, [PROMPT], [ids]):
        assert complete(served, prompt=prompt)["choices"][0]["text"] == text
    found = complete(served, prompt=[PROMPT, "The wolf", ""], n=2, temperature=1, seed=3)
    assert [choice["index"] for choice in found["choices"]] == list(range(6))
    assert complete(served, prompt="", echo=True, max_tokens=0)["choices"][0]["text"] == ""


def test_null_means_the_default(served: Running) -> None:
    names = ("n", "best_of", "echo", "logprobs", "max_tokens", "stop", "stream", "stream_options", "suffix", "seed")
    assert complete(served, **dict.fromkeys(names))["choices"] == complete(served)["choices"]


def test_echo_and_logprobs_are_those_of_score(served: Running, model: Model) -> None:
    prompt = "Snow-white 雪 — and “the” wolf"
    (choice,) = complete(served, prompt=prompt, echo=True, logprobs=3, max_tokens=1)["choices"]
    found = choice["logprobs"]
    ids = model.tokenize(prompt)
    scores = model.score(ids)
    assert found["token_logprobs"][0] is None
    assert found["top_logprobs"][0] is None
    assert len(found["tokens"]) == len(ids) + 1, "one token is generated, always"
    for score, value in zip(scores[1:], found["token_logprobs"][1:], strict=False):
        assert math.isclose(score, value, abs_tol=1e-4)
    for token, value, top in list(zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True))[
        1:
    ]:
        assert top[token] == value, "bit by bit"
        assert 3 <= len(top) <= 4
    assert choice["text"].startswith(prompt)
    text = prompt + choice["text"][len(prompt) :]
    for token, at in zip(found["tokens"], found["text_offset"], strict=True):
        assert token.startswith("bytes:\\x") or text[at : at + len(token)] == token
    assert any(token.startswith("bytes:\\x") for token in found["tokens"]), "parts of a character"


def test_echo_alone_scores_nothing_and_generates_nothing(served: Running) -> None:
    (choice,) = complete(served, echo=True, max_tokens=0)["choices"]
    assert choice == {"index": 0, "text": PROMPT, "logprobs": None, "finish_reason": "length"}
    (choice,) = complete(served, echo=True, max_tokens=0, logprobs=0)["choices"]
    assert len(choice["logprobs"]["tokens"]) == len(choice["logprobs"]["top_logprobs"])
    assert all(len(top) == 1 for top in choice["logprobs"]["top_logprobs"][1:])


def test_offsets_count_the_prompt_also_without_echo(served: Running) -> None:
    (choice,) = complete(served, logprobs=0, max_tokens=4)["choices"]
    assert choice["logprobs"]["text_offset"][0] == len(PROMPT)


HEALED = {"prompt": "The weath", "token_healing": True, "echo": True, "logprobs": 2, "n": 3}


@pytest.mark.parametrize(
    "extra", [{}, {"echo": True}, {"logprobs": 2}, {"echo": True, "logprobs": 2}, {"n": 2}, HEALED]
)
def test_a_stream_adds_up_to_the_whole_answer(served: Running, extra: dict[str, Any]) -> None:
    body = {"max_tokens": 16, "seed": 7, "temperature": 0} | extra
    whole = complete(served, **body)["choices"]
    texts, tokens, ends = {}, {}, {}
    for chunk in chunks(served, **body):
        assert "usage" not in chunk
        (choice,) = chunk["choices"]
        index = choice["index"]
        texts[index] = texts.get(index, "") + choice["text"]
        if choice["logprobs"]:
            for name, values in choice["logprobs"].items():
                tokens.setdefault((index, name), []).extend(values)
        ends[index] = choice["finish_reason"]
    for choice in whole:
        index = choice["index"]
        assert texts[index] == choice["text"]
        assert ends[index] == choice["finish_reason"]
        if choice["logprobs"]:
            assert {name: tokens[index, name] for name in choice["logprobs"]} == choice["logprobs"]


@pytest.mark.parametrize("prompt", ["The weath", "A café, and ", "T", "", "Go.\n"])
def test_token_healing(served: Running, model: Model, prompt: str) -> None:
    body = {"prompt": prompt, "token_healing": True, "logprobs": 1, "return_token_ids": True}
    body |= {"max_tokens": 4, "temperature": 0}
    found = complete(served, **body, echo=True)
    (choice,) = found["choices"]
    text, logprobs = choice["text"], choice["logprobs"]
    ids = choice["prompt_token_ids"] + choice["token_ids"]
    assert text.startswith(prompt)
    assert text == model.detokenize(ids)
    assert "  " not in text
    assert found["usage"]["total_tokens"] == len(ids) == len(logprobs["tokens"])
    for token, at in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert text[at : at + len(token)] == token or token.startswith(("bytes:", "<|endoftext|>"))
    (alone,) = complete(served, **body)["choices"]
    assert alone["text"] == text[len(prompt) :]
    assert alone["logprobs"]["text_offset"] == logprobs["text_offset"][len(choice["prompt_token_ids"]) :]


@pytest.mark.parametrize("bias", [0, 100])
def test_token_healing_of_an_incomplete_character(served: Running, model: Model, bias: int) -> None:
    ids = model.tokenize("The wolf 😀")
    body = {"prompt": ids[:-1], "token_healing": True, "echo": True, "logprobs": 0, "return_token_ids": True}
    (choice,) = complete(served, **body, max_tokens=2, temperature=0, logit_bias={ids[-1]: bias})["choices"]
    text = choice["text"]
    assert text == model.detokenize(choice["prompt_token_ids"] + choice["token_ids"])
    assert (text == "The wolf 😀") == bool(bias)
    last, at = choice["logprobs"]["tokens"][-1], choice["logprobs"]["text_offset"][-1]
    assert text[at:] == ("😀" if bias else last)


def test_usage_is_sent_only_when_asked_for(served: Running) -> None:
    *parts, last = chunks(served, max_tokens=5, stream_options={"include_usage": True})
    assert all(part["usage"] is None for part in parts)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 5
    for part in chunks(served, max_tokens=5, stream_options={"continuous_usage_stats": True}):
        assert part["usage"]["completion_tokens"] >= 1


def test_best_of_takes_the_likeliest(served: Running) -> None:
    body = {"temperature": 1, "seed": 5, "max_tokens": 6, "logprobs": 0}
    every = complete(served, n=3, **body)["choices"]
    (best,) = complete(served, n=1, best_of=3, **body)["choices"]
    means = [sum(choice["logprobs"]["token_logprobs"]) for choice in every]
    assert best["text"] == every[means.index(max(means))]["text"]


def test_names_of_special_tokens_are_text_unless_asked(served: Running, model: Model) -> None:
    prompt = "The end<|endoftext|>"
    plain = complete(served, prompt=prompt, return_token_ids=True, max_tokens=1)["choices"][0]
    assert model.tokenize("<|endoftext|>")[0] not in plain["prompt_token_ids"]
    parsed = complete(served, prompt=prompt, return_token_ids=True, parse_special=True, max_tokens=1, echo=True)
    assert parsed["choices"][0]["prompt_token_ids"] == model.tokenize(prompt)
    assert parsed["choices"][0]["text"].startswith(prompt)


def test_the_end_of_a_text_is_a_token_in_the_logprobs(served: Running, model: Model) -> None:
    end = model.tokenize("<|endoftext|>")[0]
    (choice,) = complete(served, logit_bias={str(end): 1000}, logprobs=1, max_tokens=9)["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == ""
    assert choice["logprobs"]["tokens"] == ["<|endoftext|>"]


def test_stop_texts_and_stop_tokens(served: Running, model: Model) -> None:
    text = complete(served, max_tokens=30)["choices"][0]["text"]
    word = text.split()[3]
    (choice,) = complete(served, max_tokens=30, stop=[word, "zzz"])["choices"]
    assert (choice["finish_reason"], word in choice["text"]) == ("stop", False)
    third = model.tokenize(text)[2]
    (choice,) = complete(served, max_tokens=30, stop_token_ids=[third])["choices"]
    assert choice["finish_reason"] == "stop"


def test_prompt_logprobs_and_token_ids_in_vllms_shape(served: Running, model: Model) -> None:
    (choice,) = complete(served, prompt_logprobs=2, return_token_ids=True, max_tokens=2)["choices"]
    ids = model.tokenize(PROMPT)
    assert choice["prompt_token_ids"] == ids
    assert len(choice["token_ids"]) == 2
    first, *others = choice["prompt_logprobs"]
    assert first is None
    for token, entry in zip(ids[1:], others, strict=True):
        assert math.isfinite(entry[str(token)]["logprob"])
        assert 1 in {one["rank"] for one in entry.values()}


def test_two_types_of_one_model(served: Running) -> None:
    found = {
        name: complete(served, model=name, max_tokens=2)["model"] for name in ("storybook:q8_0", "tales", "storybook")
    }
    assert found == {"storybook:q8_0": "storybook:Q8_0", "tales": "storybook:F32", "storybook": "storybook:F32"}


def test_offsets_after_a_prompt_that_ends_within_a_character(served: Running, model: Model) -> None:
    ids = model.tokenize("Hi 😀")[:-1]
    (choice,) = complete(served, prompt=ids, echo=True, logprobs=0, max_tokens=2)["choices"]
    offsets = choice["logprobs"]["text_offset"]
    assert offsets[len(ids)] == len(choice["text"]) - len("".join(choice["logprobs"]["tokens"][len(ids) :]))


def test_hidden_control_tokens_take_no_room(served: Running, model: Model) -> None:
    end = model.tokenize("<|endoftext|>")[0]
    body = {"logit_bias": {str(end): 1000}, "ignore_eos": True, "max_tokens": 3, "logprobs": 0}
    (choice,) = complete(served, **body)["choices"]
    assert (choice["text"], choice["logprobs"]["text_offset"]) == ("", [len(PROMPT)] * 3)
