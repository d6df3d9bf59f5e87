"""Pad tokens are never sampled and have no probability, even if their logits are the largest."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.runtime import Model, Scheduler, pipeline

from ..padded import embedding, with_embedding

REAL, PADS = 8189, 3
PROMPT = "Once upon a time"
GRAMMAR = 'root ::= [a-z ]+ "."'
WAYS: list[dict[str, Any]] = [
    {"temperature": 0},
    {"temperature": 1},
    {"temperature": 1, "top_k": 0},
    {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0},
    {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0, "typical_p": 0.9},
    {"temperature": 1, "mirostat": 2},
    {"temperature": 0, "logit_bias": {300: 2.0}},
    {"temperature": 1, "repeat_penalty": 1.3, "dry_multiplier": 0.8},
    {"temperature": 1, "min_tokens": 9},
    {"temperature": 1, "grammar": GRAMMAR},
]


@pytest.fixture(scope="module")
def loud(storybook_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Storybook with pad tokens that would win nearly each time."""
    rows = embedding(storybook_files["F32"])
    pads = [50 * rows[5], -50 * rows[5], 80 * rows[9]]
    blocks = np.concatenate([rows, pads]).astype(np.float32).view(np.uint8)
    target = tmp_path_factory.mktemp("loud") / "loud.gguf"
    with Model.load(with_embedding(storybook_files["F32"], target, TensorType.F32, blocks, PADS), threads=1) as model:
        assert (model.vocabulary, model.real_vocabulary) == (REAL + PADS, REAL)
        (row,) = model.logits(model.tokenize(PROMPT), len(model.tokenize(PROMPT)) - 1)
        assert row.argmax() >= REAL
        yield model


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(list(way)[:2] if way["temperature"] else way))
def test_a_text_is_that_of_the_model_without_pads(loud: Model, storybook: Model, way: dict[str, Any]) -> None:
    options = {"seed": 3, "max_tokens": 12, "logprobs": 5, **way}
    ((ours,),), ((plain,),) = (model.generate(PROMPT, **options) for model in (loud, storybook))
    assert max(ours.token_ids) < REAL
    assert ours == plain
    for one, other in zip(ours.logprobs or (), plain.logprobs or (), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert one.top.keys() == other.top.keys()


def test_together_and_by_the_scheduler(loud: Model) -> None:
    texts = loud.generate([PROMPT, "The king"], num_return_sequences=2, seed=1, max_tokens=8, temperature=1.5, top_k=0)
    assert all(max(text.token_ids) < REAL for group in texts for text in group)
    with Scheduler(loud, parallel=2) as scheduler:
        handles = [scheduler.submit(PROMPT, max_tokens=8, temperature=0, seed=seed) for seed in range(2)]
        assert all(token < REAL for handle in handles for event in handle for token in event.token_ids)


def test_by_the_pipeline(loud: Model, storybook: Model) -> None:
    ours, plain = (
        pipeline(model=model)(PROMPT, do_sample=False, max_new_tokens=8)[0]["generated_text"]
        for model in (loud, storybook)
    )
    assert ours == plain


def test_logprobs_of_a_prompt(loud: Model, storybook: Model) -> None:
    ((ours,),), ((plain,),) = (
        model.generate(PROMPT, echo=True, logprobs=3, max_tokens=0) for model in (loud, storybook)
    )
    for one, other in zip((ours.prompt_logprobs or ())[1:], (plain.prompt_logprobs or ())[1:], strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert one.top.keys() == other.top.keys()


def test_a_prompt_may_have_a_pad_token(loud: Model) -> None:
    prompt = [5, REAL, 7, REAL + 2]
    options = {"temperature": 1, "repeat_penalty": 1.2, "dry_multiplier": 0.5, "seed": 1}
    ((found,),) = loud.generate([prompt], echo=True, logprobs=2, max_tokens=6, **options)
    assert max(found.token_ids) < REAL
    assert [entry.logprob == -np.inf for entry in found.prompt_logprobs or ()] == [False, True, False, True]
    assert all(max(entry.top) < REAL for entry in (found.prompt_logprobs or ())[1:])


def test_all_logprobs_are_those_of_real_tokens(loud: Model) -> None:
    ((found,),) = loud.generate(PROMPT, logprobs=REAL, max_tokens=1, temperature=0)
    ((entry),) = found.logprobs or ()
    assert set(entry.top) == set(range(REAL))
    assert np.exp(list(entry.top.values())).sum() == pytest.approx(1, abs=1e-4)
    with pytest.raises(UsageError, match=r"`logprobs` must be 0-8189, .*, not 8190"):
        loud.generate(PROMPT, logprobs=REAL + 1, max_tokens=1)


@pytest.mark.parametrize(
    ("token", "says"), [(REAL, "not 8189, a pad token, which is never sampled"), (REAL + PADS, "not 8192$")]
)
def test_a_bias_for_a_pad_token_is_refused(loud: Model, token: int, says: str) -> None:
    with pytest.raises(UsageError, match=f"token ids of `logit_bias` must be 0-8188, not {token}") as caught:
        loud.generate(PROMPT, logit_bias={token: 1.0}, max_tokens=1)
    caught.match(says)
