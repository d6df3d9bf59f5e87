"""Tokenizer folders as public issues report them: each is read as Transformers reads it, or refused by name."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.quantize.checkpoint.encode_text import encode_text
from dgpt2_quant.quantize.checkpoint.tokenizer import Tokenizer, TokenType, read_tokenizer
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model

from ...checkpoints import END_OF_TEXT, MERGES, TOKENS, fast_tokenizer, make_checkpoint, write_json

SIZE = len(TOKENS)
END = SIZE - 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model", layers=1, vocabulary=SIZE + 2, config={"bos_token_id": None})


def read(folder: Path, rows: int = SIZE + 2, **config: Any) -> Tokenizer:
    return read_tokenizer(folder, config, rows)


def extend(folder: Path, *tokens: str) -> None:
    """Puts tokens at the end of vocab.json, as a tokenizer does that was trained with special tokens."""
    vocabulary = json.loads((folder / "vocab.json").read_text("utf-8"))
    write_json(folder / "vocab.json", vocabulary | {text: SIZE + number for number, text in enumerate(tokens)})


def texts_of(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.tokens[number] for number in encode_text(tokenizer, text)]


def test_tokenizer_json_wins_over_a_stale_pair(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = read(folder).tokens
    caplog.clear()
    write_json(folder / "tokenizer.json", fast_tokenizer())
    write_json(folder / "vocab.json", {text: number for number, text in enumerate(reversed(TOKENS))})
    assert read(folder).tokens == expected
    warning = caplog.messages[0]
    assert "tokenizer.json is used; vocab.json and merges.txt are of another tokenizer" in warning
    assert repr(TOKENS[-1]) in warning


def test_a_pair_of_the_same_tokenizer_is_not_mentioned(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_json(folder / "tokenizer.json", fast_tokenizer())
    read(folder, SIZE)
    assert not caplog.messages


@pytest.mark.parametrize("file", ["special_tokens_map.json", "tokenizer_config.json"])
def test_tokens_of_the_vocabulary_that_a_file_names_are_special(file: str, folder: Path) -> None:
    extend(folder, "<s>", "<mask>")
    write_json(folder / file, {"bos_token": "<s>", "mask_token": {"content": "<mask>", "lstrip": False}})
    tokenizer = read(folder)
    assert tokenizer.types[SIZE:] == [TokenType.CONTROL] * 2
    assert texts_of(tokenizer, "<s>the<mask>") == ["<s>", "t", "he", "<mask>"]
    assert (tokenizer.bos, tokenizer.eos, tokenizer.others) == (SIZE, END, {"mask": SIZE + 1})


def test_a_merge_into_a_text_that_is_no_token_is_refused(folder: Path) -> None:
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, "Ġ k", ""]), "utf-8")
    with pytest.raises(CheckpointError, match="its merge 'Ġ k' needs the token 'Ġk', which its vocabulary lacks"):
        read(folder)


@pytest.mark.parametrize(("merge", "parts"), [("h e</w>", "words"), ("н ы", "characters")])
def test_a_bpe_of_another_alphabet_is_refused_by_name(merge: str, parts: str, folder: Path) -> None:
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merge}\n", "utf-8")
    with pytest.raises(CheckpointError, match=f"is of a BPE of {parts}, and GPT-2's is one of bytes"):
        read(folder)


@pytest.mark.parametrize(
    ("file", "kind"),
    [("vocab.txt", "a WordPiece"), ("spiece.model", "a SentencePiece"), ("tokenizer.model", "a SentencePiece")],
)
def test_another_kind_of_tokenizer_is_refused_by_name(file: str, kind: str, folder: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    (folder / file).write_text("[UNK]\n")
    with pytest.raises(CheckpointError, match=f"has {file}: {kind} tokenizer, and only byte-level BPEs"):
        read(folder)


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["vocab.json"], "has vocab.json, but neither merges.txt nor tokenizer.json"),
        (["merges.txt"], "has merges.txt, but neither vocab.json nor tokenizer.json"),
        (["encoder.json", "vocab.bpe"], "has encoder.json and vocab.bpe, OpenAI's names"),
    ],
)
def test_half_a_tokenizer_is_named(files: list[str], words: str, folder: Path) -> None:
    for name in {"vocab.json", "merges.txt"}.difference(files):
        (folder / name).unlink()
    for name in files:
        (folder / name).touch()
    with pytest.raises(CheckpointError, match=words) as caught:
        read(folder)
    assert caught.value.hint


def test_an_end_without_a_token_is_named(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_json(folder / "generation_config.json", {"eos_token_id": 50256})
    assert read(folder, SIZE).eos == END
    [warning] = caplog.messages
    assert f"generation_config.json states eos_token_id 50256, which none of the {SIZE} tokens has" in warning


def test_flags_of_added_tokens_give_one_warning_with_their_names(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = {
        str(SIZE): {"content": "<mask>", "lstrip": True, "special": True},
        str(SIZE + 1): {"content": "word", "single_word": True, "rstrip": True},
    }
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    read(folder)
    (warning,) = caplog.messages
    assert warning.endswith("'<mask>' (lstrip), 'word' (rstrip, single_word)")


def test_the_end_of_the_tokenizer_wins_over_an_ordinary_word_of_the_config(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """GPT2Config's default of 50256, in a larger vocabulary; or 0, of old configs."""
    extend(folder, "<s>", "</s>")
    write_json(folder / "special_tokens_map.json", {"bos_token": "<s>", "eos_token": "</s>"})
    for number in (7, 0):
        caplog.clear()
        tokenizer = read(folder, bos_token_id=number, eos_token_id=number)
        assert (tokenizer.bos, tokenizer.eos) == (SIZE, SIZE + 1)
        warning = next(message for message in caplog.messages if " eos is " in message)
        assert f"'</s>' ({SIZE + 1}) by its tokenizer, and {TOKENS[number]!r} ({number}) by config.json" in warning


