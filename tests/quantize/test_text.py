"""The text that levels are compared on: bundled by name, or a file."""

import hashlib
from pathlib import Path

import pytest
from dgpt2_quant.quantize.errors import ModelNotFoundError, UsageError
from dgpt2_quant.quantize.text import load_text


@pytest.mark.parametrize("name", ["evaluation", "calibration"])
def test_bundled(name: str) -> None:
    found = load_text(name)
    assert found.name == name
    assert len(found.text) > 10_000
    assert found.sha256 == hashlib.sha256(found.text.encode()).hexdigest()


def test_the_bundled_texts_have_nothing_in_common() -> None:
    lines = [{line for line in load_text(name).text.splitlines() if line} for name in ("evaluation", "calibration")]
    assert not lines[0] & lines[1]


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "tale.txt"
    file.write_bytes("Es war einmal…\r\n".encode())
    found = load_text(file)
    assert (found.name, found.text) == ("tale.txt", "Es war einmal…\r\n")
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert load_text(str(file)) == found


def test_a_file_comes_before_a_bundled_text_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evaluation").write_text("mine")
    assert load_text("evaluation").text == "mine"


@pytest.mark.parametrize("name", ["absent.txt", "."])
def test_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no text") as caught:
        load_text(tmp_path / name)
    assert "evaluation, calibration" in caught.value.hint


def test_not_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes("Es wär einmal".encode("latin-1"))
    with pytest.raises(UsageError, match=r"latin\.txt is not UTF-8: .* position 4"):
        load_text(file)
