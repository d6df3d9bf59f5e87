"""A loaded model: exact texts, reproducibility, every end of a text, and wrong use."""

import gc
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.core.errors import ModelNotFoundError, RuntimeFailure, UsageError
from dgpt2_quant.quantize.calibration.numpy_gpt2 import from_gguf
from dgpt2_quant.runtime import Completion, Model, Scheduler
from dgpt2_quant.runtime.native import context as library
from hypothesis import example, given, settings
from hypothesis import strategies as st

from .gguf_edit import rewrite

PROMPT = "Once upon a time"
GREEDY = (
    ", and the King's daughter was so beautiful that she was so beautiful that she was so beautiful that she"
    " was so beautiful"
)
POSITIONS = 512


def greedy(model: Model, max_tokens: int = 24, **options: str | list[str]) -> Completion:
    ((completion,),) = model.generate(PROMPT, max_tokens=max_tokens, temperature=0, **options)
    return completion


def sampled(model: Model, prompt: str = PROMPT, seed: int = 1, max_tokens: int = 40) -> str:
    return "".join(model.stream(prompt, seed=seed, max_tokens=max_tokens, temperature=1, top_k=0, top_p=1, min_p=0))


class TestText:
    def test_exact_greedy_text(self, storybook: Model) -> None:
        assert greedy(storybook) == Completion(GREEDY, 24, "length")

    @pytest.mark.parametrize("level", ["F32", "Q8_0", "Q4_K_M", "Q4_0"])
    def test_the_same_whatever_the_thread_count(self, storybook_files: dict[str, Path], level: str) -> None:
        program = """if True:
            import sys
            from dgpt2_quant.runtime import Model
            for threads in (1, 2, 3):
                with Model.load(sys.argv[1], threads=threads) as model:
                    print(repr("".join(model.stream("Once upon a time", seed=1, max_tokens=40, temperature=1))))
        """
        # a separate process, in which threads yield: spinning threads are very slow next to another busy process
        command = [sys.executable, "-c", program, str(storybook_files[level])]
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
        child = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
        one, two, three = child.stdout.splitlines()
        assert one == two == three
        assert len(one) > 60

    def test_the_same_after_other_generations_and_in_a_fresh_model(
        self, storybook: Model, storybook_files: dict[str, Path]
    ) -> None:
        first = sampled(storybook)
        others = [sampled(storybook, "The wolf"), sampled(storybook, seed=2), sampled(storybook, "")]
        assert sampled(storybook) == first
        assert first not in others
        with Model.load(storybook_files["F32"], threads=1) as fresh:
            assert sampled(fresh) == first

    def test_the_same_whether_the_prompt_is_computed_or_kept(self, storybook: Model) -> None:
        storybook.generate("The wolf", max_tokens=1)  # another prompt before
        generations = [storybook.stream(PROMPT, seed=1, max_tokens=40) for _ in range(2)]
        assert "".join(generations[0]) == "".join(generations[1])
        assert [generation.timing.prompt_computed for generation in generations] == [len(PROMPT.split()), 0]

    def test_the_events_make_the_completion(self, storybook: Model) -> None:
        generation = storybook.stream(PROMPT, max_tokens=24, temperature=0)
        assert generation.completion is None
        pieces = list(generation)
        assert len(pieces) > 10
        assert generation.completion == Completion("".join(pieces), 24, "length")

    def test_a_prompt_longer_than_a_batch(self, long_file: Path) -> None:
        prompt = [7 * index % 250 for index in range(700)]
        with Model.load(long_file, threads=1) as model:
            logits = model.logits(prompt, 699)
            text = "".join(model.stream(prompt, max_tokens=1, temperature=0))
            assert text == model.detokenize([int(logits.argmax())])


