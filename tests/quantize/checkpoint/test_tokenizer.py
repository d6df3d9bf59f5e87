"""Reading GPT-2's tokenizer from both layouts for llama.cpp; broken ones are refused."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.quantize.checkpoint.tokenizer import Tokenizer, TokenType, read_tokenizer
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model

from ...checkpoints import END_OF_TEXT, MERGES, TOKENS, fast_tokenizer, make_checkpoint, write_json

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
    path.write_text(json.dumps(content), "utf-8")  # escapes can spell what UTF-8 cannot


def test_both_layouts_give_the_same_tokenizer(files: Path, fast: Path) -> None:
    tokenizer = read(files)
    assert tokenizer == read(fast)
    assert tokenizer.tokens == TOKENS
    assert tokenizer.merges == MERGES
    assert tokenizer.types == [TokenType.NORMAL] * END + [TokenType.CONTROL]
    assert (tokenizer.bos, tokenizer.eos) == (END, END)


def test_merges_as_strings(fast: Path) -> None:
    change(fast / "tokenizer.json", lambda content: content["model"].update(merges=MERGES))
    assert read(fast).merges == MERGES


def test_tokenizer_json_adds_its_added_tokens(files: Path) -> None:
    number = len(TOKENS)
    content = fast_tokenizer()
    content["added_tokens"].append({"id": number, "content": "<|user|>", "special": False})
    write_json(files / "tokenizer.json", content)
    tokenizer = read_tokenizer(files, {}, number + 1)
    assert tokenizer.tokens == [*TOKENS, "<|user|>"]
    assert tokenizer.types[number] is TokenType.USER_DEFINED
    (files / "tokenizer.json").write_text("broken")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is not valid JSON"):
        read(files)


def test_crlf_and_missing_version_line(files: Path) -> None:
    (files / "merges.txt").write_bytes("\r\n".join([*MERGES, ""]).encode())
    assert read(files).merges == MERGES


def test_padded_rows_become_unused_tokens(files: Path) -> None:
    tokenizer = read(files, SIZE + 2)
    assert tokenizer.tokens[END:] == [END_OF_TEXT, f"[PAD{SIZE}]", f"[PAD{SIZE + 1}]"]
    assert tokenizer.types[END:] == [TokenType.CONTROL, TokenType.UNUSED, TokenType.UNUSED]
    assert (tokenizer.bos, tokenizer.eos) == (END, END)


def test_gaps_in_the_numbering_become_unused_tokens(files: Path) -> None:
    change(files / "vocab.json", lambda v: [v.pop(TOKENS[3]), v.update({END_OF_TEXT: SIZE + 1})])
    tokenizer = read(files, SIZE + 3)
    gaps = [3, END, SIZE, SIZE + 2]
    assert [number for number, kind in enumerate(tokenizer.types) if kind is TokenType.UNUSED] == gaps
    assert [tokenizer.tokens[number] for number in gaps] == [f"[PAD{number}]" for number in gaps]
    assert (tokenizer.tokens[SIZE + 1], tokenizer.eos) == (END_OF_TEXT, SIZE + 1)


def test_unused_token_names_are_unique(files: Path) -> None:
    names = {f"[PAD{SIZE + 2}]": SIZE, f"[PAD{SIZE + 2}]_": SIZE + 1}
    write_json(files / "added_tokens.json", names)
    tokenizer = read(files, SIZE + 4)
    assert tokenizer.tokens[SIZE:] == [*names, f"[PAD{SIZE + 2}]__", f"[PAD{SIZE + 3}]"]
    assert tokenizer.types[SIZE:] == [TokenType.USER_DEFINED] * 2 + [TokenType.UNUSED] * 2
    assert len(set(tokenizer.tokens)) == SIZE + 4


@pytest.mark.parametrize("kind", ["vocab.json", "added_tokens.json", "tokenizer.json", "tokenizer_config.json"])
def test_token_without_a_row_is_dropped_with_a_warning(
    kind: str, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = {"id": SIZE, "content": "extra"}
    if kind == "vocab.json":
        change(files / kind, lambda v: v.update(extra=SIZE))
    else:
        content: dict[str, Any] = {
            "added_tokens.json": {"extra": SIZE},
            "tokenizer.json": fast_tokenizer()
            | {"added_tokens": [{"id": END, "content": END_OF_TEXT, "special": True}, entry]},
            "tokenizer_config.json": {"added_tokens_decoder": {str(SIZE): entry}},
        }
        write_json(files / kind, content[kind])
    tokenizer = read(files)
    assert (tokenizer.tokens, tokenizer.merges) == (TOKENS, MERGES)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage() == f"{files}: the embedding has {SIZE} rows, so 1 tokens are dropped ('extra')"
    caplog.clear()
    assert read(files, SIZE + 1).tokens == [*TOKENS, "extra"]
    assert not caplog.records


def test_warning_names_only_some_dropped_tokens(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_json(files / "added_tokens.json", {f"<{number}>": SIZE + number for number in range(6)})
    assert read(files).tokens == TOKENS
    (record,) = caplog.records
    assert record.getMessage().endswith("6 tokens are dropped ('<0>', '<1>', '<2>', '<3>', ...)")


def test_merges_of_dropped_tokens_are_dropped(files: Path) -> None:
    tokenizer = read(files, TOKENS.index("Ġthe"), bos_token_id=0, eos_token_id=0)
    assert tokenizer.tokens == TOKENS[: TOKENS.index("Ġthe")]
    assert tokenizer.merges == ["Ġ t", "h e", "i n"]


def test_merges_of_dropped_tokens_in_any_order(files: Path) -> None:
    # "he", the second merge, moves to the end; Ġthe needs it, and is never produced
    change(files / "vocab.json", lambda v: v.update(he=SIZE))
    tokenizer = read(files)
    number = TOKENS.index("he")
    assert tokenizer.tokens[number] == f"[PAD{number}]"
    assert tokenizer.merges == [merge for merge in MERGES if merge != "h e"]


@pytest.mark.parametrize("settings", [{}, {"bos_token": "<|user|>", "eos_token": {"content": "<|user|>"}}])
def test_dropped_special_token_falls_back_to_end_of_text(settings: dict[str, Any], files: Path) -> None:
    write_json(files / "added_tokens.json", {"<|user|>": SIZE})
    write_json(files / "tokenizer_config.json", settings)
    tokenizer = read(files, bos_token_id=SIZE, eos_token_id=SIZE)
    assert (tokenizer.bos, tokenizer.eos) == (END, END)
    grown = read(files, SIZE + 1, bos_token_id=SIZE, eos_token_id=SIZE)
    assert (grown.bos, grown.eos) == (SIZE, SIZE)


def test_dropped_end_of_text_is_an_error(files: Path) -> None:
    with pytest.raises(
        CheckpointError, match=f"eos_token_id is {END} in config.json, but the vocabulary has {END} tokens, and none is"
    ):
        read(files, END, bos_token_id=0, eos_token_id=END)
    with pytest.raises(CheckpointError, match="no file names its eos token"):
        read(files, END)
    write_json(files / "tokenizer_config.json", {"eos_token": "!"})
    assert read(files, END, bos_token_id=0, eos_token_id=END).eos == TOKENS.index("!")


@pytest.mark.parametrize("number", [-1, -1000])
def test_negative_id_is_refused(number: int, files: Path) -> None:
    decoder = {str(number): {"content": "<|user|>"}}
    write_json(files / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    with pytest.raises(CheckpointError, match=r"added_tokens_decoder|not an integer"):
        read(files, SIZE + 1)


def test_llama_cpp_loads_gaps_and_dropped_tokens(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", layers=1, vocabulary=SIZE + 4)
    names = {f"[PAD{SIZE + 1}]": SIZE, "<|user|>": SIZE + 2, "<|beyond|>": SIZE + 4, "<|far|>": 10**9}
    write_json(folder / "added_tokens.json", names)
    (file,) = convert(str(folder), type=["F32"], output=tmp_path)
    metadata = read_header(Path(file.path)).metadata
    unused = [f"[PAD{SIZE + 1}]_", f"[PAD{SIZE + 3}]"]
    assert metadata["tokenizer.ggml.tokens"][SIZE:] == [f"[PAD{SIZE + 1}]", unused[0], "<|user|>", unused[1]]
    with Model.load(file.path, threads=1) as model:
        assert model.vocabulary == SIZE + 4
        assert model.tokenize(f"<|user|>{END_OF_TEXT}[PAD{SIZE + 1}]") == [SIZE + 2, END, SIZE]
        for text in ("<|beyond|>", "<|far|>", *unused):  # not tokens, but text
            tokens = model.tokenize(text)
            assert not {SIZE + 1, SIZE + 3} & set(tokens)
            assert model.detokenize(tokens) == text


def test_llama_cpp_tokenizes_without_dropped_tokens(tmp_path: Path) -> None:
    config = {"bos_token_id": 0, "eos_token_id": 0}
    folder = make_checkpoint(tmp_path / "model", layers=1, vocabulary=TOKENS.index("Ġthe"), config=config)
    (file,) = convert(str(folder), type=["F32"], output=tmp_path)
    with Model.load(file.path, threads=1) as model:
        tokens = model.tokenize(f"in the ïn{END_OF_TEXT}")
        assert max(tokens) < model.vocabulary == TOKENS.index("Ġthe")
        assert [TOKENS[token] for token in tokens[:3]] == ["in", "Ġt", "he"]
        assert model.detokenize(tokens) == f"in the ïn{END_OF_TEXT}"


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


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("text", ["<|ü €|>", "two words", " led by a space", "\n\n", "日本"])
def test_added_tokens_are_plain_text(text: str, special: bool, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", layers=1, vocabulary=SIZE + 1, tokenizer="fast")
    added = [{"id": SIZE, "content": text, "special": special}]
    change(folder / "tokenizer.json", lambda content: content["added_tokens"].extend(added))
    (file,) = convert(str(folder), type=["F32"], output=tmp_path)
    with Model.load(file.path, threads=1) as model:
        assert model.tokenize(f"a{text}b") == [TOKENS.index("a"), SIZE, TOKENS.index("b")]
        assert model.detokenize([SIZE]) == ("" if special else text)


def test_a_special_token_wins_over_an_ordinary_one_of_the_config(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    """GPT2Config's default of 50256 is an ordinary word in a larger vocabulary."""
    tokenizer = read(files, bos_token_id=END, eos_token_id=5)
    assert (tokenizer.bos, tokenizer.eos) == (END, END)
    (warning,) = caplog.messages
    assert f"eos is {END_OF_TEXT!r} ({END}) by GPT2Tokenizer's default, and {TOKENS[5]!r} (5) by config.json" in warning


