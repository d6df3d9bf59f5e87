"""The importance matrix of a conversion, from each source; the one of generated text is cached."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.core.errors import ModelNotFoundError, UsageError
from dgpt2_quant.core.text import load_text
from dgpt2_quant.quantize.calibration import calibration
from dgpt2_quant.quantize.calibration import collect as calibrate
from dgpt2_quant.quantize.calibration.calibration import Calibration
from dgpt2_quant.quantize.calibration.collect import imatrix
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix, read_importance
from dgpt2_quant.quantize.checkpoint.source import ModelSource, open_model
from dgpt2_quant.quantize.convert import convert

from ...checkpoints import make_checkpoint

CONTEXT = 16


@pytest.fixture(autouse=True)
def _a_short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (calibrate, calibration):
        monkeypatch.setattr(module, "SAMPLED_TOKENS", 5 * CONTEXT - 3)


@pytest.fixture
def model(tmp_path: Path) -> Callable[..., ModelSource]:
    def open_it(name: str = "tiny", **options: Any) -> ModelSource:
        settings = {"layers": 1, "width": 32, "inner": 32, "context": CONTEXT} | options
        return open_model(str(make_checkpoint(tmp_path / name, **settings)))

    return open_it


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "calibration").glob("*"))


def collected(source: ModelSource) -> tuple[ImportanceMatrix, bool]:
    """The matrix, and whether it was collected now."""
    shown: list[str] = []
    found = Calibration(source, None, "sampled").collected(lambda done, total, what: shown.append(what))
    assert found
    return found, any("writes" in what for what in shown)


def test_generated_matrix_is_cached(model: Any, tmp_path: Path) -> None:
    source = model()
    first, is_new = collected(source)
    assert is_new
    assert (first.chunk_count, first.chunk_size, len(first.tokens)) == (5, CONTEXT, 5 * CONTEXT)
    (path,) = kept(tmp_path)
    assert path.name.startswith("tiny-")
    again, is_new = collected(model())
    assert not is_new
    assert again.sha256 == first.sha256 == read_importance(path).sha256


def test_cached_matrix_equals_imatrix(model: Any, tmp_path: Path) -> None:
    source = model()
    found, _ = collected(source)
    same = imatrix(str(tmp_path / "tiny"), text="sampled", output=tmp_path / "it.gguf")
    assert same.sha256 == found.sha256


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "folder", "other", "tokenless"])
def test_damaged_entry_is_replaced(damage: str, model: Any, tmp_path: Path) -> None:
    source = model()
    first, _ = collected(source)
    (path,) = kept(tmp_path)
    data = path.read_bytes()
    path.unlink()
    match damage:
        case "cut":
            path.write_bytes(data[: len(data) // 2])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("no GGUF")
        case "folder":
            path.mkdir()
        case "other":  # of another model, under this model's name
            make_checkpoint(tmp_path / "wider", layers=1, width=64, inner=32, context=CONTEXT)
            imatrix(str(tmp_path / "wider"), text="sampled", output=path)
        case _:
            matrix = read_importance(_written(tmp_path / "it.gguf", data))
            ImportanceMatrix(matrix.entries, ["x"], 5, CONTEXT).write(path)
    again, is_new = collected(source)
    assert is_new
    assert again.sha256 == first.sha256
    if damage != "folder":  # a folder is not removed
        assert path.read_bytes() == data
        assert collected(source)[1] is False


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def test_models_have_separate_entries(model: Any, tmp_path: Path) -> None:
    one, _ = collected(model("a/tiny"))
    other, is_new = collected(model("b/tiny", seed=1))
    assert is_new
    assert one.sha256 != other.sha256
    assert len(kept(tmp_path)) == 2
    assert collected(model("a/tiny"))[0].sha256 == one.sha256


def test_unwritable_cache_is_ignored(model: Any, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    assert collected(model())[1]


def test_outline_matches_the_collected_matrix(model: Any) -> None:
    both = Calibration(model(), None, "sampled")
    outline, found = both.outline(), both.collected()
    assert outline
    assert found
    assert set(outline.names) == found.entries.keys()
    hashed = {"dgpt2_quant.imatrix.sha256": found.sha256}
    assert {**outline.metadata, **hashed} == found.metadata()


def test_file_text_or_nothing(model: Any, tmp_path: Path) -> None:
    source = model()
    (tmp_path / "text.txt").write_text("0123456789" * 4)
    given = imatrix(str(tmp_path / "tiny"), text=tmp_path / "text.txt", output=tmp_path / "it.gguf")
    by_file = Calibration(source, tmp_path / "it.gguf", None)
    assert by_file.outline().metadata == by_file.collected().metadata() == given.metadata()  # type: ignore[union-attr]
    assert Calibration(source, None, load_text(tmp_path / "text.txt")).collected().sha256 == given.sha256  # type: ignore[union-attr]
    nothing = Calibration(source, None, None)
    assert nothing.outline() is nothing.collected() is None
    assert not kept(tmp_path)


def test_planning_reports_missing_inputs(model: Any, tmp_path: Path) -> None:
    source = model()
    with pytest.raises(ModelNotFoundError, match="there is no file"):
        Calibration(source, tmp_path / "gone.gguf", None).outline()
    (tmp_path / "short.txt").write_text("123")
    with pytest.raises(UsageError, match=r"short\.txt has 3 tokens"):
        Calibration(source, None, load_text(tmp_path / "short.txt")).outline()


def test_no_calibration_for_types_without_importance(model: Any, tmp_path: Path) -> None:
    model()
    (file,) = convert(str(tmp_path / "tiny"), type="F16", recipe="lean", output=tmp_path)
    assert file.recipe == "stock"
    assert not kept(tmp_path)
    files = convert(str(tmp_path / "tiny"), type=["F32", "Q4_0"], recipe="lean", output=tmp_path)
    assert [file.recipe for file in files] == ["stock", "lean"]
    assert len(kept(tmp_path)) == 1


def test_cached_and_new_matrix_give_equal_files(model: Any, tmp_path: Path) -> None:
    model()
    hashes = set()
    for name in ("one", "other"):
        (file,) = convert(str(tmp_path / "tiny"), type="Q4_0", recipe="lean", output=tmp_path / name)
        hashes.add(file.sha256)
    for path in kept(tmp_path):
        path.unlink()
    (file,) = convert(str(tmp_path / "tiny"), type="Q4_0", recipe="lean", calibrate="sampled", output=tmp_path)
    assert hashes == {file.sha256}
    assert np.unique(read_importance(kept(tmp_path)[0]).tokens).size > 20
