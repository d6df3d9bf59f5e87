"""Prompts with log-probabilities (`echo` and `logprobs`): the numbers of `Model.score`, whatever is reused."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dgpt2_quant.runtime import Completion, Model, RequestHandle, Scheduler
from dgpt2_quant.runtime.slot import SCORED_ROWS, SCORED_UNIT

STORY = (Path(__file__).parents[2] / "demo" / "evaluation.txt").read_text("utf-8")


@pytest.fixture(scope="module", params=["F32", "Q4_K_M", "Q4_0"])
def model(request: pytest.FixtureRequest, short_files: dict[str, Path]) -> Iterator[Model]:
    with Model.load(short_files[request.param], threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def tokens(model: Model) -> list[int]:
    return model.tokenize(STORY)[:2000]


@pytest.fixture
def scheduler(model: Model) -> Iterator[Scheduler]:
    with Scheduler(model, parallel=3) as scheduler:
        yield scheduler


def submit(scheduler: Scheduler, prompt: list[int], logprobs: int = 1, max_tokens: int = 1) -> RequestHandle:
    return scheduler.submit(prompt, echo=True, logprobs=logprobs, max_tokens=max_tokens, temperature=0)


def assert_is_score(model: Model, completion: Completion, prompt: list[int]) -> None:
    assert completion.prompt_logprobs is not None
    first, *others = completion.prompt_logprobs
    assert (first.logprob, dict(first.top)) == (None, {})
    assert [entry.token for entry in completion.prompt_logprobs] == prompt
    assert np.abs([entry.logprob for entry in others] - model.score(prompt)[1:]).max(initial=0) < 1e-5


@pytest.mark.parametrize("length", [1, 63, 64, 100, 129, 150, 192, 200, 256, 300, 400])
def test_continuations_of_one_context(model: Model, scheduler: Scheduler, tokens: list[int], length: int) -> None:
    prompts = [tokens[:length] + tokens[1000 + 30 * number :][:size] for number, size in enumerate((20, 1, 5, 30))]
    handles = [submit(scheduler, prompt) for prompt in prompts]
    for prompt, handle in zip(prompts, handles, strict=True):
        assert_is_score(model, handle.result(30), prompt)
        assert handle.timing.prompt_cached + handle.timing.prompt_computed == len(prompt)
    for handle in handles[1:]:
        assert handle.timing.prompt_computed < SCORED_ROWS + 30 + SCORED_UNIT, "only the end was computed"
    totals = scheduler.stats.totals
    assert totals.prompt_tokens + totals.cached_tokens == sum(map(len, prompts))
    assert totals.prompt_steps <= sum(-(-len(prompt) // SCORED_ROWS) for prompt in prompts)


def test_next_to_another_text_the_steps_are_short(model: Model, scheduler: Scheduler, tokens: list[int]) -> None:
    other = scheduler.submit(tokens[:5], max_tokens=450, ignore_eos=True)
    next(iter(other))
    before = scheduler.stats.totals.prompt_steps
    assert_is_score(model, submit(scheduler, tokens[:400]).result(30), tokens[:400])
    assert scheduler.stats.active == 1, "the other one is still there"
    assert scheduler.stats.totals.prompt_steps - before == -(-400 // SCORED_ROWS)


@pytest.mark.parametrize("length", [513, 800, 1000])
def test_more_tokens_than_a_batch(long_file: Path, length: int) -> None:
    prompt = [7 * index % 250 for index in range(length)]
    with Model.load(long_file, threads=1) as model, Scheduler(model, parallel=1) as scheduler:
        for _ in range(2):
            assert_is_score(model, submit(scheduler, prompt).result(30), prompt)


def test_an_equal_prompt_is_computed_once(model: Model, scheduler: Scheduler, tokens: list[int]) -> None:
    first = submit(scheduler, tokens[:150], logprobs=5).result(30)
    handle = submit(scheduler, tokens[:150], logprobs=2)
    assert_is_score(model, handle.result(30), tokens[:150])
    assert handle.timing.prompt_computed == 0
    fewer = handle.result().prompt_logprobs or ()
    assert [list(entry.top.items()) for entry in fewer] == [
        list(entry.top.items())[:2] for entry in first.prompt_logprobs or ()
    ]


def test_more_alternatives_than_kept_are_computed_again(model: Model, scheduler: Scheduler, tokens: list[int]) -> None:
    for logprobs, computed in [(2, 150), (3, 150), (3, 0), (30, 150), (30, 150)]:
        handle = submit(scheduler, tokens[:150], logprobs=logprobs)
        assert_is_score(model, handle.result(30), tokens[:150])
        assert handle.timing.prompt_computed == computed
        assert {len(entry.top) for entry in handle.result().prompt_logprobs[1:]} == {logprobs}  # type: ignore[index]


def test_after_prompts_without_log_probabilities(model: Model, scheduler: Scheduler, tokens: list[int]) -> None:
    text = scheduler.submit(tokens[:300], max_tokens=5, temperature=0).result(30)
    handle = submit(scheduler, tokens[:300])
    assert_is_score(model, handle.result(30), tokens[:300])
    assert handle.timing.prompt_computed == 300
    after = scheduler.submit(tokens[:300], max_tokens=5, temperature=0)
    assert after.result(30) == text
    scheduler.submit(tokens[:280], max_tokens=5).result(30)
    assert_is_score(model, submit(scheduler, tokens[:310]).result(30), tokens[:310])


def test_after_a_request_that_was_cancelled_in_its_prompt(
    model: Model, scheduler: Scheduler, tokens: list[int]
) -> None:
    for wanted in range(1, 4):
        handle = submit(scheduler, tokens[wanted : 480 + wanted])
        while handle.timing.prompt_computed < 100 * wanted:
            time.sleep(0.0005)
        handle.cancel()
        handle.result(30)
        assert_is_score(model, submit(scheduler, tokens[wanted : 400 + wanted]).result(30), tokens[wanted:][:400])


def test_no_token_is_written_if_only_the_prompt_is_scored(
    model: Model, scheduler: Scheduler, tokens: list[int]
) -> None:
    (event,) = submit(scheduler, tokens[:90], max_tokens=0)
    assert event.completion
    assert_is_score(model, event.completion, tokens[:90])
    assert (event.token_ids, event.completion.tokens, event.completion.finish_reason) == ((), 0, "length")
    assert event.prompt_logprobs == event.completion.prompt_logprobs