def test_ends_listed_in_the_config_are_eos_and_eot(files: Path) -> None:
    write_json(files / "added_tokens.json", {"<a>": SIZE, "<b>": SIZE + 1})
    tokenizer = read(files, SIZE + 2, eos_token_id=[SIZE + 1, SIZE])
    assert (tokenizer.eos, tokenizer.others) == (SIZE + 1, {"eot": SIZE})


def test_llama_cpp_round_trip(tmp_path: Path) -> None:
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
    "no vocab.json": (lambda f: without(f, "vocab.json"), "merges.txt, but neither vocab.json nor tokenizer.json"),
    "no merges.txt": (lambda f: without(f, "merges.txt"), "vocab.json, but neither merges.txt nor tokenizer.json"),
    "an empty merges.txt": (lambda f: (f / "merges.txt").write_text("#version: 0.2\n"), "no merges"),
    "a merge of one": (lambda f: (f / "merges.txt").write_text("Ġ t\nhe\n", "utf-8"), "'he' is not a merge"),
    "a merge of three": (lambda f: (f / "merges.txt").write_text("t h e\n"), "'t h e' is not a merge"),
    "merges in Latin-1": (lambda f: (f / "merges.txt").write_bytes(b"\xe9 t\n"), "not UTF-8"),
    "vocab.json cut off": (lambda f: (f / "vocab.json").write_text('{"a": 0, "b'), "not valid JSON"),
    "vocab.json a list": (lambda f: (f / "vocab.json").write_text('["a"]'), "not a JSON object"),
    "a number twice": (
        lambda f: change(f / "vocab.json", lambda v: v.update(new=0)),
        f"{TOKENS[0]!r} and 'new' both have the id 0",
    ),
    "an added number twice": (
        lambda f: write_json(f / "added_tokens.json", {"<|user|>": END}),
        f"{END_OF_TEXT!r} and '<|user|>' both have the id {END}",
    ),
    "a number twice in the settings": (
        lambda f: write_json(f / "tokenizer_config.json", {"added_tokens_decoder": {"7": {"content": "<|user|>"}}}),
        f"{TOKENS[7]!r} and '<|user|>' both have the id 7",
    ),
    "a negative number": (lambda f: change(f / "vocab.json", lambda v: v.update(A=-1)), "not an integer"),
    "a name for a number": (lambda f: change(f / "vocab.json", lambda v: v.update(A="1")), "not an integer"),
    "an empty token without one": (
        lambda f: change(f / "vocab.json", lambda v: v.update({"": None})),
        "not an integer",
    ),
    "half a surrogate": (
        lambda f: change(f / "vocab.json", lambda v: v.update({"\ud83d": v.pop("he")})),
        "not valid Unicode",
    ),
    "add_prefix_space": (
        lambda f: write_json(f / "tokenizer_config.json", {"add_prefix_space": True}),
        "add_prefix_space",
    ),
    "a bad list of added tokens": (
        lambda f: write_json(f / "tokenizer_config.json", {"added_tokens_decoder": ["x"]}),
        "added_tokens_decoder",
    ),
    "a negative number of an added token": (
        lambda f: write_json(f / "added_tokens.json", {"<|user|>": -1}),
        "not an integer",
    ),
    "a bad added token": (
        lambda f: write_json(f / "tokenizer_config.json", {"added_tokens_decoder": {"1": {"content": []}}}),
        "added_tokens_decoder",
    ),
}


