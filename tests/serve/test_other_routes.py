"""llama.cpp's routes, Azure ML's `/score`, embeddings, models and chat."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.quantize.checkpoint.resolve import resolve
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model
from dgpt2_quant.serve.calls.models import ModelFile, file_to_serve

from .conftest import Running, running

PROMPT = "Once upon a time"


@pytest.fixture
def model(served: Running) -> Model:
    return served.models.find("storybook:F32").model


def post(served: Running, path: str, **body: Any) -> Any:
    response = served.post(path, **body)
    assert response.status_code == 200, response.text
    return response.json()


def test_models(served: Running) -> None:
    listed = served.client.get("/v1/models").json()["data"]
    assert [one["id"] for one in listed] == ["storybook:F32", "storybook:Q8_0"]
    assert served.client.get("/v1/models/storybook:Q8_0").json() == listed[1]
    assert served.client.get("/v1/models/nobody").status_code == 404


def test_llama_cpps_completion(served: Running, model: Model) -> None:
    body = {"prompt": PROMPT, "n_predict": 6, "temperature": 0, "n_probs": 2, "return_tokens": True}
    found = post(served, "/completion", **body)
    (expected,) = model.generate(PROMPT, max_tokens=6, temperature=0)[0]
    assert (found["content"], found["tokens"]) == (expected.text, list(expected.token_ids))
    assert (found["stop"], found["stop_type"], found["tokens_predicted"]) == (True, "limit", 6)
    entry = found["completion_probabilities"][0]
    assert entry["top_logprobs"][0].items() <= entry.items()
    assert bytes(entry["bytes"]).decode() == entry["token"]
    assert found["timings"]["predicted_n"] == 6
    several = post(served, "/completion", prompt=[PROMPT, "The"], n_predict=2)
    assert [one["index"] for one in several] == [0, 1]
    mixed = post(served, "/completion", prompt=[model.tokenize("Once")[0], " upon a time"], n_predict=6, temperature=0)
    assert mixed["content"] == expected.text
    assert post(served, "/completion", prompt=PROMPT, n_predict=2, response_fields=["content"]).keys() == {"content"}
    healed = post(served, "/completion", prompt="The weath", n_predict=2, token_healing=True)
    assert (healed["content"][:2], healed["tokens_evaluated"]) == ("er", 1)


def test_llama_cpps_stream_has_no_done(served: Running) -> None:
    body = {"prompt": PROMPT, "n_predict": 6, "temperature": 0, "stream": True}
    with served.client.stream("POST", "/completion", json=body) as response:
        events = [json.loads(line.removeprefix("data: ")) for line in response.read().decode().split("\n\n") if line]
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]
    assert (
        "".join(event["content"] for event in events)
        == post(served, "/completion", **body | {"stream": False})["content"]
    )


@pytest.mark.parametrize(
    ("name", "value"), [("json_schema", {"type": "object"}), ("id_slot", 2), ("xtc_probability", 0.5), ("n_cmpl", 2)]
)
def test_what_llama_cpp_has_and_we_do_not_is_refused_by_name(served: Running, name: str, value: Any) -> None:
    response = served.post("/completion", **{"prompt": PROMPT, name: value})
    assert (response.status_code, response.json()["error"]["code"]) == (400, 400)
    assert name in response.json()["error"]["message"]


def test_a_bias_in_llama_cpps_shapes(served: Running, model: Model) -> None:
    body = {"prompt": PROMPT, "n_predict": 1, "temperature": 0, "return_tokens": True}
    (first,) = post(served, "/completion", **body)["tokens"]
    (second,) = post(served, "/completion", **body, logit_bias=[[first, False]])["tokens"]
    assert second != first
    assert post(served, "/completion", **body, logit_bias={str(second): 100})["tokens"] == [second]


def test_tokenize_speaks_both_dialects(served: Running, model: Model) -> None:
    text = "Schnee 雪"
    ids = model.tokenize(text)
    for name in ("content", "prompt"):
        assert post(served, "/tokenize", **{name: text})["tokens"] == ids
    pieces = post(served, "/tokenize", content=text, with_pieces=True)["tokens"]
    assert [piece["id"] for piece in pieces] == ids
    assert any(isinstance(piece["piece"], list) for piece in pieces)
    found = post(served, "/detokenize", tokens=ids)
    assert found == {"content": text, "prompt": text}
    end = model.tokenize("<|endoftext|>")
    assert post(served, "/tokenize", content="<|endoftext|>")["tokens"] == end
    assert len(post(served, "/tokenize", content="<|endoftext|>", parse_special=False)["tokens"]) > 1
    assert len(post(served, "/detokenize", tokens=ids * 300)["content"]) > 1000, "longer than the context"
    assert served.client.get("/tokenizer_info").json()["eos_token"] == "<|endoftext|>"


def test_azures_four_shapes(served: Running) -> None:
    texts = ["My name is John and I am", "Once upon a time,"]
    listed = post(served, "/score", input_data=texts, params={"max_new_tokens": 4, "seed": 1})
    assert [one.startswith(text) for one, text in zip(listed, texts, strict=True)] == [True, True]
    card = post(served, "/score", input_data={"input_string": texts, "parameters": {"max_new_tokens": 4}})
    assert [one.keys() for one in card] == [{"0"}, {"0"}]
    parameters = {"min_length": 20, "max_length": 30, "num_return_sequences": 2}
    large = post(served, "/score", inputs={"input_string": texts}, parameters=parameters)
    assert [[one.keys() for one in group] for group in large] == [[{"generated_text"}] * 2] * 2
    bare = post(served, "/score", inputs={"input_string": texts})
    assert [one.keys() for one in bare] == [{"0"}, {"0"}]
    short = post(served, "/score", input_data=texts[:1], params={"max_new_tokens": 3, "return_full_text": False})
    assert not short[0].startswith(texts[0])
    greedy = {"max_new_tokens": 4, "do_sample": False}
    assert post(served, "/score", input_data=texts, params=greedy) == post(
        served, "/score", input_data=texts, params=greedy
    )


def test_azures_lengths_count_the_prompt(served: Running, model: Model) -> None:
    parameters = {"min_length": 30, "max_length": 30, "do_sample": False}
    (group,) = post(served, "/score", inputs={"input_string": [PROMPT]}, parameters=parameters)
    assert len(model.tokenize(group[0]["generated_text"])) == 30


def test_azures_errors_and_liveness(served: Running) -> None:
    assert served.client.get("/").text == "Healthy"
    wrong = served.post("/score", data=["a"])
    assert (wrong.status_code, wrong.json().keys()) == (400, {"message"})
    assert "x-ms-run-fn-exec-ms" in served.post("/score", input_data=["a"], params={"max_new_tokens": 1}).headers


def test_embeddings(served: Running, model: Model) -> None:
    found = post(served, "/v1/embeddings", input=[PROMPT, "The wolf"])
    mean = model.features(PROMPT, pooling="mean")
    np.testing.assert_allclose(found["data"][0]["embedding"], mean / np.linalg.norm(mean), rtol=1e-5)
    encoded = post(served, "/v1/embeddings", input=PROMPT, encoding_format="base64")["data"][0]["embedding"]
    np.testing.assert_allclose(
        np.frombuffer(base64.b64decode(encoded), "<f4"), found["data"][0]["embedding"], rtol=1e-6
    )
    short = post(served, "/v1/embeddings", input=model.tokenize(PROMPT), dimensions=8)["data"][0]["embedding"]
    assert len(short) == 8
    assert np.isclose(np.linalg.norm(short), 1)
    for wrong in ("", [], ["a", ""]):
        assert served.post("/v1/embeddings", input=wrong).status_code == 400


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A model with a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    source = resolve("storybook").folder
    for path in filter(Path.is_file, source.iterdir()):
        (folder / path.name).write_bytes(path.read_bytes())
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}\n{% endfor %}<|assistant|>"
    config = {"tokenizer_class": "GPT2Tokenizer", "chat_template": template, "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (file,) = convert(str(folder), type="q8_0", output=folder / "chat.Q8_0.gguf")
    with running([file_to_serve(Path(file.path))]) as found:
        yield found


def test_chat(chatting: Running) -> None:
    model = chatting.models.find(None).model
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5, "temperature": 0}
    found = post(chatting, "/v1/chat/completions", **body, logprobs=True, top_logprobs=2)
    rendered = "<|user|>Hi<|endoftext|>\n<|assistant|>"
    (expected,) = model.generate(rendered, max_tokens=5, temperature=0)[0]
    (choice,) = found["choices"]
    assert choice["message"] == {"role": "assistant", "content": expected.text, "refusal": None}
    assert len(choice["logprobs"]["content"]) == 5
    assert found["usage"]["prompt_tokens"] == len(model.tokenize(rendered))
    parts = [{"type": "text", "text": "Hi"}]
    same = post(chatting, "/v1/chat/completions", **body | {"messages": [{"role": "user", "content": parts}]})
    assert same["choices"][0]["message"] == choice["message"]
    with chatting.client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
        lines = [line[6:] for line in response.read().decode().split("\n\n") if line]
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines[:-1]]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == expected.text


def test_names_of_special_tokens_in_a_message_stay_text(chatting: Running) -> None:
    model = chatting.models.find(None).model
    content = "a<|endoftext|>b"
    found = post(chatting, "/v1/chat/completions", messages=[{"role": "user", "content": content}], max_tokens=1)
    as_text = len(model.tokenize(content, special=False))
    outside = len(model.tokenize("<|user|>")) + len(model.tokenize("<|endoftext|>\n<|assistant|>"))
    assert found["usage"]["prompt_tokens"] == as_text + outside


def test_a_file_is_called_as_it_is_named(files: list[ModelFile], tmp_path: Path) -> None:
    path = tmp_path / "tales.lean.Q8_0.gguf"
    path.write_bytes(files[1].path.read_bytes())
    assert file_to_serve(path).id == "tales.lean:Q8_0"
