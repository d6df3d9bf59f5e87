"""Scratch on disk: what an interrupted conversion leaves, who may use it, and when it is removed."""

import hashlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.core.errors import OutputError
from dgpt2_quant.quantize.calibration.collect import imatrix
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix
from dgpt2_quant.quantize.checkpoint.source import open_model
from dgpt2_quant.quantize.lean import scratch as module
from dgpt2_quant.quantize.lean.scratch import Files, scratch
from dgpt2_quant.quantize.store.cache_entries import cache_entries, clear_cache

from ...checkpoints import make_checkpoint

SOURCE = open_model("storybook")
ONE, OTHER = (ImportanceMatrix({}, [name], 0, 0) for name in ("one", "other"))
DAY = 86_400


def interrupted(importance: ImportanceMatrix = ONE, **arrays: Any) -> None:
    with pytest.raises(KeyboardInterrupt), scratch(SOURCE, importance) as new_store:  # noqa: PT012
        new_store("a").update({name: np.asarray(array) for name, array in arrays.items()})
        raise KeyboardInterrupt


def found(importance: ImportanceMatrix = ONE, part: str = "a") -> dict[str, Any]:
    """What the next conversion finds, before it is interrupted too."""
    kept: dict[str, Any] = {}
    with pytest.raises(KeyboardInterrupt), scratch(SOURCE, importance) as new_store:  # noqa: PT012
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
    with scratch(SOURCE, ONE) as new_store:
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
    with scratch(SOURCE, ONE) as held:
        with scratch(SOURCE, ONE) as other:
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
    with scratch(SOURCE, ImportanceMatrix({}, ["third"], 0, 0)):
        pass
    assert [entry.path for entry in cache_entries()] == [new]


def test_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DGPT2_QUANT_CACHE", str(tmp_path / "file"))
    with scratch(SOURCE, ONE) as new_store:
        assert new_store("a") == {}
    assert "cannot be written (Not a directory): an interruption would lose all work" in caplog.text


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with scratch(SOURCE, ONE) as new_store:
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


# Converts, and ends like a power cut at the step whose number is given; prints the steps.
CHILD = """
import os, sys
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.lean import fisher, scratch
fisher.KEPT_BYTES = scratch.SAVE_EVERY = 0  # as a large model, which takes long
model, importance, output, last = sys.argv[1:]
steps = []

def progress(done, total, what):
    steps.append(what)
    print(what, flush=True)
    if len(steps) == int(last):
        os.kill(os.getpid(), 9)

convert(model, type=["q4_0", "q5_0"], recipe="lean", imatrix=importance, output=output, progress=progress)
"""


def test_a_killed_conversion_continues_with_the_same_bytes(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "tiny", layers=3, width=64, inner=64, context=32)
    imatrix(str(model), text="sampled", chunks=24, output=tmp_path / "it.gguf")
    arguments = [str(model), str(tmp_path / "it.gguf"), str(tmp_path / "out")]

    def run(last: int) -> list[str]:
        """The steps that compute."""
        command = [sys.executable, "-c", CHILD, *arguments, str(last)]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
        assert child.returncode == (-9 if last else 0), child.stderr
        steps = child.stdout.split("\n")
        return [step for step in steps if step == "gradients" or re.fullmatch(r"blk\.\d\.\w+", step)]

    whole = run(0)
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "out").iterdir()}
    assert not cache_entries()
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    # twice in the gradients, twice in the first file, and in the second after the first, which has 38 tensors
    for last in (4, 4, 9, 5, 38 + 20, 38 + 4):
        run(last)
        assert list((tmp_path / "out").iterdir()) == []
    rest = run(0)
    assert {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / "out").iterdir()} == hashes
    assert whole.count("gradients") == whole.index("blk.0.attn_qkv") == 12
    assert 0 < len(rest) < 12  # of the second file's matrices
    assert rest == whole[-len(rest) :]
    assert not cache_entries()
