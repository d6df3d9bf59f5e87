"""Tokenizing without llama.cpp gives llama.cpp's tokens."""

import json
import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from dgpt2_quant.core.text import BUNDLED, load_text
from dgpt2_quant.quantize.checkpoint.encode_text import encode_text
from dgpt2_quant.quantize.checkpoint.source import open_model
from dgpt2_quant.quantize.checkpoint.tokenizer import Tokenizer
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model
from hypothesis import given, settings
from hypothesis import strategies as st

from ...checkpoints import END_OF_TEXT, MERGES, TOKENS, make_checkpoint, write_json
from ...runtime.gguf_edit import rewrite

SIZE = len(TOKENS)
CHARACTERS = st.characters(exclude_categories=["Cs"])
PIECES = st.sampled_from([*"then 'sĠ\n\t\r\u00a0\u3000é1²東🙂\0", END_OF_TEXT, END_OF_TEXT[:-1]])
TEXTS = st.lists(CHARACTERS | PIECES, max_size=40).map("".join)
QUICK = settings(max_examples=60, deadline=None, derandomize=True, database=None)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return open_model("storybook").tokenizer()


@pytest.fixture(scope="module")
def model(storybook_files: dict[str, Path]) -> Model:
    return Model.load(storybook_files["Q4_0"], threads=1)


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_texts(name: str, tokenizer: Tokenizer, model: Model) -> None:
    text = load_text(name).text
    tokens = encode_text(tokenizer, text)
    assert tokens == model.tokenize(text, special=False)
    assert len(tokens) > 4096


def test_many_scripts(tokenizer: Tokenizer, model: Model) -> None:
    text = files("dgpt2_quant.demo").joinpath("README.md").read_text("utf-8") + (
        " Ünïcode: 東京, Ελλάδα, हिन्दी, العربية, 🙂👩‍👩‍👧, ½ x² ①, it's we'll I'M  two  spaces \t\n\n\r\n end   "
    )
    assert encode_text(tokenizer, text) == model.tokenize(text, special=False)


@pytest.mark.parametrize("text", ["", " ", "   ", "\n\n", "a", "\0", "\ufeffmark", "x" * 5000, "'s 'S n't"])
def test_short_and_odd_texts(text: str, tokenizer: Tokenizer, model: Model) -> None:
    assert encode_text(tokenizer, text) == model.tokenize(text, special=False)


@pytest.mark.parametrize("parse_special", [True, False])
@pytest.mark.parametrize("text", ["one{}two", "{}", "{}{}\n\n{}", "one {} two", "<|{}|>"])
def test_parse_special(text: str, parse_special: bool, tokenizer: Tokenizer, model: Model) -> None:
    text = text.format(*[END_OF_TEXT] * 3)
    tokens = encode_text(tokenizer, text, parse_special=parse_special)
    assert tokens == model.tokenize(text, special=parse_special)
    assert tokens.count(tokenizer.eos) == (text.count(END_OF_TEXT) if parse_special else 0)


@QUICK
@given(TEXTS, st.booleans())
def test_random_text(tokenizer: Tokenizer, model: Model, text: str, parse_special: bool) -> None:
    found = encode_text(tokenizer, text, parse_special=parse_special)
    assert found == model.tokenize(text, special=parse_special)


def agrees(folder: Path, *texts: str) -> list[list[str]]:
    """Compares on a checkpoint's tokenizer and on that of its GGUF file; returns the tokens' texts."""
    (file,) = convert(str(folder), type="Q8_0", output=folder)
    tokenizer = open_model(str(folder)).tokenizer()
    assert open_model(file.path, allow_requantize=True).tokenizer() == tokenizer
    return file_agrees(Path(file.path), *texts)


def file_agrees(path: Path, *texts: str) -> list[list[str]]:
    tokenizer = open_model(str(path), allow_requantize=True).tokenizer()
    with Model.load(path, threads=1) as model:
        for parse_special in (False, True):
            theirs = [model.tokenize(text, special=parse_special) for text in texts]
            assert [encode_text(tokenizer, text, parse_special=parse_special) for text in texts] == theirs
    return [[tokenizer.tokens[token] for token in tokens] for tokens in theirs]