class TestGenerate:
    def test_one_list_for_each_prompt(self, storybook: Model) -> None:
        results = storybook.generate([PROMPT, "The wolf"], num_return_sequences=2, max_tokens=5, seed=1)
        assert [len(completions) for completions in results] == [2, 2]
        assert storybook.generate(PROMPT, num_return_sequences=2, max_tokens=5, seed=1) == results[:1]
        assert storybook.generate([], max_tokens=5) == []

    def test_sequence_i_has_the_seed_plus_i(self, storybook: Model) -> None:
        # one after the other: together, a processor's sums of several rows may choose another token
        (completions,) = storybook.generate(PROMPT, num_return_sequences=3, max_tokens=16, seed=5, parallel=1)
        alone = [storybook.generate(PROMPT, max_tokens=16, seed=5 + number)[0][0] for number in range(3)]
        assert completions == alone
        assert len({completion.text for completion in completions}) == 3
        assert storybook.batch(PROMPT, num_return_sequences=3, seed=5).seeds == [5, 6, 7]

    def test_without_a_seed_texts_differ(self, storybook: Model) -> None:
        (completions,) = storybook.generate(PROMPT, num_return_sequences=3, max_tokens=24)
        assert len({completion.text for completion in completions}) == 3

    def test_timing_counts(self, storybook: Model) -> None:
        storybook.generate("The wolf", max_tokens=1)  # another prompt before
        generation = storybook.stream(PROMPT, max_tokens=10, temperature=0)
        for _ in generation:
            pass
        timing = generation.timing
        assert (timing.prompt_tokens, timing.decode_tokens, timing.decoded) == (4, 10, 9)
        found = timing.to_json()
        assert set(found) == {"prompt_tokens", "prompt_tps", "decode_tokens", "decode_tps", "first_token_ms"}
        assert all(value > 0 for value in found.values())


class TestEnd:
    @pytest.mark.parametrize(
        ("stop", "expected"),
        [
            (" daughter", ", and the King's"),
            ("g's daugh", ", and the Kin"),  # begins and ends inside tokens
            (["nothing", "so beautiful", "was"], ", and the King's daughter "),
            (",", ""),
        ],
    )
    def test_stop(self, storybook: Model, stop: str | list[str], expected: str) -> None:
        completion = greedy(storybook, stop=stop)
        assert completion.text == expected
        assert completion.finish_reason == "stop"
        assert completion.tokens < 12

    def test_a_stop_string_begun_at_the_end_is_shown(self, storybook: Model) -> None:
        assert greedy(storybook, stop=" that she never") == Completion(GREEDY, 24, "length")

    def test_a_stop_string_in_the_prompt_does_not_stop(self, storybook: Model) -> None:
        assert greedy(storybook, stop=PROMPT).text == GREEDY

    def test_end_of_text_token(self, storybook: Model, storybook_files: dict[str, Path], tmp_path: Path) -> None:
        (daughter,) = storybook.tokenize(" daughter")
        ends = {"tokenizer.ggml.eos_token_id": daughter}
        file = rewrite(storybook_files["F32"], tmp_path / "ends.gguf", metadata=ends)
        with Model.load(file, threads=1) as model:
            assert greedy(model) == Completion(", and the King's", 6, "eos")
            assert model.is_end(daughter)
        assert not storybook.is_end(daughter)
        assert storybook.is_end(0)

    def test_no_tokens(self, storybook: Model) -> None:
        assert greedy(storybook, 0) == Completion("", 0, "length")

    @pytest.mark.parametrize(("length", "tokens"), [(POSITIONS - 2, 3), (POSITIONS - 1, 2), (POSITIONS, 1)])
    def test_the_end_of_the_context(self, storybook: Model, length: int, tokens: int) -> None:
        generation = storybook.stream([5] * length, max_tokens=100, seed=1)
        text = "".join(generation)
        assert generation.completion == Completion(text, tokens, "length")

    def test_a_longer_prompt_is_refused(self, storybook: Model) -> None:
        with pytest.raises(UsageError, match="at most 512 tokens to fit the context, not 513"):
            storybook.stream([5] * 513)


class TestContextSize:
    def test_smaller_than_the_model(self, storybook: Model, storybook_files: dict[str, Path]) -> None:
        with Model.load(storybook_files["F32"], ctx_size=10, threads=1) as model:
            assert model.positions == 10
            assert greedy(model, 100) == Completion(greedy(storybook, 7).text, 7, "length")
            with pytest.raises(UsageError, match="at most 10 tokens to fit the context, not 11"):
                model.stream([5] * 11)
            with pytest.raises(UsageError, match="1-10 tokens, not 11"):
                model.logits([5] * 11)

    def test_of_one_position(self, storybook_files: dict[str, Path]) -> None:
        with Model.load(storybook_files["F32"], ctx_size=1, threads=1) as model:
            assert model.generate("", max_tokens=9)[0][0].tokens == 1

    def test_never_larger_than_the_model(self, storybook_files: dict[str, Path]) -> None:
        with Model.load(storybook_files["F32"], ctx_size=100_000, threads=1) as model:
            assert model.positions == POSITIONS

    @pytest.mark.parametrize("size", [0, -1])
    def test_out_of_range(self, storybook_files: dict[str, Path], size: int) -> None:
        with pytest.raises(UsageError, match=f"`ctx_size` must be a whole number, 1 or more, not {size}"):
            Model.load(storybook_files["F32"], ctx_size=size)


