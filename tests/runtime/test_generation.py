"""Options of a generation: ends, truncation, echo, log-probabilities, lengths."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime import Completion, Model
from dgpt2_quant.runtime.sampling.candidates import log_total
from dgpt2_quant.runtime.slot import CHUNK

from .gguf_edit import rewrite

PROMPT = "Once upon a time"
GREEDY = ", and the King's daughter was so beautiful that she was so beautiful that she"
STORY = (Path(__file__).parents[2] / "demo" / "evaluation.txt").read_text("utf-8")


def one(model: Model, prompt: str | list[int] = PROMPT, **options: Any) -> Completion:
    """A text from `stream`, greedy unless `options` differ."""
    generation = model.stream(prompt, **{"temperature": 0, "max_tokens": 16, **options})
    text = "".join(generation)
    assert generation.completion is not None
    assert generation.completion.text == text
    return generation.completion


@pytest.fixture(scope="module")
def daughter(storybook_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model for which " daughter", the sixth token of its greedy text, is an end-of-text token."""
    with Model.load(storybook_files["F32"], threads=1) as model:
        (token,) = model.tokenize(" daughter")
    ends = {"tokenizer.ggml.eos_token_id": token}
    file = rewrite(storybook_files["F32"], tmp_path_factory.mktemp("ends") / "ends.gguf", metadata=ends)
    with Model.load(file, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def small(storybook_files: dict[str, Path]) -> Iterator[Model]:
    with Model.load(storybook_files["F32"], ctx_size=31, threads=1) as model:
        yield model


class TestEnd:
    def test_ignore_eos_continues(self, daughter: Model) -> None:
        assert one(daughter) == Completion(", and the King's", 6, "eos")
        assert one(daughter, ignore_eos=True) == Completion(GREEDY, 16, "length")

    @pytest.mark.parametrize("least", [0, 5, 6, 7, 12])
    def test_min_tokens_come_before_an_end(self, daughter: Model, least: int) -> None:
        (end,) = daughter.tokenize(" daughter")
        completion = one(daughter, min_tokens=least)
        assert end not in completion.token_ids[:least]
        assert (completion == one(daughter)) == (least <= 5)
        assert completion.tokens >= least

    def test_max_tokens_limits_min_tokens(self, storybook: Model) -> None:
        assert one(storybook, min_tokens=100, max_tokens=5).tokens == 5


class TestTruncate:
    @pytest.mark.parametrize(
        ("length", "max_tokens", "kept"),
        [(40, 10, 22), (40, 0, 31), (40, 1, 31), (40, 2, 30), (40, 16, 16), (40, 17, 16), (40, 500, 16), (32, 1, 31)],
    )
    def test_the_end_of_the_prompt_is_kept(self, small: Model, length: int, max_tokens: int, kept: int) -> None:
        prompt = small.tokenize(STORY[:2000])[:length]
        generation = small.stream(prompt, max_tokens=max_tokens, temperature=0, truncate=True, echo=True)
        text = "".join(generation)
        assert generation.timing.prompt_tokens == kept
        assert text == one(small, prompt[-kept:], max_tokens=max_tokens, echo=True).text
        assert text.startswith(small.detokenize(prompt[-kept:]))
        assert generation.completion
        assert generation.completion.tokens == min(max_tokens, 31 - kept + 1)

    @pytest.mark.parametrize("length", [1, 15, 31])
    def test_a_prompt_that_fits_is_not_truncated(self, small: Model, length: int) -> None:
        prompt = small.tokenize(STORY[:2000])[:length]
        assert one(small, prompt, truncate=True, echo=True) == one(small, prompt, echo=True)

    def test_of_a_text(self, small: Model) -> None:
        text = one(small, STORY[:2000], max_tokens=10, truncate=True, echo=True).text
        assert small.detokenize(small.tokenize(STORY[:2000])[-22:]) in text
        with pytest.raises(UsageError, match="the prompt must have at most 31 tokens") as caught:
            small.stream(STORY[:2000])
        assert "truncate" in caught.value.hint


class TestEcho:
    @pytest.mark.parametrize("prompt", [PROMPT, "", "é語 <|endoftext|>\n", "x" * 300])
    def test_the_text_begins_with_the_prompt(self, storybook: Model, prompt: str) -> None:
        echoed, plain = one(storybook, prompt, echo=True), one(storybook, prompt)
        assert echoed.text == prompt + plain.text
        assert echoed.token_ids == plain.token_ids

    def test_of_tokens_their_text(self, storybook: Model) -> None:
        assert one(storybook, storybook.tokenize(PROMPT), echo=True).text == PROMPT + GREEDY

    def test_echo_of_an_empty_prompt(self, storybook: Model) -> None:
        assert one(storybook, echo=True, max_tokens=0) == Completion(PROMPT, 0, "length")

    def test_a_stop_string_in_it_does_not_stop(self, storybook: Model) -> None:
        assert one(storybook, echo=True, stop=["upon", "e, and"]).text == PROMPT + GREEDY


class TestLogprobs:
    @pytest.mark.parametrize("options", [{}, {"temperature": 2, "seed": 3, "top_k": 0, "repeat_penalty": 1.5}], ids=str)
    def test_logprobs_do_not_depend_on_sampling_settings(self, storybook: Model, options: dict[str, Any]) -> None:
        completion = one(storybook, logprobs=4, **options)
        assert completion.logprobs is not None
        assert [found.token for found in completion.logprobs] == list(completion.token_ids)
        prompt = storybook.tokenize(PROMPT)
        rows = storybook.logits([*prompt, *completion.token_ids], len(prompt) - 1)
        for found, row in zip(completion.logprobs, rows, strict=False):
            expected = row - log_total(row)
            assert found.logprob == pytest.approx(expected[found.token], abs=0.02)
            assert list(found.top.values()) == pytest.approx(np.sort(expected)[:-5:-1].tolist(), abs=0.02)
            assert all(found.top[token] == pytest.approx(expected[token], abs=0.02) for token in found.top)
            assert all(one >= other for one, other in pairwise(found.top.values()))
            assert found.top.get(found.token, found.logprob) == found.logprob

    def test_logprobs_0_gives_no_alternatives(self, storybook: Model) -> None:
        completion = one(storybook, logprobs=0)
        assert completion.logprobs is not None
        assert all(not found.top and found.logprob < 0 for found in completion.logprobs if found.logprob is not None)
        assert one(storybook).logprobs is one(storybook).prompt_logprobs is completion.prompt_logprobs is None

    @pytest.mark.parametrize("length", [1, 5, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
    def test_of_the_prompt_with_echo(self, storybook: Model, length: int) -> None:
        prompt = storybook.tokenize(STORY[:3000])[:length]
        completion = one(storybook, prompt, logprobs=2, echo=True)
        found = completion.prompt_logprobs
        assert found is not None
        assert [each.token for each in found] == prompt
        assert (found[0].logprob, dict(found[0].top)) == (None, {})
        assert [each.logprob for each in found[1:]] == pytest.approx(storybook.score(prompt)[1:].tolist(), abs=0.02)
        assert all(len(each.top) == 2 and max(each.top.values()) >= (each.logprob or 0) for each in found[1:])
        assert completion.token_ids == one(storybook, prompt, logprobs=2).token_ids

    def test_of_the_prompt_alone(self, storybook: Model) -> None:
        # as the OpenAI API requests log-likelihoods of given texts
        completion = one(storybook, echo=True, logprobs=1, max_tokens=0)
        assert completion.prompt_logprobs is not None
        assert len(completion.prompt_logprobs) == len(storybook.tokenize(PROMPT))

    @pytest.mark.parametrize(
        "options", [{}, {"temperature": 1, "seed": 5}, {"echo": True}, {"repeat_penalty": 1.4}], ids=str
    )
    def test_logprobs_change_no_text(self, storybook: Model, options: dict[str, Any]) -> None:
        long = {"max_tokens": 24, **options}
        assert one(storybook, logprobs=3, **long) == one(storybook, **long)
        assert one(storybook, logprobs=storybook.vocabulary, **long) == one(storybook, **long)

    @pytest.mark.parametrize("count", [-1, 8190, 1.0, True])
    def test_logprobs_out_of_range(self, storybook: Model, count: Any) -> None:
        with pytest.raises(UsageError, match=f"`logprobs` must be .*, not {count}"):
            storybook.stream(PROMPT, logprobs=count)


@pytest.mark.parametrize(
    "options",
    [
        {"min_tokens": -1},
        {"max_tokens": 1.0},
        {"max_tokens": -2},
        {"seed": "7"},
        {"seed": 1.5},
        {"seed": -2},
        {"stop": 3},
        {"stop": [3]},
        {"stop": ""},
        {"stop": ["a", ""]},
        {"stop": {"a": 1}},
        {"stop": b"a"},
        {"ignore_eos": "off"},
        {"echo": "no"},
        {"truncate": 2},
        {"show_special": []},
    ],
    ids=str,
)
def test_wrong_options_are_refused_by_name(storybook: Model, options: dict[str, Any]) -> None:
    (name,) = options
    for use in (storybook.stream, storybook.generate):
        with pytest.raises(UsageError, match=f"`{name}`"):
            use(PROMPT, **options)


class TestLength:
    @pytest.mark.parametrize("length", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 7, 511, 512])
    def test_a_prompt_of_any_length(self, storybook: Model, length: int) -> None:
        prompt = storybook.tokenize(STORY)[:length]
        completion = one(storybook, prompt, max_tokens=4, logprobs=1)
        assert completion.logprobs is not None
        row = storybook.logits(prompt, length - 1)[0]
        assert completion.token_ids[0] == row.argmax()
        assert completion.logprobs[0].logprob == pytest.approx(row.max() - log_total(row), abs=0.02)
        assert completion.tokens == min(4, 512 - length + 1)
