"""Parallel computation gives the same results as sequential computation."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from dgpt2_quant.core import parallel
from dgpt2_quant.core.parallel import by_rows, calculating, evenly, in_parallel, mean_of, pieces
from dgpt2_quant.quantize.convert import convert

from ..checkpoints import make_checkpoint


def test_results_are_in_order() -> None:
    meeting = threading.Barrier(3, timeout=20)

    def slow(number: int) -> tuple[int, int]:
        if number < 3:
            meeting.wait()  # all three run at once
        return number, threading.get_ident()

    with calculating(3):
        found = list(in_parallel(slow, range(9)))
    assert [number for number, _ in found] == list(range(9))
    assert len({thread for _, thread in found}) == 3


def test_nested_and_outside_calls_use_one_thread() -> None:
    def threads(_: object) -> set[int]:
        return {threading.get_ident(), *in_parallel(lambda _: threading.get_ident(), "abc")}

    assert threads(0) == {threading.get_ident()}
    with calculating(2):
        assert all(len(found) == 1 for found in in_parallel(threads, range(4)))


def test_error_is_raised_and_drops_waiting_jobs() -> None:
    begun = []

    def fail(number: int) -> None:
        begun.append(number)
        if number == 0:
            raise ValueError("number 0")
        time.sleep(0.02)

    with pytest.raises(ValueError, match="number 0"), calculating(1):
        list(in_parallel(fail, range(100)))
    assert len(begun) < 20


def test_rows_are_split_independently_of_threads() -> None:
    assert pieces(5, 2) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert pieces(0) == []
    x = np.random.default_rng(1).normal(size=(7, 3))
    seen: list[int] = []

    def doubled(part: np.ndarray) -> np.ndarray:
        seen.append(len(part))
        return 2 * part[:, :2]

    assert np.array_equal(by_rows(doubled, x, 2, size=3), (2 * x[:, :2]).astype(np.float32))
    assert sorted(seen) == [1, 3, 3]
    assert by_rows(np.negative, x, 3, out=x) is x


def test_evenly_sized_slices() -> None:
    assert evenly(28, 20) == [slice(0, 14), slice(14, 28)]
    assert evenly(40, 20) == [slice(0, 20), slice(20, 40)]
    assert evenly(5, 128) == [slice(0, 5)]
    assert evenly(7, 3) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert evenly(0, 3) == []


def test_mean_of_partial_sums() -> None:
    parts = [[np.full(2, 1.0), np.full((1, 1), 3.0)], [np.full(2, 2.0), np.full((1, 1), 5.0)]]
    first, second = mean_of(iter(parts), 4)
    assert first.tolist() == [0.75, 0.75]
    assert second.tolist() == [[2.0]]


def test_thread_count_does_not_change_bytes(tmp_path: Path) -> None:
    """Large enough that a BLAS would split its products by its thread count."""
    model = make_checkpoint(tmp_path / "m", layers=1, width=128, inner=512, context=128)
    made = [
        convert(str(model), type="q4_0", recipe="lean", output=tmp_path / f"{threads}.gguf", threads=threads)[0]
        for threads in (1, 3)
    ]
    assert len({file.sha256 for file in made}) == 1


def test_conversion_uses_the_given_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int | None] = []

    def counted(threads: int | None) -> int:
        asked.append(threads)
        return threads or 7

    monkeypatch.setattr(parallel, "threads_or_all", counted)
    model = make_checkpoint(tmp_path / "m", layers=1, width=64, inner=64, context=32)
    convert(str(model), type="q4_0", recipe="lean", output=tmp_path / "a.gguf", threads=1)
    convert(str(model), target_bpw=6, output=tmp_path / "b.gguf", threads=1)
    assert set(asked) == {1}