class TestPrompt:
    def test_an_empty_one_begins_a_text(self, storybook: Model) -> None:
        from_nothing = [sampled(storybook, prompt) for prompt in ("", "<|endoftext|>")]
        assert from_nothing == ["".join(storybook.stream([0], seed=1, max_tokens=40, **_UNFILTERED))] * 2

    def test_tokens_instead_of_text(self, storybook: Model) -> None:
        tokens = storybook.tokenize(PROMPT)
        assert "".join(storybook.stream(tokens, max_tokens=24, temperature=0)) == GREEDY

    @pytest.mark.parametrize("token", [-1, 8189, 2**40])
    def test_tokens_outside_of_the_vocabulary_are_refused(self, storybook: Model, token: int) -> None:
        for use in (storybook.stream, storybook.logits, storybook.detokenize):
            with pytest.raises(UsageError, match=f"a token id must be 0-8188 in this vocabulary, not {token}"):
                use([1, token])
        with pytest.raises(UsageError, match=f"not {token}"):
            storybook.is_end(token)
        assert greedy(storybook).text == GREEDY  # and it still works


_UNFILTERED = {"temperature": 1, "top_k": 0, "top_p": 1, "min_p": 0}


class TestTokens:
    @given(st.text(max_size=60))
    @example("👩‍👩‍👧 語 é\0\r\n\n\t  <|endoftext|>  ")
    @settings(deadline=None)
    def test_any_text_comes_back(self, storybook: Model, text: str) -> None:
        tokens = storybook.tokenize(text, special=False)
        assert storybook.detokenize(tokens) == text
        assert b"".join(map(storybook.token_bytes, tokens)) == text.encode()
        assert all(0 <= token < storybook.vocabulary for token in tokens)

    def test_known_ids(self, storybook: Model) -> None:
        tokens = storybook.tokenize("Once upon a time")
        assert [storybook.detokenize([token]) for token in tokens] == ["Once", " upon", " a", " time"]
        assert storybook.tokenize("") == []

    def test_a_control_token_in_the_text(self, storybook: Model) -> None:
        assert storybook.tokenize("<|endoftext|>") == [0]
        assert 0 not in storybook.tokenize("<|endoftext|>", special=False)
        assert storybook.detokenize([0]) == ""

    def test_bytes_that_are_not_utf8_become_replacement_characters(self, storybook: Model) -> None:
        first, *_ = storybook.tokenize("😀")
        assert storybook.detokenize([first]) == "�"

    @pytest.mark.parametrize(("text", "message"), [("a\ud83db", "U.D83D at index 1"), ("\udc80", "0x80 at index 0")])
    def test_lone_surrogates_are_refused(self, storybook: Model, text: str, message: str) -> None:
        for use in (storybook.tokenize, storybook.stream, storybook.generate):
            with pytest.raises(UsageError, match=message):
                use(text)


