"""`pipeline("text-generation")`: the calls, output shapes and defaults of Transformers."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.core.errors import ModelNotFoundError, UsageError
from dgpt2_quant.runtime import Model, TextGenerationPipeline, pipeline, set_seed

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def generator(storybook_files: dict[str, Path]) -> Iterator[TextGenerationPipeline]:
    with pipeline("text-generation", model=storybook_files["Q8_0"], threads=1) as generator:
        yield generator


def length(generator: TextGenerationPipeline, text: str) -> int:
    return len(generator.model.tokenize(text))


class TestShapes:
    def test_one_text(self, generator: TextGenerationPipeline) -> None:
        (record,) = generator(PROMPT, max_new_tokens=5)
        assert list(record) == ["generated_text"]
        assert record["generated_text"].startswith(PROMPT)
        assert len(record["generated_text"]) > len(PROMPT)

    def test_several_sequences(self, generator: TextGenerationPipeline) -> None:
        records = generator(PROMPT, max_new_tokens=12, num_return_sequences=3)
        assert len({record["generated_text"] for record in records}) == 3

    def test_a_list_gives_a_list_of_lists(self, generator: TextGenerationPipeline) -> None:
        found = generator([PROMPT, "The king"], max_new_tokens=5, num_return_sequences=2)
        assert [[record["generated_text"][:3] for record in records] for records in found] == [["Onc"] * 2, ["The"] * 2]
        assert len(generator([PROMPT], max_new_tokens=5)[0]) == 1
        assert generator([], max_new_tokens=5) == []

    def test_without_the_prompt(self, generator: TextGenerationPipeline) -> None:
        options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
        (full,) = generator(PROMPT, **options)
        (new,) = generator(PROMPT, return_full_text=False, **options)
        assert PROMPT + new["generated_text"] == full["generated_text"]

    def test_tokens(self, generator: TextGenerationPipeline) -> None:
        (record,) = generator(PROMPT, max_new_tokens=8, do_sample=False, return_tensors=True)
        (text,) = generator(PROMPT, max_new_tokens=8, do_sample=False)
        assert len(record["generated_token_ids"]) == length(generator, PROMPT) + 8
        assert generator.model.detokenize(record["generated_token_ids"]) == text["generated_text"]


class TestLengths:
    def test_max_length_counts_the_prompt(self, generator: TextGenerationPipeline) -> None:
        (record,) = generator(PROMPT, max_length=20, do_sample=False, return_tensors=True)
        assert len(record["generated_token_ids"]) == 20

    def test_max_new_tokens_takes_precedence_over_max_length(self, generator: TextGenerationPipeline) -> None:
        (record,) = generator(PROMPT, max_length=20, max_new_tokens=3, do_sample=False, return_tensors=True)
        assert len(record["generated_token_ids"]) == length(generator, PROMPT) + 3

    def test_the_default_is_that_of_transformers(self, generator: TextGenerationPipeline) -> None:
        (record,) = generator(PROMPT, do_sample=False, return_tensors=True)
        assert len(record["generated_token_ids"]) == length(generator, PROMPT) + 256

    def test_a_prompt_of_max_length_is_refused(self, generator: TextGenerationPipeline) -> None:
        with pytest.raises(UsageError, match="`max_length` must be more than the prompt's 4 tokens, not 4"):
            generator(PROMPT, max_length=4)

    @pytest.mark.parametrize("least", [{"min_length": 60}, {"min_new_tokens": 56}])
    def test_min_length_and_min_new_tokens(self, generator: TextGenerationPipeline, least: dict[str, int]) -> None:
        options: dict[str, Any] = {"max_new_tokens": 60, "temperature": 8.0, "top_k": 0, "return_tensors": True}
        set_seed(3)
        short = [len(generator("<|endoftext|>", **options)[0]["generated_token_ids"]) for _ in range(4)]
        set_seed(3)
        long = [len(generator("<|endoftext|>", **options, **least)[0]["generated_token_ids"]) for _ in range(4)]
        assert all(length >= 57 for length in long)
        assert max(short) <= 61

    def test_too_long_for_the_context(self, generator: TextGenerationPipeline) -> None:
        with pytest.raises(UsageError, match="at most 512 tokens to fit the context, not 602"):
            generator("word " * 600, max_new_tokens=10)
        (record,) = generator("word " * 600, max_new_tokens=10, handle_long_generation="hole", return_tensors=True)
        assert len(record["generated_token_ids"]) == 512
        # also if the prompt fits, but not with the new tokens
        fits = "word " * 499
        (record,) = generator(fits, max_new_tokens=200, handle_long_generation="hole", return_tensors=True)
        assert record["generated_token_ids"][:312] == generator.model.tokenize(fits)[-312:]
        with pytest.raises(UsageError, match=r"`max_new_tokens` must be at most 511 .*, not 512"):
            generator("a", max_new_tokens=512, handle_long_generation="hole")


class TestSampling:
    def test_set_seed(self, generator: TextGenerationPipeline) -> None:
        texts = []
        for _ in range(2):
            set_seed(42)
            texts.append([generator(PROMPT, max_new_tokens=12) for _ in range(2)])
        assert texts[0] == texts[1]
        assert texts[0][0] != texts[0][1]

    def test_equal_prompts_get_different_texts(self, generator: TextGenerationPipeline) -> None:
        (first,), (second,) = generator([PROMPT, PROMPT], max_new_tokens=16)
        assert first != second

    def test_greedy(self, generator: TextGenerationPipeline) -> None:
        (record,) = generator(PROMPT, max_new_tokens=12, do_sample=False, return_full_text=False)
        ((expected,),) = generator.model.generate(PROMPT, max_tokens=12, temperature=0)
        assert record["generated_text"] == expected.text

    def test_several_greedy_sequences_are_refused(self, generator: TextGenerationPipeline) -> None:
        with pytest.raises(UsageError, match="`num_return_sequences` must be 1 without `do_sample`, not 2"):
            generator(PROMPT, num_return_sequences=2, do_sample=False)

    def test_options_of_the_pipeline_are_defaults(self, generator: TextGenerationPipeline) -> None:
        own = pipeline(model=generator.model, max_length=9, do_sample=False, return_tensors=True)
        assert len(own(PROMPT)[0]["generated_token_ids"]) == 9
        assert len(own(PROMPT, max_length=12)[0]["generated_token_ids"]) == 12
        assert len(own(PROMPT, max_new_tokens=2)[0]["generated_token_ids"]) == 6

    def test_stop_strings(self, generator: TextGenerationPipeline) -> None:
        (full,) = generator(PROMPT, max_new_tokens=24, do_sample=False)
        for name in ("stop_strings", "stop_sequence"):
            (cut,) = generator(PROMPT, max_new_tokens=24, do_sample=False, **{name: [" beautiful"]})
            assert cut["generated_text"] == full["generated_text"].partition(" beautiful")[0]

    def test_repetition_penalty(self, generator: TextGenerationPipeline) -> None:
        plain, other = (
            generator(PROMPT, max_new_tokens=60, do_sample=False, repetition_penalty=penalty)[0]["generated_text"]
            for penalty in (1.0, 1.5)
        )
        assert len(set(other.split())) > len(set(plain.split()))


def test_none_is_the_default(generator: TextGenerationPipeline) -> None:
    names = ("num_return_sequences", "prefix", "batch_size", "do_sample", "return_full_text", "return_tensors")
    set_seed(1)
    expected = generator(PROMPT, max_new_tokens=6)
    set_seed(1)
    assert generator(PROMPT, max_new_tokens=6, **dict.fromkeys(names)) == expected
    assert len(generator(PROMPT, max_new_tokens=None, max_length=None, return_tensors=True)[0]["generated_token_ids"])
    set_seed(1)
    whole = generator(PROMPT, max_new_tokens=6, temperature=None, top_k=None)
    set_seed(1)
    assert generator(PROMPT, max_new_tokens=6, temperature=1.0, top_k=0) == whole


@pytest.mark.parametrize(
    "wrong", [None, 5, b"text", {"a": 1}, {"a"}, ["a", 5], ["a", None], [b"a"], ["a", ["b"]]], ids=repr
)
def test_inputs_other_than_texts_are_refused(generator: TextGenerationPipeline, wrong: Any) -> None:
    with pytest.raises(UsageError, match="text"):
        generator(wrong, max_new_tokens=1)


def test_an_open_file_is_refused(generator: TextGenerationPipeline) -> None:
    with Path(__file__).open() as file, pytest.raises(UsageError, match="`text_inputs` must be a text or texts"):
        generator(file)


def test_a_generator_is_drawn_as_results_are_read(generator: TextGenerationPipeline) -> None:
    drawn: list[str] = []

    def texts() -> Iterator[str]:
        for number in itertools.count():
            drawn.append(f"Story {number}")
            yield drawn[-1]

    found = generator(texts(), max_new_tokens=2, do_sample=False, batch_size=2)
    assert drawn == []
    first, second, third = itertools.islice(found, 3)
    assert [records[0]["generated_text"][:7] for records in (first, second, third)] == drawn[:3]
    assert len(drawn) == 4
    assert [first, second] == generator(["Story 0", "Story 1"], max_new_tokens=2, do_sample=False, batch_size=2)


def test_a_data_set_is_read_lazily(generator: TextGenerationPipeline) -> None:
    class DataSet:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> str:
            return f"Story {index}"

    assert len(list(generator(DataSet(), max_new_tokens=1))) == 3


def test_options_of_tutorials_without_an_effect_are_accepted(generator: TextGenerationPipeline) -> None:
    expected = generator(PROMPT, max_new_tokens=6, do_sample=False)
    end = generator.model.tokenize("<|endoftext|>")[0]
    neutral: dict[str, Any] = {
        "truncation": True, "eos_token_id": end, "pad_token_id": 50256, "torch_dtype": "auto", "framework": "pt",
        "streamer": None, "length_penalty": 1.0, "no_repeat_ngram_size": 0, "use_cache": True, "num_beams": 1,
        "tokenizer": object(), "trust_remote_code": True, "model_kwargs": {}, "clean_up_tokenization_spaces": False,
        "early_stopping": False, "bad_words_ids": None, "token": None,
    }  # fmt: skip
    assert generator(PROMPT, max_new_tokens=6, do_sample=False, **neutral) == expected
    for device in (-1, "cpu", None):
        assert pipeline(model=generator.model, device=device, **neutral)


def test_truncation_keeps_the_beginning(generator: TextGenerationPipeline) -> None:
    """As the tokenizer of Transformers does."""
    [record] = generator("king " * 600, truncation=True, max_new_tokens=1, return_tensors=True)
    size = generator.model.positions
    assert record["generated_token_ids"][:size] == generator.model.tokenize("king " * 600)[:size]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"no_such_option": 1}, "there is no option `no_such_option`"),
        ({"num_beams": 4}, "`num_beams` must be 1 in this pipeline, not 4"),
        ({"num_beams": True}, "`num_beams` must be 1 in this pipeline, not True"),
        ({"penalty_alpha": 0.6}, "`penalty_alpha` must be 0.0 in this pipeline, not 0.6"),
        ({"length_penalty": 2.0}, "`length_penalty` must be 1.0"),
        ({"no_repeat_ngram_size": 2}, "`no_repeat_ngram_size` must be 0"),
        ({"use_cache": False}, "`use_cache` must be True"),
        ({"bad_words_ids": [[1]]}, "`bad_words_ids` must be None"),
        ({"streamer": "text"}, "`streamer` must be None"),
        ({"torch_dtype": "int8"}, "`torch_dtype` must be 'auto' or 'float32'"),
        ({"truncation": 5}, "`truncation` must be True or False, not 5"),
        ({"handle_long_generation": "cut"}, "`handle_long_generation` must be None or 'hole', not 'cut'"),
        ({"do_sample": "no"}, "`do_sample` must be True or False, not 'no'"),
        ({"temperature": -1.0}, "`temperature` must be 0 to 100, not -1.0"),
        ({"repetition_penalty": 0}, "`repeat_penalty` must be 0.01 to 100, not 0"),
        ({"num_return_sequences": 0}, "`num_return_sequences` must be a whole number, 1 or more, not 0"),
        ({"max_new_tokens": -3}, "`max_new_tokens` must be a whole number, 0 or more, not -3"),
        ({"eos_token_id": -1}, "a token id must be 0-8188 in this vocabulary, not -1"),
        ({"batch_size": 0}, "`batch_size` must be a whole number, 1-256, not 0"),
    ],
    ids=str,
)
def test_options_with_an_effect_that_is_missing_here_are_refused(
    generator: TextGenerationPipeline, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        generator(PROMPT, **({"max_new_tokens": 1} | options))


def test_chats_are_refused(generator: TextGenerationPipeline) -> None:
    with pytest.raises(UsageError, match="cannot chat"):
        generator([{"role": "user", "content": "Hello"}])  # type: ignore[list-item]


def test_other_tasks_devices_and_missing_models_are_refused(generator: TextGenerationPipeline, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'fill-mask'"):
        pipeline("fill-mask")
    with pytest.raises(UsageError, match="'cuda:0'"):
        pipeline(model=generator.model, device="cuda:0")
    with pytest.raises(UsageError, match="`num_beams` must be 1"):
        pipeline(model="no/such-model", num_beams=2)  # before anything is looked for
    with pytest.raises(ModelNotFoundError, match=r"absent\.gguf"):
        pipeline(model=tmp_path / "absent.gguf")


def test_a_model_name_is_converted() -> None:
    with pipeline("text-generation", model="storybook", type="q4_0", threads=1) as generator:
        assert isinstance(generator.model, Model)
        assert generator.model.quant_type == "Q4_0"
        assert generator(PROMPT, max_new_tokens=2)
