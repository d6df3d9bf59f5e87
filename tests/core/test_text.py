"""Loading texts: bundled ones by name, or an input, with notes on changes."""

import gzip
import hashlib
from pathlib import Path

import pytest
from dgpt2_quant.core.errors import ModelNotFoundError, UsageError
from dgpt2_quant.core.text import NamedText, load_text
from dgpt2_quant.quantize.checkpoint.encode_text import special_note

TALE = "Es war einmal…\nein König.\n"


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.mark.parametrize("name", ["evaluation", "calibration"])
def test_bundled_text(name: str) -> None:
    found = load_text(name)
    assert found.name == name
    assert len(found.text) > 10_000
    assert found.sha256 == hashlib.sha256(found.text.encode()).hexdigest()
    assert found.notes == ()


def test_bundled_texts_do_not_overlap() -> None:
    lines = [{line for line in load_text(name).text.splitlines() if line} for name in ("evaluation", "calibration")]
    assert not lines[0] & lines[1]


def test_text_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tale.txt"
    file.write_bytes(TALE.encode())
    found = load_text(file)
    assert found == NamedText("tale.txt", hashlib.sha256(TALE.encode()).hexdigest(), TALE)
    assert load_text(str(file)) == found
    assert load_text(found) is found


def test_tilde_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "tale.txt").write_text(TALE, "utf-8")
    assert load_text("~/tale.txt").text == TALE


def test_file_takes_precedence_over_a_bundled_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evaluation").write_text("mine")
    assert load_text("evaluation").text == "mine"


def test_crlf_is_read_as_lf_with_a_note(tmp_path: Path, notes: list[str]) -> None:
    content = TALE.replace("\n", "\r\n").encode()
    (tmp_path / "tale.txt").write_bytes(content)
    found = load_text(tmp_path / "tale.txt", announce=notes.append)
    assert found.text == TALE
    assert found.sha256 == hashlib.sha256(content).hexdigest()  # as sha256sum prints it
    assert list(found.notes) == notes == ["tale.txt: 2 CRLF line ends, read as LF"]
    kept = load_text(tmp_path / "tale.txt", keep_crlf=True)
    assert kept.text.encode() == content
    assert kept.notes == ("tale.txt: 2 CRLF line ends, kept",)


def test_lone_carriage_returns_are_kept_with_a_note(tmp_path: Path) -> None:
    (tmp_path / "tale.txt").write_bytes(b"one\rtwo\r\n")
    found = load_text(tmp_path / "tale.txt")
    assert found.text == "one\rtwo\n"
    assert "1 carriage return without" in found.notes[1]


def test_byte_order_mark_is_dropped(tmp_path: Path, notes: list[str]) -> None:
    (tmp_path / "tale.txt").write_text(TALE, "utf-8-sig")
    found = load_text(tmp_path / "tale.txt", announce=notes.append)
    assert found.text == TALE
    assert notes == ["tale.txt: byte order mark dropped"]


def test_note_on_special_tokens() -> None:
    tokens, types = ["a", "<|endoftext|>", "<pad>"], [1, 3, 3]
    text = NamedText("tale.txt", "", "a<|endoftext|>a<|endoftext|>")
    assert special_note(text, tokens, types) == (
        "tale.txt: 2 special tokens (<|endoftext|>), read as tokens, as by Transformers;"
        " llama-perplexity reads them as letters"
    )
    letters = NamedText("tale.txt", "", text.text, parse_special=False)
    assert "read as letters" in str(special_note(letters, tokens, types))
    assert special_note(NamedText("tale.txt", "", "aa"), tokens, types) is None


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no text .*absent") as caught:
        load_text(tmp_path / "absent.txt")
    assert "evaluation, calibration" in caught.value.hint
    with pytest.raises(ModelNotFoundError, match=r"cannot read the text .*: Is a directory"):
        load_text(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Es\nwär einmal".encode("latin-1"), r"tale\.txt is not UTF-8: line 2, byte 0xe4 at offset 4"),
        (TALE.encode("utf-16"), r"tale\.txt is UTF-16, not UTF-8"),
        (TALE.encode("utf-32"), r"tale\.txt is UTF-32, not UTF-8"),
        (b"GGUF\3\0\0\0", r"tale\.txt is a GGUF file"),
        (b"Es war\0einmal", r"tale\.txt is binary \(NUL byte at offset 6\)"),
        (gzip.compress(b"Es war\0einmal", mtime=0), r"tale\.txt is binary \(NUL byte at offset 6\)"),
        (b"\xfd7zXZ\0\0\4", r"tale\.txt is packed by xz"),
        (b"", r"the text tale\.txt is empty"),
        (gzip.compress(b"", mtime=0), r"the text tale\.txt is empty"),
        (b"\xef\xbb\xbf", r"the text tale\.txt is empty"),
        (gzip.compress(TALE.encode(), mtime=0)[:-9], r"tale\.txt is a broken gzip file"),
        (gzip.compress(TALE.encode(), mtime=0)[:5], r"tale\.txt is a broken gzip file"),
        (b"\x1f\x8bnothing", r"tale\.txt is a broken gzip file"),
    ],
)
def test_binary_input_is_refused_by_kind(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "tale.txt").write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        load_text(tmp_path / "tale.txt")
    assert caught.value.hint
    assert "ownload" not in caught.value.hint