class TestLogits:
    def test_shape_and_rows(self, storybook: Model) -> None:
        tokens = storybook.tokenize("There was once a poor woodcutter who lived in the forest.")
        everything = storybook.logits(tokens).copy()
        assert everything.shape == (len(tokens), 8189)
        assert everything.dtype == np.float32
        half = len(tokens) // 2
        assert np.allclose(storybook.logits(tokens, half), everything[half:], atol=1e-3)
        assert np.allclose(storybook.logits(tokens, len(tokens) - 1), everything[-1:], atol=1e-3)

    def test_the_logits_of_a_beginning_are_the_same_rows(self, storybook: Model) -> None:
        tokens = storybook.tokenize("There was once a poor woodcutter who lived in the forest.")
        everything = storybook.logits(tokens).copy()
        for length in (1, 5, len(tokens) - 1):
            assert np.allclose(storybook.logits(tokens[:length]), everything[:length], atol=1e-2)

    def test_logits_equal_the_numpy_forward_pass(self, storybook: Model, storybook_files: dict[str, Path]) -> None:
        tokens = storybook.tokenize("There was once a poor woodcutter who lived in the forest.")
        expected = from_gguf(storybook_files["F32"], np.float64).logits(tokens)
        # 16 bits of the cache are the difference
        assert np.abs(storybook.logits(tokens) - expected).max() < 0.05

    @pytest.mark.parametrize("first", [0, 300, 512, 700])
    def test_of_more_tokens_than_a_batch(self, long_file: Path, first: int) -> None:
        tokens = [7 * index % 250 for index in range(800)]
        expected = from_gguf(long_file, np.float64).logits(tokens)
        with Model.load(long_file, threads=1) as model:
            found = model.logits(tokens, first)
        assert found.shape == (800 - first, model.vocabulary)
        assert np.abs(found - expected[first:]).max() < 0.02

    def test_logits_do_not_depend_on_earlier_calls(self, storybook: Model) -> None:
        before = storybook.logits([1, 2, 3]).copy()
        greedy(storybook)
        assert np.array_equal(storybook.logits([1, 2, 3]), before)

    @pytest.mark.parametrize("first", [-1, 3, 4])
    def test_a_first_row_out_of_range_is_refused(self, storybook: Model, first: int) -> None:
        with pytest.raises(UsageError, match=f"`first` must be 0-2 for 3 tokens, not {first}"):
            storybook.logits([1, 2, 3], first)


class TestFromPretrained:
    def test_a_name_a_folder_and_a_file_are_the_same_model(self) -> None:
        with Model.from_pretrained("storybook", type="q4_0", threads=1, ctx_size=64) as model:
            assert (model.quant_type, model.positions, model.threads) == ("Q4_0", 64, 1)
            expected = greedy(model)
        for source in (Path(__file__).parents[2] / "demo", str(model.path)):
            given = {"type": "q4_0"} if isinstance(source, Path) else {}
            with Model.from_pretrained(source, threads=1, ctx_size=64, **given) as other:  # type: ignore[arg-type]
                assert greedy(other) == expected

    def test_wrong_arguments_are_refused_before_a_download(self, storybook_files: dict[str, Path]) -> None:
        calls: dict[str, Callable[[], object]] = {
            "`threads` must be": lambda: Model.from_pretrained("no/such-model", threads=0),
            "`kv_type` must be": lambda: Model.from_pretrained("no/such-model", kv_type="f8"),
            "`model` must be": lambda: Model.from_pretrained(None),  # type: ignore[arg-type]
            "cannot be combined with a file": lambda: Model.from_pretrained(storybook_files["F32"], type="q8_0"),
        }
        for message, call in calls.items():
            with pytest.raises(UsageError, match=message):
                call()
        with pytest.raises(ModelNotFoundError):
            Model.from_pretrained("no/such-model", offline=True)


