"""GPT-2's tokenizer from either of its two layouts, as llama.cpp wants it; and what is wrong with a broken one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.errors import CheckpointError
from dgpt2_quant.quantize.gguf_file import read_header
from dgpt2_quant.quantize.tokenizer import Tokenizer, TokenType, read_tokenizer
from dgpt2_quant.runtime import Model

from .checkpoints import END_OF_TEXT, MERGES, TOKENS, fast_tokenizer, make_checkpoint, write_json

SIZE = len(TOKENS)
END = SIZE - 1


@pytest.fixture
def files(tmp_path: Path) -> Path:
    return _tokenizer_only(make_checkpoint(tmp_path / "files", layers=1, tokenizer="files"))


@pytest.fixture
def fast(tmp_path: Path) -> Path:
    return _tokenizer_only(make_checkpoint(tmp_path / "fast", layers=1, tokenizer="fast"))


def _tokenizer_only(folder: Path) -> Path:
    (folder / "model.safetensors").unlink()
    return folder


def read(folder: Path, vocabulary: int = SIZE, **config: Any) -> Tokenizer:
    return read_tokenizer(folder, config, vocabulary)


def change(path: Path, edit: Callable[[Any], None]) -> None:
    content = json.loads(path.read_bytes())
    edit(content)
    path.write_text(json.dumps(content), "utf-8")  # with escapes, which can spell what UTF-8 can not


def test_both_layouts_give_the_same(files: Path, fast: Path) -> None:
    tokenizer = read(files)
    assert tokenizer == read(fast)
    assert tokenizer.tokens == TOKENS
    assert tokenizer.merges == MERGES
    assert tokenizer.types == [TokenType.NORMAL] * END + [TokenType.CONTROL]
    assert (tokenizer.bos, tokenizer.eos) == (END, END)


def test_merges_as_strings_are_read_as_well(fast: Path) -> None:
    change(fast / "tokenizer.json", lambda content: content["model"].update(merges=MERGES))
    assert read(fast).merges == MERGES


def test_tokenizer_json_beside_the_two_files_adds_its_added_tokens(files: Path) -> None:
    number = len(TOKENS)
    added = [{"id": number, "content": "<|user|>", "special": False}]
    write_json(files / "tokenizer.json", fast_tokenizer() | {"added_tokens": added})
    tokenizer = read_tokenizer(files, {}, number + 1)
    assert tokenizer.tokens == [*TOKENS, "<|user|>"]
    assert tokenizer.types[number] is TokenType.USER_DEFINED
    (files / "tokenizer.json").write_text("broken")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not sound JSON"):
        read(files)


def test_windows_line_ends_and_a_missing_version_line_change_nothing(files: Path) -> None:
    (files / "merges.txt").write_bytes("\r\n".join([*MERGES, ""]).encode())
    assert read(files).merges == MERGES


def test_padded_rows_become_unused_tokens(files: Path) -> None:
    tokenizer = read(files, SIZE + 2)
    assert tokenizer.tokens[END:] == [END_OF_TEXT, f"[PAD{SIZE}]", f"[PAD{SIZE + 1}]"]
    assert tokenizer.types[END:] == [TokenType.CONTROL, TokenType.UNUSED, TokenType.UNUSED]
    assert (tokenizer.bos, tokenizer.eos) == (END, END)


def test_added_tokens_are_user_defined_or_control(files: Path, fast: Path) -> None:
    write_json(files / "added_tokens.json", {"<|user|>": SIZE, "smile": SIZE + 1})
    decoder = {str(SIZE): {"content": "<|user|>", "special": True}, str(SIZE + 1): {"content": "smile"}}
    write_json(files / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    added = [{"id": SIZE, "content": "<|user|>", "special": True}, {"id": SIZE + 1, "content": "smile"}]
    change(fast / "tokenizer.json", lambda content: content["added_tokens"].extend(added))
    tokenizer = read(files, SIZE + 2)
    assert tokenizer == read(fast, SIZE + 2)
    assert tokenizer.tokens[-2:] == ["<|user|>", "smile"]
    assert tokenizer.types[-3:] == [TokenType.CONTROL, TokenType.CONTROL, TokenType.USER_DEFINED]


def test_special_tokens_are_the_configs(files: Path) -> None:
    tokenizer = read(files, bos_token_id=3, eos_token_id=[5, 6])
    assert (tokenizer.bos, tokenizer.eos) == (3, 5)


def test_llama_cpp_reads_and_writes_text_by_it(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", layers=1, vocabulary=SIZE + 3)
    (file,) = convert(str(folder), type=["F32"], output=tmp_path)
    assert read_header(Path(file.path)).metadata["tokenizer.ggml.tokens"][-1] == f"[PAD{SIZE + 2}]"
    with Model.load(file.path) as model:
        tokens = model.tokenize(f"then the ïn{END_OF_TEXT}")
        # Ġthe is merged from Ġt and he
        spelled = [TOKENS[token] for token in tokens]
        assert spelled == ["t", "he", "n", "Ġthe", "Ġ", "Ã", "¯", "n", END_OF_TEXT]
        assert model.detokenize(tokens) == "then the ïn"
        assert model.vocabulary == SIZE + 3


def without(folder: Path, name: str) -> None:
    (folder / name).unlink()


FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no vocab.json": (lambda f: without(f, "vocab.json"), "neither vocab.json with merges.txt nor tokenizer.json"),
    "no merges.txt": (lambda f: without(f, "merges.txt"), "neither vocab.json with merges.txt nor tokenizer.json"),
    "an empty merges.txt": (lambda f: (f / "merges.txt").write_text("#version: 0.2\n"), "no merges"),
    "a merge of one": (lambda f: (f / "merges.txt").write_text("Ġ t\nhe\n", "utf-8"), "'he' is no merge"),
    "a merge of three": (lambda f: (f / "merges.txt").write_text("t h e\n"), "'t h e' is no merge"),
    "merges in Latin-1": (lambda f: (f / "merges.txt").write_bytes(b"\xe9 t\n"), "not UTF-8"),
    "vocab.json cut off": (lambda f: (f / "vocab.json").write_text('{"a": 0, "b'), "not sound JSON"),
    "vocab.json a list": (lambda f: (f / "vocab.json").write_text('["a"]'), "no JSON object"),
    "a number twice": (lambda f: change(f / "vocab.json", lambda v: v.update(A=0)), "has the number 0"),
    "a gap": (lambda f: change(f / "vocab.json", lambda v: v.update({END_OF_TEXT: SIZE})), f"has the number {SIZE}"),
    "a negative number": (lambda f: change(f / "vocab.json", lambda v: v.update(A=-1)), "without a number"),
    "a name for a number": (lambda f: change(f / "vocab.json", lambda v: v.update(A="1")), "without a number"),
    "one token too many": (
        lambda f: change(f / "vocab.json", lambda v: v.update(extra=SIZE)),
        f"has {SIZE + 1} tokens, the embedding only {SIZE} rows",
    ),
    "half a surrogate": (
        lambda f: change(f / "vocab.json", lambda v: v.update({"\ud83d": v.pop("he")})),
        "no Unicode text",
    ),
    "add_prefix_space": (
        lambda f: write_json(f / "tokenizer_config.json", {"add_prefix_space": True}),
        "add_prefix_space",
    ),
    "a bad list of added tokens": (
        lambda f: write_json(f / "tokenizer_config.json", {"added_tokens_decoder": ["x"]}),
        "added_tokens_decoder",
    ),
    "a bad added token": (
        lambda f: write_json(f / "tokenizer_config.json", {"added_tokens_decoder": {"1": {"content": []}}}),
        "added_tokens_decoder",
    ),
}


@pytest.mark.parametrize("damage", FILES)
def test_what_is_wrong_with_vocab_and_merges_is_said(damage: str, files: Path) -> None:
    apply, words = FILES[damage]
    apply(files)
    with pytest.raises(CheckpointError) as caught:
        read(files)
    assert words in caught.value.message
    assert str(files) in caught.value.message


FAST: dict[str, tuple[dict[str, Any], str]] = {
    "another model": ({"model": {"type": "Unigram", "vocab": [["a", 0.1]]}}, "a Unigram model"),
    "another pre-tokenizer": ({"pre_tokenizer": {"type": "Metaspace"}}, "behind a Metaspace"),
    "no pre-tokenizer": ({"pre_tokenizer": None}, "behind a None"),
    "a prefix space": ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space"),
    "no splitting": ({"pre_tokenizer": {"type": "ByteLevel", "use_regex": False}}, "no splitting"),
    "a model that is a string": ({"model": "BPE"}, "not a tokenizers file"),
    "no merges key": ({"model": {"type": "BPE", "vocab": {"a": 0}}}, "not a tokenizers file"),
    "a vocabulary of strings": (
        {"model": {"type": "BPE", "vocab": ["abc"], "merges": MERGES}},
        "not a tokenizers file",
    ),
    "merges of numbers": ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [[1, 2]]}}, "not a tokenizers file"),
    "an added token without a number": ({"added_tokens": [{"content": "a"}]}, "not a tokenizers file"),
    "an added token that is no string": ({"added_tokens": [{"content": 7, "id": SIZE}]}, "not a tokenizers file"),
    "added tokens that are strings": ({"added_tokens": ["a"]}, "not a tokenizers file"),
    "an added number twice": ({"added_tokens": [{"content": "new", "id": 3}]}, "has the number 3"),
}


@pytest.mark.parametrize("damage", FAST)
def test_what_is_wrong_with_tokenizer_json_is_said(damage: str, fast: Path) -> None:
    changes, words = FAST[damage]
    write_json(fast / "tokenizer.json", fast_tokenizer() | changes)
    with pytest.raises(CheckpointError) as caught:
        read(fast)
    assert words in caught.value.message
    assert str(fast) in caught.value.message


@pytest.mark.parametrize("number", ["0", 1.0, True])
def test_a_special_token_that_is_no_number_is_refused(number: Any, files: Path) -> None:
    with pytest.raises(CheckpointError, match=f"eos_token_id is {number!r}, not a token's number"):
        read(files, eos_token_id=number)


@pytest.mark.parametrize("number", [-1, SIZE, 50256])
def test_a_special_token_outside_of_the_vocabulary_is_looked_up_by_name(number: int, files: Path) -> None:
    # a config that was never told its vocabulary has GPT-2's own 50256
    assert read(files, eos_token_id=number).eos == END
    write_json(files / "tokenizer_config.json", {"eos_token": {"content": "!"}})
    assert read(files, eos_token_id=number).eos == read(files).tokens.index("!")


def test_a_vocabulary_without_an_end_is_refused(files: Path) -> None:
    vocabulary = json.loads((files / "vocab.json").read_text("utf-8"))
    vocabulary["other"] = vocabulary.pop("<|endoftext|>")
    write_json(files / "vocab.json", vocabulary)
    with pytest.raises(CheckpointError, match=f"eos_token_id is 99999; the vocabulary has {SIZE} tokens"):
        read(files, bos_token_id=0, eos_token_id=99999)


def test_tokens_that_only_the_settings_know_are_added(files: Path) -> None:
    number = len(json.loads((files / "vocab.json").read_text("utf-8")))
    entry = {"content": "<|user|>", "special": True}
    write_json(files / "tokenizer_config.json", {"added_tokens_decoder": {str(number): entry}})
    tokenizer = read_tokenizer(files, {}, number + 3)
    assert tokenizer.tokens[number:] == ["<|user|>", f"[PAD{number + 1}]", f"[PAD{number + 2}]"]
    assert tokenizer.types[number] is TokenType.CONTROL


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", layers=1, tokenizer=None)
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        convert(str(folder), type=["F32"], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
