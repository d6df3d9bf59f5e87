"""Token healing: a continuation joins the text before it, wherever that ends."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.runtime import Completion, Model, Scheduler
from dgpt2_quant.runtime.sequence import Sequence

from .gguf_edit import rewrite

TEXT = 'Snow-white — “naïve”, in a café — paid 1784 crowns.\n\n"I don\'t  know," said the 雪 wolf 😀, respectfully.\n'


def healed(model: Model, prompt: str | list[int], **options: Any) -> tuple[Sequence, Completion]:
    settings = {"token_healing": True, "max_tokens": 6, "temperature": 0, "seed": 1, **options}
    sequence = model.new_sequence(prompt, **settings)
    (completion,) = model.write([sequence]).run()
    assert completion
    return sequence, completion


@pytest.fixture(scope="module")
def runs(storybook_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model with tokens for two newlines and for two blanks, as GPT-2's vocabulary has."""
    keys = {name: f"tokenizer.ggml.{name}" for name in ("tokens", "merges")}
    metadata = read_header(storybook_files["F32"]).metadata
    tokens, merges = list(metadata[keys["tokens"]]), list(metadata[keys["merges"]])
    for token, unit in ((8000, "Ċ"), (8001, "Ġ")):
        tokens[token] = unit * 2
        merges.append(f"{unit} {unit}")
    path = tmp_path_factory.mktemp("runs") / "runs.gguf"
    rewrite(storybook_files["F32"], path, metadata={keys["tokens"]: tokens, keys["merges"]: merges})
    with Model.load(path, threads=1) as model:
        yield model


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("The weath", "er was"),  # " we" + "ath" are replaced by " weather"
        ("Once upon a ti", "me, "),
        ("\"I don'", "t "),
        ("There was once a princ", "ess, "),
        ("The king", " was"),
        ("T", "he "),
        ("Dame Ann", ","),  # " Ann" + "n", although " Anne" is a token: the finished name is likelier
    ],
)
def test_a_word_is_completed(storybook: Model, prompt: str, text: str) -> None:
    assert healed(storybook, prompt)[1].text.startswith(text)


@pytest.mark.parametrize("prompt", ["Hello ", "Hello  ", "The old king\n\n ", " "])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_word_follows_a_blank(storybook: Model, runs: Model, prompt: str, temperature: float) -> None:
    for model in (storybook, runs):
        _, found = healed(model, prompt, temperature=temperature, top_k=0, top_p=1.0, min_p=0.0)
        assert not found.text[0].isspace()
        assert found.token_ids[0] != model.tokenize(" ")[0]


@pytest.mark.parametrize("prompt", ["", "He went home.\n", "The end.\n\n", "The end<|endoftext|>"])
def test_a_prompt_that_ends_with_a_whole_token_is_not_cut(storybook: Model, prompt: str) -> None:
    sequence, found = healed(storybook, prompt)
    assert found == healed(storybook, prompt, token_healing=False)[1]
    assert sequence.prompt == (storybook.tokenize(prompt) or [storybook.start_token])


def test_the_last_newline_is_a_token_of_its_own(runs: Model) -> None:
    # "\n\n" before a word is two tokens, although its last token alone would be one
    newline, newlines = runs.tokenize("\na")[0], runs.tokenize("\n\n")
    assert newlines == [8000]
    assert healed(runs, newlines)[0].prompt == [newline, newline]
    full = [5] * (runs.positions - 1) + newlines
    assert healed(runs, full)[0].prompt == full, "there is no position for one more"


def test_every_cut_of_a_text(storybook: Model) -> None:
    for end in range(1, len(TEXT) + 1):
        prompt = TEXT[:end]
        sequence, found = healed(storybook, prompt, temperature=1, seed=end)
        ids = [*sequence.prompt, *found.token_ids]
        assert storybook.detokenize(ids) == prompt + found.text, prompt
        assert len(found.token_ids) == 6 or found.finish_reason == "eos"
        assert prompt[-1] + found.text[:1] != "  ", prompt