class TestLife:
    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match=r"absent\.gguf"):
            Model.load(tmp_path / "absent.gguf")

    def test_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match="no file"):
            Model.load(tmp_path)

    def test_properties_of_a_loaded_model(self, storybook_files: dict[str, Path]) -> None:
        with Model.load(str(storybook_files["Q4_K_M"]), threads=2) as model:
            assert (model.quant_type, model.positions, model.vocabulary) == ("Q4_K_M", POSITIONS, 8189)
            assert (model.path, model.threads) == (storybook_files["Q4_K_M"], 2)

    def test_threads_can_be_set_later(self, short_files: dict[str, Path]) -> None:
        def found(model: Model) -> Any:
            return model.generate([PROMPT, "The king"], max_tokens=20, temperature=0), model.score([5, 6]).tolist()[1:]

        with Model.load(short_files["Q8_0"], threads=1) as model:
            expected = found(model)
            model.threads = 2
            assert (model.threads, found(model)) == (2, expected)
            with pytest.raises(UsageError, match="`threads` must be"):
                model.threads = 0

    def test_use_after_close(self, storybook_files: dict[str, Path]) -> None:
        with Model.load(storybook_files["Q4_0"], threads=1) as model:
            late, begun, batch = model.stream(PROMPT), model.stream(PROMPT), model.batch([PROMPT, "The wolf"])
            next(begun)
            model.features([1])
            model.score([1, 2])
        model.close()  # a second time
        uses: list[Callable[[], object]] = [
            lambda: model.tokenize(PROMPT),
            lambda: model.detokenize([1, 2]),
            lambda: model.token_bytes(1),
            lambda: model.is_end(1),
            lambda: model.stream(PROMPT),
            lambda: model.batch([PROMPT]),
            lambda: model.generate(PROMPT),
            lambda: model.logits([1]),
            lambda: model.score([1, 2]),
            lambda: model.features([1, 2]),
            lambda: Scheduler(model),
            lambda: next(late),
            lambda: next(begun),
            lambda: list(batch),
        ]
        for use in uses:
            with pytest.raises(RuntimeFailure, match=r"Q4_0\.gguf is closed"):
                use()

    def test_closed_when_an_error_leaves_the_block(self, storybook_files: dict[str, Path]) -> None:
        with pytest.raises(KeyboardInterrupt), Model.load(storybook_files["Q4_0"], threads=1) as model:
            raise KeyboardInterrupt
        with pytest.raises(RuntimeFailure, match="is closed"):
            model.tokenize(PROMPT)

    def test_a_program_may_end_in_the_middle(self, storybook_files: dict[str, Path]) -> None:
        program = (
            "import sys; from dgpt2_quant.runtime import Model; model = Model.load(sys.argv[1], threads=1);"
            "generation = model.stream('Once'); next(generation); other = Model.load(sys.argv[1], threads=1)"
        )
        command = [sys.executable, "-c", program, str(storybook_files["Q4_0"])]
        child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (child.returncode, child.stdout, child.stderr) == (0, "", "")

    def test_a_second_generation_ends_the_first(self, storybook: Model) -> None:
        first, second = (storybook.stream(PROMPT, max_tokens=24, temperature=0) for _ in range(2))
        next(first)
        start = next(second)
        with pytest.raises(RuntimeFailure, match="another generation"):
            next(first)
        assert start + "".join(second) == GREEDY
        assert first.completion
        assert first.completion.finish_reason == "cancelled"

    def test_scoring_does_not_disturb_a_generation(self, storybook: Model) -> None:
        generation = storybook.stream(PROMPT, max_tokens=24, temperature=0)
        text = next(generation)
        storybook.logits([1, 2])
        text += next(generation)
        storybook.features("The wolf")
        assert text + "".join(generation) == GREEDY

    def test_a_generation_may_be_dropped(self, storybook: Model) -> None:
        next(storybook.stream("The wolf"))
        assert greedy(storybook).text == GREEDY