def test_the_end_that_a_newer_tokenizer_states_wins_over_the_config_of_the_base_model(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Both are special: Transformers 5 added `<|eos|>`, and config.json still has the old one."""
    decoder = {str(SIZE): {"content": "<|eos|>", "special": True}}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder, "eos_token": "<|eos|>"})
    assert read(folder, eos_token_id=END).eos == SIZE
    assert f"eos is '<|eos|>' ({SIZE}) by its tokenizer, and {END_OF_TEXT!r} ({END}) by config.json" in caplog.text


def test_an_end_that_only_generation_config_states(folder: Path) -> None:
    extend(folder, "<a>", "<b>")
    write_json(folder / "tokenizer_config.json", {"additional_special_tokens": ["<a>", "<b>"]})
    write_json(folder / "generation_config.json", {"eos_token_id": SIZE})
    assert read(folder).eos == SIZE


@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
@pytest.mark.parametrize("special", [["<a>", "<b>"], ["<a>"]])
def test_of_a_list_of_ends_the_first_is_eos_and_the_model_stops_at_the_others(
    file: str, special: list[str], folder: Path
) -> None:
    extend(folder, "<a>", "<b>")
    write_json(folder / "tokenizer_config.json", {"additional_special_tokens": special})
    content = json.loads((folder / file).read_text("utf-8")) if (folder / file).is_file() else {}
    write_json(folder / file, content | {"eos_token_id": [END, SIZE, SIZE + 1]})
    (converted,) = convert(str(folder), type="Q8_0", output=folder)
    metadata = read_header(Path(converted.path)).metadata
    ends = [metadata[f"tokenizer.ggml.{role}_token_id"] for role in ("eos", "eot", "eom")]
    assert ends == [END, SIZE, SIZE + 1]
    with Model.load(converted.path, threads=1) as model:
        for end in ends:
            found = model.generate("the", logit_bias={end: 1000}, max_tokens=5)[0][0]
            assert (found.finish_reason, found.token_ids) == ("eos", (end,))


@pytest.mark.parametrize("how", ["settings", "template"])
def test_added_ends_are_written_and_each_prompt_has_them(how: str, folder: Path) -> None:
    if how == "settings":
        write_json(folder / "tokenizer_config.json", {"add_bos_token": True, "add_eos_token": True})
    else:
        end = {"SpecialToken": {"id": END_OF_TEXT, "type_id": 0}}
        template = {"type": "TemplateProcessing", "single": [end, {"Sequence": {"id": "A", "type_id": 0}}, end]}
        write_json(folder / "tokenizer.json", fast_tokenizer() | {"post_processor": template})
    (file,) = convert(str(folder), type="Q8_0", output=folder)
    with Model.load(file.path, threads=1) as model:
        plain = [TOKENS.index(text) for text in ("in", "Ġthe")]
        assert model.tokenize("in the") == [END, *plain, END]
        assert model.tokenize("in the", add_special=False) == plain
        assert model.first_token == END
        assert model.new_sequence("in the").request.prompt == [END, *plain, END]


def test_a_tokenizer_that_adds_nothing_is_written_so(folder: Path) -> None:
    (file,) = convert(str(folder), type="Q8_0", output=folder)
    metadata = read_header(Path(file.path)).metadata
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert "tokenizer.ggml.add_eos_token" not in metadata


def test_chat_templates_are_carried_and_files_go_before_settings(folder: Path) -> None:
    write_json(folder / "tokenizer_config.json", {"chat_template": "{{ old }}"})
    assert read(folder).chat_templates == {"default": "{{ old }}"}
    (folder / "chat_template.jinja").write_text("{{ новый }}", "utf-8")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool-use.jinja").write_text("{{ tools }}")
    (file,) = convert(str(folder), type="Q8_0", output=folder)
    metadata = read_header(Path(file.path)).metadata
    assert metadata["tokenizer.chat_template"] == "{{ новый }}"
    assert metadata["tokenizer.chat_template.tool_use"] == "{{ tools }}"
    assert metadata["tokenizer.chat_templates"] == ["tool_use"]
    with Model.load(file.path, threads=1) as model:
        assert model.tokenize("in") == [TOKENS.index("in")]


def test_rows_without_tokens_are_filled_with_one_line(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = read(folder, SIZE + 9)
    assert tokenizer.types[SIZE:] == [TokenType.UNUSED] * 9
    (line,) = caplog.messages
    assert line == f"{folder}: 9 of the {SIZE + 9} rows of the embedding have no token; they get unused ones"


def test_a_conversion_to_several_types_warns_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        convert(str(folder), type=["Q8_0", "Q4_0", "F16"], output=folder)
    assert len(caplog.messages) == len(set(caplog.messages)) == 1
