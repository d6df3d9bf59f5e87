"""Names of the files of a benchmark."""

import shutil
from pathlib import Path

import gguf
import pytest
from dgpt2_quant.bench.document.files import read_files
from dgpt2_quant.core.errors import GGUFError, UsageError


def foreign(path: Path, file_type: int | None = None) -> Path:
    """A file of another program, without a recipe."""
    writer = gguf.GGUFWriter(path, "gpt2")
    if file_type is not None:
        writer.add_file_type(file_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def names(*files: Path) -> list[str]:
    return [level.name for level in read_files(files)]


def test_named_by_type_for_recipe_stock(storybook_files: dict[str, Path]) -> None:
    assert names(storybook_files["Q4_0"], storybook_files["Q8_0"]) == ["Q4_0", "Q8_0"]


def test_named_by_file_if_the_name_is_taken(storybook_files: dict[str, Path], tmp_path: Path) -> None:
    mine = Path(shutil.copy(storybook_files["Q4_0"], tmp_path / "mine.gguf"))
    own = storybook_files["Q4_0"]
    assert names(own, mine, storybook_files["Q8_0"]) == ["Q4_0", "Q4_0 mine.gguf", "Q8_0"]
    assert names(mine, own) == ["Q4_0", f"Q4_0 {own.name}"]


def test_named_by_file_without_a_recipe(tmp_path: Path) -> None:
    assert names(foreign(tmp_path / "theirs.gguf", 2)) == ["Q4_0 theirs.gguf"]
    assert names(foreign(tmp_path / "old.gguf")) == ["old old.gguf"]


def test_named_by_path_if_the_file_name_is_taken(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files = [foreign(folder / "theirs.gguf", 2) for folder in (tmp_path, tmp_path / "other")]
    assert names(*files) == ["Q4_0 theirs.gguf", f"Q4_0 {files[1]}"]


def test_a_file_named_twice_is_refused(tmp_path: Path) -> None:
    path = foreign(tmp_path / "theirs.gguf", 2)
    with pytest.raises(UsageError, match=r"theirs\.gguf is named twice"):
        read_files([path, path])


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"text")
    with pytest.raises(GGUFError, match=r"no\.gguf"):
        read_files([tmp_path / "no.gguf"])