@pytest.mark.parametrize("damage", FILES)
def test_invalid_vocab_and_merges_are_reported(damage: str, files: Path) -> None:
    apply, words = FILES[damage]
    apply(files)
    with pytest.raises(CheckpointError) as caught:
        read(files)
    assert words in caught.value.message
    assert str(files) in caught.value.message


def split(pattern: Any) -> dict[str, Any]:
    steps = [{"type": "Split", "pattern": pattern, "behavior": "Isolated"}, {"type": "ByteLevel", "use_regex": False}]
    return {"type": "Sequence", "pretokenizers": steps}


FAST: dict[str, tuple[dict[str, Any], str]] = {
    "another model": ({"model": {"type": "Unigram", "vocab": [["a", 0.1]]}}, "a Unigram model"),
    "another pre-tokenizer": ({"pre_tokenizer": {"type": "Metaspace"}}, "its pre-tokenizer is Metaspace"),
    "no pre-tokenizer": ({"pre_tokenizer": None}, "its pre-tokenizer is missing"),
    "a prefix space": ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "add_prefix_space"),
    "no splitting": ({"pre_tokenizer": {"type": "ByteLevel", "use_regex": False}}, "use_regex False"),
    "another Split": ({"pre_tokenizer": split({"Regex": "[0-9]"})}, "Split + ByteLevel, and not GPT-2's"),
    "a Split that is a list": ({"pre_tokenizer": split({"Regex": []})}, "Split + ByteLevel, and not GPT-2's"),
    # "THE" would be encoded as "THE", which the model never saw
    "a normalizer": ({"normalizer": {"type": "Lowercase"}}, "normalizer"),
    "words that end in a suffix": (
        {"model": fast_tokenizer()["model"] | {"end_of_word_suffix": "</w>"}},
        "end_of_word_suffix",
    ),
    "a model that is a string": ({"model": "BPE"}, "not a valid tokenizer.json"),
    "no merges key": ({"model": {"type": "BPE", "vocab": {"a": 0}}}, "not a valid tokenizer.json"),
    "a vocabulary of strings": (
        {"model": {"type": "BPE", "vocab": ["abc"], "merges": MERGES}},
        "not a valid",
    ),
    "merges of numbers": (
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [[1, 2]]}},
        "not a valid",
    ),
    "an added token without a number": ({"added_tokens": [{"content": "a"}]}, "not a valid tokenizer.json"),
    "an added token that is no string": ({"added_tokens": [{"content": 7, "id": SIZE}]}, "not a valid tokenizer.json"),
    "added tokens that are strings": ({"added_tokens": ["a"]}, "not a valid tokenizer.json"),
    "an added number twice": (
        {"added_tokens": [{"content": "new", "id": 3}]},
        f"{TOKENS[3]!r} and 'new' both have the id 3",
    ),
}