class TestMemory:
    def test_logits_stay_what_they_were(self, storybook_files: dict[str, Path]) -> None:
        with Model.load(storybook_files["Q8_0"], threads=1) as model:
            first = model.logits([1, 2, 3])
            before = first.copy()
            model.logits([4, 5, 6])
            assert np.array_equal(first, before)
        assert np.array_equal(first, before)

    def test_a_context_that_can_not_be_made_is_a_clear_error(
        self, storybook_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(library.bindings(), "llama_init_from_model", lambda model, params: None)
        with pytest.raises(RuntimeFailure, match="cannot create a context of"):
            Model.load(storybook_files["Q8_0"])
        gc.collect()  # the remaining objects free the model once, not twice


class TestNumbersOfAllKinds:
    def test_prompts(self, storybook: Model) -> None:
        tokens = storybook.tokenize("Once upon a time")
        expected = storybook.generate([tokens], temperature=0, max_tokens=8)
        for prompt in (np.array(tokens), tuple(tokens), iter(tokens), (token for token in tokens)):
            generation = storybook.stream(prompt, temperature=0, max_tokens=8)  # type: ignore[arg-type]
            assert "".join(generation) == expected[0][0].text
        assert storybook.score(iter(tokens)).tolist()[1:] == storybook.score(tokens).tolist()[1:]  # type: ignore[arg-type]

    @pytest.mark.parametrize("prompt", [b"Once", bytearray(b"Once"), None, 5, 1.5])
    def test_prompts_of_other_types_are_refused(self, storybook: Model, prompt: Any) -> None:
        for use in (storybook.stream, storybook.score, storybook.features, storybook.logits, storybook.detokenize):
            with pytest.raises(UsageError, match="expected a text or a list of token ids, not "):
                use(prompt)

    def test_wrong_argument_types_are_named(self, storybook: Model, storybook_files: Any) -> None:
        calls: dict[str, Callable[[], object]] = {
            r"Model\.load\('": lambda: Model(storybook_files["Q4_0"]),
            r"`model` must be a Model, not '.*Model\.load": lambda: Scheduler("storybook.gguf"),  # type: ignore[arg-type]
            "`path` must be the path of a GGUF file, not None": lambda: Model.load(None),  # type: ignore[arg-type]
            "`path` must be the path of a GGUF file, not ''": lambda: Model.load(""),
            r"`kv_type` must be one of f32, f16, .*, not \['f16'\]": lambda: Model.load(
                storybook_files["Q4_0"], kv_type=["f16"]
            ),  # type: ignore[arg-type]
            "`prompts` must be .*, not {'a'}": lambda: storybook.generate({"a"}),  # type: ignore[arg-type]
            "not <_io.StringI": lambda: storybook.generate(io.StringIO("a")),
            "`prompts` must be .*, not None": lambda: storybook.generate(None),  # type: ignore[arg-type]
            "`prompts` must be .*, not b'Once'": lambda: storybook.generate(b"Once"),  # type: ignore[arg-type]
            "`text` must be a str, not b''": lambda: storybook.tokenize(b""),  # type: ignore[arg-type]
            "expected one text or its token ids, not a list of texts": lambda: storybook.score(["a", "b"]),  # type: ignore[list-item]
        }
        for message, call in calls.items():
            with pytest.raises(UsageError) as caught:
                call()
            assert re.search(message, caught.value.message + caught.value.hint)

    @pytest.mark.parametrize("value", ["off", "on", 0, 1, None, "Auto"])
    def test_flash_attention_is_checked(self, storybook_files: dict[str, Path], value: Any) -> None:
        with pytest.raises(UsageError, match='`flash_attention` must be True, False or "auto", not '):
            Model.load(storybook_files["Q4_0"], flash_attention=value)

    def test_huge_pages_are_checked(self, storybook_files: dict[str, Path]) -> None:
        with pytest.raises(UsageError, match="`huge_pages` must be True or False, not 'off'"):
            Model.load(storybook_files["Q4_0"], huge_pages="off")  # type: ignore[arg-type]

    @pytest.mark.parametrize("count", [-1, None])
    def test_all_tokens_up_to_the_end_of_the_context(self, storybook: Model, count: Any) -> None:
        prompt = storybook.tokenize("king " * 600)[: storybook.positions - 20]
        ((found,),) = storybook.generate([prompt], max_tokens=count, ignore_eos=True, seed=1)
        assert (found.tokens, found.finish_reason) == (21, "length")

    def test_settings(self, storybook: Model) -> None:
        plain = storybook.generate("Once", seed=3, max_tokens=9, temperature=0.5, top_k=5, logit_bias={7: -1.5})
        of_numpy = storybook.generate(
            "Once",
            seed=np.int64(3),  # type: ignore[arg-type]
            max_tokens=np.int32(9),  # type: ignore[arg-type]
            temperature=np.float64(0.5),
            top_k=np.uint8(5),  # type: ignore[arg-type]
            logit_bias={np.int64(7): np.float32(-1.5)},  # type: ignore[dict-item]
        )
        assert of_numpy == plain

    def test_counts(self, storybook: Model, storybook_files: dict[str, Path]) -> None:
        number: Any = np.int64(2)
        expected = storybook.generate(["a", "b", "c"], num_return_sequences=2, parallel=2, seed=1, max_tokens=4)
        found = storybook.generate(["a", "b", "c"], num_return_sequences=number, parallel=number, seed=1, max_tokens=4)
        assert found == expected
        with Model.load(storybook_files["Q4_0"], ctx_size=np.int64(64), threads=np.int64(1)) as model:  # type: ignore[arg-type]
            assert model.positions == 64
            with Scheduler(model, parallel=number, queue=number, ctx_size=np.int32(32)) as scheduler:  # type: ignore[arg-type]
                assert scheduler.submit("a", max_tokens=3).result(10).tokens == 3
