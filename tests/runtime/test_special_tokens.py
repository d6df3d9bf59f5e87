"""Special tokens: stopping at them, showing them, and the beginning-of-text token."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.runtime import Completion, Model, Scheduler, TextGenerationPipeline

from .gguf_edit import rewrite

SEPARATOR = 300  # an ordinary token of storybook, here a control token with the name `<sep>`


@pytest.fixture(scope="module")
def special(storybook_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    source = storybook_files["Q8_0"]
    metadata = read_header(source).metadata
    tokens, types = (list(metadata[f"tokenizer.ggml.{name}"]) for name in ("tokens", "token_type"))
    tokens[SEPARATOR], types[SEPARATOR] = "<sep>", 3
    changed = {"tokens": tokens, "token_type": types, "add_bos_token": True}
    path = tmp_path_factory.mktemp("special") / "special.gguf"
    rewrite(source, path, metadata={f"tokenizer.ggml.{name}": value for name, value in changed.items()})
    with Model.load(path, threads=1) as model:
        yield model


def written(model: Model, **options: Any) -> Completion:
    """What it writes when the separator has to come in the middle."""
    grammar = f'root ::= "a" "b" <[{SEPARATOR}]> "c" "d"'
    return model.generate("x", grammar=grammar, **{"temperature": 0, "max_tokens": 9} | options)[0][0]


class TestStopping:
    def test_special_tokens_do_not_stop_by_default(self, special: Model) -> None:
        assert written(special).text == "abcd"

    @pytest.mark.parametrize(
        "options",
        [
            {"stop": "<sep>"},
            {"stop": ["cd", "<sep>"]},
            {"stop_token_ids": [SEPARATOR]},
            {"stop_token_ids": np.array([5, SEPARATOR])},
            {"stop": "<sep>", "ignore_eos": True},
        ],
        ids=str,
    )
    def test_at_a_special_token(self, special: Model, options: dict[str, Any]) -> None:
        found = written(special, logprobs=0, **options)
        assert (found.text, found.finish_reason) == ("ab", "stop")
        assert found.token_ids[-1] == SEPARATOR
        assert found.logprobs is not None
        assert len(found.logprobs) == found.tokens

    def test_at_an_ordinary_token(self, special: Model) -> None:
        free = special.generate("The king", temperature=0, max_tokens=12)[0][0]
        token = free.token_ids[7]
        first = free.token_ids.index(token)
        found = special.generate("The king", temperature=0, max_tokens=12, stop_token_ids=[token])[0][0]
        assert (found.token_ids, found.finish_reason) == (free.token_ids[: first + 1], "stop")
        assert found.text == special.detokenize(free.token_ids[:first])

    def test_in_a_scheduler(self, special: Model) -> None:
        with Scheduler(special, parallel=1) as scheduler:
            handle = scheduler.submit("x", stop="<sep>", grammar=f'root ::= "a" <[{SEPARATOR}]> "c"')
            assert handle.result(60).text == "a"

    def test_not_before_the_least_number_of_tokens(self, special: Model) -> None:
        found = special.generate("x", logit_bias={SEPARATOR: 1000}, min_tokens=3, stop="<sep>", max_tokens=9)[0][0]
        assert found.token_ids.index(SEPARATOR) == 3

    @pytest.mark.parametrize(("ids", "message"), [([-1], "-1"), ([99999], "99999"), ("5", "'5'"), (5, "5")])
    def test_ids_outside_the_vocabulary_are_refused(self, special: Model, ids: Any, message: str) -> None:
        with pytest.raises(UsageError, match=message):
            special.stream("x", stop_token_ids=ids)

    def test_a_stop_text_with_a_hidden_special_token_is_refused(self, special: Model) -> None:
        with pytest.raises(UsageError, match="the special token <sep> in it has no text"):
            special.stream("x", stop="b<sep>")
        assert written(special, stop="b<sep>", show_special=True).text == "a"


class TestShowing:
    def test_by_name(self, special: Model) -> None:
        assert written(special, show_special=True).text == "ab<sep>cd<|endoftext|>"
        assert written(special, show_special=True, max_tokens=3).text == "ab<sep>"
        assert written(special, show_special=True, stop="<sep>").text == "ab"

    def test_in_the_prompt_that_is_echoed(self, special: Model) -> None:
        tokens = special.tokenize("a<sep>b", add_special=False)
        shown, hidden = (
            special.generate([tokens], echo=True, max_tokens=0, show_special=show)[0][0].text for show in (True, False)
        )
        assert (shown, hidden) == ("a<sep>b", "ab")


class TestBeginning:
    """A file that says `add_bos_token`, as llama.cpp reads it."""

    def test_tokenize(self, special: Model, storybook: Model) -> None:
        plain = storybook.tokenize("The king")
        end = storybook.tokenize("<|endoftext|>")
        assert special.tokenize("The king") == end + plain
        assert special.tokenize("") == end
        assert special.tokenize("The king", add_special=False) == plain
        assert special.tokenize("The king", special=False) == plain
        assert storybook.tokenize("The king", add_special=True) == plain

    def test_the_end_of_text_token_is_added_if_the_file_states_so(
        self, storybook: Model, storybook_files: dict[str, Path], tmp_path: Path
    ) -> None:
        path = tmp_path / "ends.gguf"
        rewrite(storybook_files["Q8_0"], path, metadata={"tokenizer.ggml.add_eos_token": True})
        with Model.load(path, threads=1) as model:
            plain = storybook.tokenize("The king")
            assert model.tokenize("The king") == [*plain, *storybook.tokenize("<|endoftext|>")]
            assert model.tokenize("The king", add_special=False) == plain

    def test_the_pipeline_can_leave_it_out(self, special: Model) -> None:
        generator = TextGenerationPipeline(special, do_sample=False, max_new_tokens=2, return_tensors=True)
        (begin,) = special.tokenize("")
        found = [generator("The king", add_special_tokens=given)[0] for given in (None, True, False)]
        assert [ids["generated_token_ids"][0] == begin for ids in found] == [True, True, False]

    def test_texts_and_scores_begin_with_it(self, special: Model, storybook_files: dict[str, Path]) -> None:
        with Model.load(storybook_files["Q8_0"], threads=1) as plain:
            begun = "<|endoftext|>The king"
            expected = plain.generate(begun, temperature=0, max_tokens=8)[0][0].token_ids
            assert special.generate("The king", temperature=0, max_tokens=8)[0][0].token_ids == expected
            assert special.score("The king").tolist()[1:] == plain.score(begun).tolist()[1:]
            assert len(special.features("The king")) == len(plain.features(begun))

    def test_a_truncated_prompt_keeps_it(self, special: Model) -> None:
        sequence = special.new_sequence("king " * 600, truncate=True, max_tokens=10)
        assert sequence.request.prompt[0] == special.tokenize("")[0]
        assert len(sequence.request.prompt) == special.positions - 9


def test_the_pipeline_ends_at_eos_token_id(special: Model) -> None:
    generator = TextGenerationPipeline(special, do_sample=False, max_new_tokens=12)
    free = special.generate("The king", temperature=0, max_tokens=12, repeat_last_n=-1)[0][0]
    token = free.token_ids[7]
    first = free.token_ids.index(token)
    [found] = generator("The king", eos_token_id=token, return_full_text=False)
    assert found["generated_text"] == special.detokenize(free.token_ids[: first + 1])  # it is no special token