@pytest.mark.parametrize("damage", FAST)
def test_invalid_tokenizer_json_is_reported(damage: str, fast: Path) -> None:
    changes, words = FAST[damage]
    write_json(fast / "tokenizer.json", fast_tokenizer() | changes)
    with pytest.raises(CheckpointError) as caught:
        read(fast)
    assert words in caught.value.message
    assert str(fast) in caught.value.message


@pytest.mark.parametrize("number", ["0", 1.0, True])
def test_special_token_id_must_be_an_integer(number: Any, files: Path) -> None:
    with pytest.raises(CheckpointError, match=f"eos_token_id is {number!r}, not a token id"):
        read(files, eos_token_id=number)


@pytest.mark.parametrize("number", [-1, SIZE, 50256])
def test_out_of_range_special_token_is_found_by_name(number: int, files: Path) -> None:
    # a config with GPT-2's default of 50256
    assert read(files, eos_token_id=number).eos == END
    write_json(files / "tokenizer_config.json", {"eos_token": {"content": "!"}})
    assert read(files, eos_token_id=number).eos == read(files).tokens.index("!")


def test_vocabulary_without_end_of_text_is_refused(files: Path) -> None:
    vocabulary = json.loads((files / "vocab.json").read_text("utf-8"))
    vocabulary["other"] = vocabulary.pop("<|endoftext|>")
    write_json(files / "vocab.json", vocabulary)
    with pytest.raises(CheckpointError, match=f"eos_token_id is 99999 in config.json, but the vocabulary has {SIZE}"):
        read(files, bos_token_id=0, eos_token_id=99999)


def test_added_tokens_from_tokenizer_config(files: Path) -> None:
    number = len(json.loads((files / "vocab.json").read_text("utf-8")))
    entry = {"content": "<|user|>", "special": True}
    write_json(files / "tokenizer_config.json", {"added_tokens_decoder": {str(number): entry}})
    tokenizer = read_tokenizer(files, {}, number + 3)
    assert tokenizer.tokens[number:] == ["<|user|>", f"[PAD{number + 1}]", f"[PAD{number + 2}]"]
    assert tokenizer.types[number] is TokenType.CONTROL


def test_missing_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", layers=1, tokenizer=None)
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        convert(str(folder), type=["F32"], output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_byte_token_without_a_row_is_refused(tmp_path: Path) -> None:
    """llama.cpp would drop the letter from every text; it splits a merged token into letters."""
    folder = make_checkpoint(tmp_path / "model")
    vocabulary = {token: number for number, token in enumerate(TOKENS)}
    vocabulary["h"] = 10**6
    write_json(folder / "vocab.json", vocabulary)
    with pytest.raises(CheckpointError, match="token 'h' has the id 1000000, but the embedding has 262 rows"):
        convert(str(folder), type="F32", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
