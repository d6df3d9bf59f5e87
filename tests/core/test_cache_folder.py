"""The cache: keys that depend on the code, listing, clearing and the size limit; other files stay."""

import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dgpt2_quant.core.cache_folder import cache_folder, cache_version, touch
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.sizes import parse_seconds
from dgpt2_quant.quantize.calibration import calibration
from dgpt2_quant.quantize.calibration import collect as calibrate
from dgpt2_quant.quantize.calibration.calibration import Calibration
from dgpt2_quant.quantize.checkpoint.source import open_model
from dgpt2_quant.quantize.store.cache_entries import cache_entries, clear_cache
from dgpt2_quant.quantize.store.conversion_lock import conversion_lock
from dgpt2_quant.quantize.store.converted_models import model_file, model_files, remembered_sha256

from ..checkpoints import make_checkpoint

DAY = 86_400.0


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "tiny", layers=1, width=32, inner=32)


def last_used(path: Path, days_ago: float) -> None:
    stamp = time.time() - days_ago * DAY
    os.utime(path, (stamp, stamp))


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


def test_changed_code_invalidates_entries(model: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    for package in ("core", "quantize"):
        shutil.copytree(root / package, tmp_path / "code" / "dgpt2_quant" / package)
    child = f"""
import sys
sys.path.insert(0, {str(tmp_path / "code")!r})
from dgpt2_quant.quantize.store import converted_models as store
assert store.__file__.startswith({str(tmp_path)!r})
print(store.model_file({str(model)!r}, type="q8_0")[1])
"""

    def made() -> str:
        done = subprocess.run([sys.executable, "-I", "-c", child], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    first = made()
    assert made() == first
    with (tmp_path / "code" / "dgpt2_quant" / "quantize" / "recipes" / "stock.py").open("a") as file:
        file.write("# a mistake less\n")
    assert made() != first


def test_every_entry_name_contains_the_code_version(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (calibrate, calibration):
        monkeypatch.setattr(module, "SAMPLED_TOKENS", 64)
    path = model_file(str(model), type="q8_0")[1]
    Calibration(open_model(str(model)), None, "sampled").collected()
    (kept,) = (cache_folder() / "calibration").iterdir()
    (memo,) = (cache_folder() / "sources").iterdir()
    for text in (str(path), kept.name, memo.read_text()):
        assert cache_version() in text
    assert len({cache_version(), cache_version("runtime"), cache_version("runtime", "bench")}) == 3
    # a hash written by other code is not used
    memo.write_text(memo.read_text().replace(cache_version(), "0.0.1").replace(remembered_sha256(model), "f" * 64))
    assert remembered_sha256(model) != "f" * 64


def test_list_of_entries(model: Path) -> None:
    before = time.time()
    files = model_files(str(model), types=["f16", "q8_0"]).files
    last_used(files[next(iter(files))], 40)
    converted = [entry for entry in cache_entries() if entry.kind == "converted"]
    assert [(e.model, e.type, e.path, e.bytes) for e in converted] == [
        ("tiny", kind.name, path, path.stat().st_size) for kind, path in reversed(files.items())
    ]
    assert before - 2 < converted[0].last_used
    assert converted[1].last_used == pytest.approx(time.time() - 40 * DAY, abs=60)
    assert [entry.kind for entry in cache_entries()][2:] == ["source hash"]


def test_use_changes_only_the_access_time(model: Path) -> None:
    _, path = model_file(str(model), type="q8_0")
    last_used(path, 40)
    changed = path.stat().st_mtime_ns
    model_file(str(model), type="q8_0")
    assert path.stat().st_mtime_ns == changed
    (entry,) = (e for e in cache_entries() if e.kind == "converted")
    assert entry.last_used > time.time() - 60
    touch(path.with_name("nowhere"))


def test_only_older_entries_are_removed(model: Path) -> None:
    old, new = (model_file(str(model), type=kind)[1] for kind in ("f16", "q8_0"))
    last_used(old, 31)
    would = clear_cache(30 * DAY, dry_run=True)
    assert old.exists()
    cleared = clear_cache(30 * DAY)
    assert [entry.path for entry in cleared.removed] == [entry.path for entry in would.removed] == [old]
    assert not old.exists()
    assert model_file(str(model), type="q8_0") == ("tiny", new)


def test_clearing_removes_only_cache_entries(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the cache is a home folder by mistake."""
    home = tmp_path / "home"
    monkeypatch.setenv("DGPT2_QUANT_CACHE", str(home))
    elsewhere = tmp_path / "elsewhere" / f"reference-{'0' * 32}.f32"
    mine = [
        "models/mine.gguf",
        "models/tiny/stock-1/tiny.F16.gguf",
        f"models/tiny-{'0' * 16}/stock-1/notes.txt",
        f"models/tiny-{'0' * 16}/stock-1/other.F16.gguf",
        f"models/tiny-{'0' * 16}/stock-1/tiny.BEST.gguf",
        "datasets/20241103-measured.csv",
        "calibration/camera-2024.gguf",
        "effects/echo.json",
        "sources/index.json",
        "thesis.txt",
    ]
    for name in mine:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("mine")
    elsewhere.parent.mkdir()
    elsewhere.write_text("mine")
    (home / "reference").symlink_to(elsewhere.parent)  # a folder, and in it a file link to the outside
    (home / "times").mkdir()
    (home / "times" / f"{'0' * 32}.json").symlink_to(elsewhere)
    (elsewhere.parent / f"{'0' * 32}.f32").write_text("mine")
    before = everything(home)
    _, path = model_file(str(model), type="q8_0")
    assert {entry.kind for entry in cache_entries()} == {"converted", "source hash"}
    (path.parent / f".{path.name}.0123456789ab.part").write_text("left by a kill")
    cleared = clear_cache()
    assert not cleared.busy
    assert everything(home) == before
    assert not path.parent.parent.exists()
    assert sorted(elsewhere.parent.iterdir()) == [elsewhere.parent / f"{'0' * 32}.f32", elsewhere]
    assert cache_entries() == []
    assert model_file(str(model), type="q8_0")[1].is_file()


def test_entry_being_written_is_not_removed(model: Path) -> None:
    _, path = model_file(str(model), type="q8_0")
    with conversion_lock(path.parent, "tiny to F16"):
        cleared = clear_cache()
        assert cleared.busy == [path.parent]
        assert path.is_file()
    assert path in [entry.path for entry in clear_cache().removed]


def test_size_limit_removes_the_least_recently_used(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from dgpt2_quant.quantize.store import converted_models as store

    first, second = (model_file(str(model), type=kind)[1] for kind in ("q4_0", "q8_0"))
    last_used(first, 2)
    last_used(second, 1)
    model_file(str(model), type="q4_0")  # so the other one is removed
    monkeypatch.setenv("DGPT2_QUANT_CACHE_LIMIT", str(first.stat().st_size + second.stat().st_size))
    monkeypatch.setattr(store, "_in_use", set())  # as in another process
    with caplog.at_level(logging.WARNING):
        _, third = model_file(str(model), type="q5_0")
    assert [path.exists() for path in (first, second, third)] == [True, False, True]
    (said,) = caplog.messages
    assert second.name in said
    assert "DGPT2_QUANT_CACHE_LIMIT" in said


def test_size_limit_keeps_entries_in_use(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGPT2_QUANT_CACHE_LIMIT", "1")
    _, first = model_file(str(model), type="q8_0")
    more = model_files(str(model), types=["q4_0", "q5_0"]).files
    assert all(path.is_file() for path in (first, *more.values()))


@pytest.mark.parametrize("limit", ["much", "-1", "10 apples"])
def test_invalid_limit_is_refused(limit: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DGPT2_QUANT_CACHE_LIMIT", limit)
    with pytest.raises(UsageError, match=f"DGPT2_QUANT_CACHE_LIMIT must be a size, not '{limit}'"):
        model_file(str(model), type="q8_0")


def test_entry_ages() -> None:
    assert [parse_seconds(text) for text in ("30d", "12h", "1.5H", "2 w", "90min", "5m", "10s")] == [
        30 * DAY,
        43_200,
        5_400,
        14 * DAY,
        5_400,
        300,
        10,
    ]
    for text in ("", "30", "d", "-1d", "1y", "1e3d", "nan d"):
        with pytest.raises(UsageError, match="not an amount of time"):
            parse_seconds(text)
