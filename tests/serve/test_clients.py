"""The clients that people use: lm-evaluation-harness, `openai` and `huggingface_hub`, unchanged."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.runtime import Model
from dgpt2_quant.serve.calls.models import file_to_serve

from .conftest import Running, running

pytestmark = pytest.mark.peer
PROMPT = "Once upon a time"
QUESTIONS = [
    ("The wolf went into the", [" forest", " telephone", " 雪"]),
    ("“Open the door,” said the", [" king", " queens", "…"]),
    ("There was once a poor", [" woodcutter", " man who had twelve children"]),
]


@pytest.fixture(scope="module")
def tales(storybook_files: dict[str, Path]) -> Iterator[Running]:
    """All layers of the bundled model."""
    with running([file_to_serve(storybook_files["Q8_0"])], queue=64) as found:
        yield found


@pytest.fixture
def model(tales: Running) -> Model:
    return tales.models.find(None).model


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A task of lm-evaluation-harness that needs no network."""
    lines = [{"question": question, "choices": choices, "gold": 0} for question, choices in QUESTIONS]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    (tmp_path / "tales.yaml").write_text(
        f"""task: tales
dataset_path: json
dataset_kwargs:
  data_files:
    test: {tmp_path / "data.jsonl"}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list:
  - metric: acc
""",
        "utf-8",
    )
    return tmp_path


@pytest.mark.parametrize("kind", ["gguf", "local-completions"])
def test_lm_evaluation_harness_gets_the_librarys_numbers(
    tales: Running, model: Model, task: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    evaluator, tasks = pytest.importorskip("lm_eval.evaluator"), pytest.importorskip("lm_eval.tasks")
    base = f"http://127.0.0.1:{tales.port}"
    args = f"base_url={base}" if kind == "gguf" else f"base_url={base}/v1/completions,model=storybook,num_concurrent=2"
    found = evaluator.simple_evaluate(
        model=kind, model_args=args, tasks=["tales"], task_manager=tasks.TaskManager(include_path=str(task))
    )
    samples = sorted(found["samples"]["tales"], key=lambda sample: sample["doc_id"])
    for (question, choices), sample in zip(QUESTIONS, samples, strict=True):
        for choice, ((logprob, greedy),) in zip(choices, sample["resps"], strict=True):
            context, whole = model.tokenize(question), model.tokenize(question + choice)
            assert whole[: len(context)] == context, "a question whose tokens do not depend on the answer"
            (expected,) = model.score_continuations(context, [whole[len(context) :]])
            assert math.isclose(logprob, expected.log_probs.sum(), abs_tol=1e-4)
            assert greedy == expected.greedy.all()


@pytest.fixture
def openai_client(tales: Running) -> Any:
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"http://127.0.0.1:{tales.port}/v1", api_key="none", max_retries=0)


def test_the_openai_client(openai_client: Any, model: Model) -> None:
    (expected,) = model.generate(PROMPT, max_tokens=8, temperature=0)[0]
    body = {"model": "storybook", "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
    whole = openai_client.completions.create(**body, logprobs=2, echo=True)
    assert whole.choices[0].text == PROMPT + expected.text
    assert len(whole.choices[0].logprobs.tokens) == len(model.tokenize(PROMPT)) + 8
    stream = openai_client.completions.create(**body, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == expected.text
    assert chunks[-1].usage.completion_tokens == 8
    assert len(openai_client.embeddings.create(model="storybook", input=PROMPT).data[0].embedding) == model.width
    assert [one.id for one in openai_client.models.list()] == ["storybook:Q8_0"]
    assert openai_client.models.retrieve("storybook:Q8_0").object == "model"


def test_the_openai_clients_errors(openai_client: Any) -> None:
    openai = pytest.importorskip("openai")
    with pytest.raises(openai.NotFoundError) as missing:
        openai_client.completions.create(model="nobody", prompt=PROMPT)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        openai_client.completions.create(model="storybook", prompt=PROMPT, temperature=-1)
    assert wrong.value.param == "temperature"


@pytest.fixture
def hub_client(tales: Running, monkeypatch: pytest.MonkeyPatch) -> Any:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)  # the server is on this machine
    return huggingface_hub.InferenceClient(base_url=f"http://127.0.0.1:{tales.port}")


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"do_sample": False}, {"temperature": 0}),
        ({"do_sample": False, "stop": ["the"]}, {"temperature": 0, "stop": ["the"]}),
        ({"seed": 7, "temperature": 0.7, "top_k": 5}, {"seed": 7, "temperature": 0.7, "extra_body": {"top_k": 5}}),
        ({"seed": 7, "do_sample": True, "top_p": 0.5}, {"seed": 7, "top_p": 0.5}),
        (
            {"do_sample": False, "repetition_penalty": 1.3},
            {"temperature": 0, "extra_body": {"repetition_penalty": 1.3}},
        ),
    ],
)
def test_huggingface_hub_and_openai_agree(
    hub_client: Any, openai_client: Any, ours: dict[str, Any], theirs: dict[str, Any]
) -> None:
    expected = openai_client.completions.create(model="storybook", prompt=PROMPT, max_tokens=12, **theirs).choices[0]
    assert hub_client.text_generation(PROMPT, max_new_tokens=12, **ours) == expected.text
    *_, last = hub_client.text_generation(PROMPT, max_new_tokens=12, stream=True, details=True, **ours)
    assert last.generated_text == expected.text
    found = hub_client.text_generation(PROMPT, max_new_tokens=12, details=True, decoder_input_details=True, **ours)
    assert found.generated_text == expected.text
    assert found.details.generated_tokens == len(found.details.tokens)
    assert len(found.details.prefill) > 1