def with_added(folder: Path, *added: str) -> Path:
    make_checkpoint(folder, layers=1, vocabulary=SIZE + len(added))
    write_json(folder / "added_tokens.json", {text: SIZE + number for number, text in enumerate(added)})
    return folder


def test_added_token_at_any_place(tmp_path: Path) -> None:
    texts = ["x<|user|>the", "<|user|>", " <|user|> the<|user|><|user|>", "<|user |><|user|"]
    found = agrees(with_added(tmp_path / "model", "<|user|>"), *texts)
    assert found[:2] == [["x", "<|user|>", "t", "he"], ["<|user|>"]]


@pytest.mark.parametrize(
    ("added", "text"),
    [
        (["two words"], "two words two  words two wordsmith"),
        (["née", "東京"], "née 東京 nee東"),
        (["  ", "    "], "a  b    c     d"),
        (["the"], "then the bathe"),
        (["\n"], "a\nb\n\nc"),
        (["ab", "abc"], "abcabab"),
        (["bc", "abc"], "abc bc"),
    ],
    ids=repr,
)
def test_added_tokens_of_all_kinds(added: list[str], text: str, tmp_path: Path) -> None:
    agrees(with_added(tmp_path / "model", *added), text)


def test_longest_added_token_first(tmp_path: Path) -> None:
    """llama.cpp first searches the whole text for the longest token, then the remaining parts for the next."""
    found = agrees(with_added(tmp_path / "model", "ab", "bcd"), "abcd")
    assert found == [["a", "bcd"]]


def test_unused_tokens_are_never_produced(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", layers=1, vocabulary=SIZE + 2)
    assert "".join(agrees(folder, f"[PAD{SIZE}] [PAD{SIZE + 1}]")[0]) == f"[PAD{SIZE}]Ġ[PAD{SIZE + 1}]"


@pytest.mark.parametrize(
    "merges",
    [["zz y", "z zzz"], ["qq qq"], ["Ġ Ġtt"], ["t h"]],
    ids=["left and right", "both", "right", "result"],
)
def test_merges_of_or_into_unknown_tokens_in_a_gguf_file(merges: list[str], tmp_path: Path) -> None:
    """A checkpoint with such merges is refused; llama.cpp runs GGUF files with them."""
    folder = make_checkpoint(tmp_path / "model", layers=1)
    (file,) = convert(str(folder), type="Q8_0", output=folder)
    rewrite(Path(file.path), tmp_path / "odd.gguf", metadata={"tokenizer.ggml.merges": [*merges, *MERGES]})
    file_agrees(tmp_path / "odd.gguf", "then zzzzyyy qqqq in the  tt other")


def test_tokenizers_is_a_requirement() -> None:
    """A normal installation has only these packages."""
    root = Path(__file__).parents[3]
    imported = re.findall(
        r"^ +from (\w+) import", (root / "quantize" / "checkpoint" / "encode_text.py").read_text(), re.MULTILINE
    )
    required = tomllib.loads((root / "pyproject.toml").read_text())["project"]["dependencies"]
    assert set(imported) <= {re.split(r"\W", requirement)[0] for requirement in required}


@pytest.mark.parametrize("kinds", [{"<|user|>": True}, {"<|a|>": True, "<|a|>b": True, "b<|": False}], ids=str)
def test_special_and_added_tokens_together(kinds: dict[str, bool], tmp_path: Path) -> None:
    folder = with_added(tmp_path / "model", *kinds)
    decoder = {SIZE + at: {"content": text, "special": special} for at, (text, special) in enumerate(kinds.items())}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    agrees(folder, "x<|user|>the <|a|>b<|a|> <|a|>b<|", f"{END_OF_TEXT}<|a|>{END_OF_TEXT}b<|user|>")


@pytest.mark.parametrize("kind", ["added", "normal"])
def test_control_tokens_by_name(kind: str, tmp_path: Path) -> None:
    names = ["<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "</s>", "<PRE>"[:-1]]
    folder = with_added(tmp_path / "model", *names)
    if kind == "normal":  # in the vocabulary itself, not added
        ids = json.loads((folder / "vocab.json").read_text("utf-8"))
        write_json(folder / "vocab.json", ids | json.loads((folder / "added_tokens.json").read_text("utf-8")))
        (folder / "added_tokens.json").unlink()
    agrees(folder, "".join(f"{name}the in {name}" for name in names))