@pytest.mark.parametrize(("text", "count"), [("The café", 1), ("The wolf 😀", 2)])
def test_an_incomplete_character_is_completed(storybook: Model, text: str, count: int) -> None:
    data = text.encode()[:-1]
    by_bytes = {storybook.token_bytes(token): token for token in range(256)}
    ids = [by_bytes[data[at : at + 1]] for at in range(len(data))]
    bias = {storybook.tokenize(text)[-1]: 100.0}
    sequence, found = healed(storybook, ids, echo=True, logit_bias=bias, max_tokens=count)
    assert found.text == text == storybook.detokenize([*sequence.prompt, *found.token_ids])
    assert healed(storybook, ids, logit_bias=bias, max_tokens=count)[1].text == text[-1]


class TestOptions:
    def test_echo_begins_with_the_prompt(self, storybook: Model) -> None:
        sequence, found = healed(storybook, "The weath", echo=True, logprobs=2)
        assert found.text.startswith("The weather")
        assert [one.token for one in found.prompt_logprobs or ()] == sequence.prompt == storybook.tokenize("The")

    def test_log_probabilities_are_those_of_all_tokens(self, storybook: Model) -> None:
        sequence, found = healed(storybook, "Hello ", logprobs=3)
        scores = storybook.score([*sequence.prompt, *found.token_ids])[len(sequence.prompt) :]
        for score, entry in zip(scores, found.logprobs or (), strict=True):
            assert math.isclose(score, entry.logprob or 0, abs_tol=1e-3)

    def test_the_token_that_ends_the_prompt_is_no_stop(self, storybook: Model) -> None:
        period = storybook.tokenize(".")
        _, found = healed(storybook, "He went home.", stop_token_ids=period, min_tokens=2, max_tokens=40)
        assert found.token_ids[0] == period[0]
        assert len(found.token_ids) > 2
        assert period[0] not in found.token_ids[1:-1]

    def test_a_stop_token_does_not_complete_the_prompt_before_the_minimum(self, storybook: Model) -> None:
        home = storybook.tokenize(" home")
        assert healed(storybook, "He went hom", stop_token_ids=home)[1].token_ids == tuple(home)
        _, found = healed(storybook, "He went hom", stop_token_ids=home, min_tokens=2)
        assert found.token_ids[0] not in home
        assert found.tokens >= 2

    def test_stop_texts_are_found_in_the_shown_text_only(self, storybook: Model) -> None:
        assert healed(storybook, "The weath", stop=["eath", "weath", " was"])[1].text == "er"

    def test_counts_of_tokens(self, storybook: Model) -> None:
        assert healed(storybook, "The weath", max_tokens=0)[1].tokens == 0
        sequence, found = healed(storybook, "The weath", max_tokens=1)
        assert (found.text, found.tokens, sequence.timing.prompt_tokens) == ("er", 1, 1)
        long = "king " * storybook.positions
        sequence, found = healed(storybook, long, truncate=True, max_tokens=9)
        assert found.finish_reason == "length"
        assert not found.text.startswith(" ")

    def test_special_tokens_are_shown_after_the_prompt_only(self, storybook: Model) -> None:
        assert healed(storybook, "The king", show_special=True)[1] == healed(storybook, "The king")[1]

    def test_penalties_leave_the_cut_tokens_out(self, storybook: Model) -> None:
        assert healed(storybook, "The king and the queen", frequency_penalty=30.0)[1].text.startswith((" ", ","))

    def test_a_grammar_is_refused(self, storybook: Model) -> None:
        with pytest.raises(UsageError, match="`token_healing` cannot be combined with `grammar`"):
            healed(storybook, "The", grammar='root ::= "a"')


def test_a_schedulers_handle_has_the_cut_prompt(model: Model, scheduler: Scheduler) -> None:
    options: dict[str, Any] = {"token_healing": True, "max_tokens": 8, "temperature": 0}
    handles = [scheduler.submit("The weath", **options) for _ in range(3)]
    texts = {handle.result().text for handle in handles}
    assert texts == {healed(model, "The weath", max_tokens=8)[1].text}
    assert [handle.prompt for handle in handles] == [model.tokenize("The")] * 3
