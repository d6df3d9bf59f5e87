"""Scratch on disk: what an interrupted conversion leaves, who may use it, and when it is removed."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.core import scratch as module
from dgpt2_quant.core.errors import OutputError
from dgpt2_quant.core.scratch import Files, scratch
from dgpt2_quant.quantize.store.cache_entries import cache_entries, clear_cache

MODEL, ONE, OTHER = "storybook", "0" * 64, "1" * 64
DAY = 86_400


def interrupted(sha256: str = ONE, **arrays: Any) -> None:
    with pytest.raises(KeyboardInterrupt), scratch(MODEL, sha256) as new_store:  # noqa: PT012
        new_store("a").update({name: np.asarray(array) for name, array in arrays.items()})
        raise KeyboardInterrupt


def found(sha256: str = ONE, part: str = "a") -> dict[str, Any]:
    """What the next conversion finds, before it is interrupted too."""
    kept: dict[str, Any] = {}
    with pytest.raises(KeyboardInterrupt), scratch(MODEL, sha256) as new_store:  # noqa: PT012
        kept = {name: array.tolist() for name, array in new_store(part).items()}
        raise KeyboardInterrupt
    return kept


def test_arrays_keep_type_and_shape(tmp_path: Path) -> None:
    store = Files(tmp_path, "it")
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3).T, np.array([7], np.int64), np.zeros((2, 0), np.uint8)]
    for number, array in enumerate(arrays):
        store[str(number)] = array
        again = Files(tmp_path, "it")[str(number)]
        assert (again.dtype, again.shape) == (array.dtype, array.shape)
        assert np.array_equal(again, array)
        again += 1  # it is the caller's own
    assert sorted(store) == ["0", "1", "2"]
    del store["1"]
    assert len(store) == len(Files(tmp_path, "it")) == 2
    assert "1" not in store
    assert Files(tmp_path, "i") == {}
    with pytest.raises(KeyError):
        _ = store["1"]


def test_only_the_same_conversion_continues_and_success_removes_all() -> None:
    interrupted(x=[1, 2], y=[3])
    assert found() == {"x": [1, 2], "y": [3]}
    assert found(part="b") == found(OTHER) == {}
    with scratch(MODEL, ONE) as new_store:
        assert sorted(new_store("a")) == ["x", "y"]
    assert found() == {}


def test_damaged_files_are_not_used() -> None:
    """As after a power cut."""
    interrupted(cut=[1, 2], changed=[3], empty=[4], whole=[5])
    (entry,) = cache_entries()
    files = {path.suffixes[-2]: path for path in entry.path.iterdir()}
    files[".cut"].write_bytes(files[".cut"].read_bytes()[:-1])
    files[".changed"].write_bytes(files[".changed"].read_bytes()[:-1] + b"x")
    files[".empty"].write_bytes(b"")
    assert found() == {"whole": [5]}


def test_a_conversion_at_the_same_time_uses_another_folder() -> None:
    interrupted(x=[1])
    with scratch(MODEL, ONE) as held:
        with scratch(MODEL, ONE) as other:
            assert list(other("a")) == []
            other("a")["y"] = np.zeros(1)
            cleared = clear_cache()
            assert len(cleared.busy) == 2
            assert not cleared.removed
        assert list(held("a")) == ["x"]


def test_the_cache_lists_and_clears_it() -> None:
    interrupted(x=[1, 2])
    (entry,) = cache_entries()
    assert (entry.kind, entry.model) == ("unfinished conversion", "storybook")
    assert entry.bytes == sum(path.stat().st_size for path in entry.path.iterdir()) > 16
    (entry.path / "mine.txt").write_text("")
    assert clear_cache(older_than=DAY).removed == []
    assert [removed.path for removed in clear_cache().removed] == [entry.path]
    assert [path.name for path in entry.path.iterdir()] == ["mine.txt"]


def test_stale_scratch_is_removed_by_the_next_conversion() -> None:
    interrupted(x=[1])
    interrupted(OTHER, x=[2])
    old, new = sorted((entry.path for entry in cache_entries()), key=lambda path: path.stat().st_mtime)
    os.utime(old, (stamp := time.time() - 8 * DAY, stamp))
    with scratch(MODEL, "2" * 64):
        pass
    assert [entry.path for entry in cache_entries()] == [new]


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DGPT2_QUANT_CACHE", str(tmp_path / "file"))
    with scratch(MODEL, ONE) as new_store:
        assert new_store("a") == {}
    assert "cannot be written (Not a directory): an interruption would lose all work" in caplog.text


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with scratch(MODEL, ONE) as new_store:
        store = new_store("a")
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        try:
            with pytest.raises(OutputError, match=r"cannot write .*x\.array") as caught:
                store["x"] = np.zeros(20_000)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "DGPT2_QUANT_CACHE" in caught.value.hint
        assert not list(store)


def test_states_are_saved_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    is_due, answers = module.Rarely(), []
    for now in (1.0, 19.0, 20.0, 21.0, 40.0):  # noqa: B007
        answers.append(is_due())
    assert answers == [False, False, True, False, True]
