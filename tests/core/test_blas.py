"""NumPy's BLAS is limited to one thread while files are computed, and restored afterwards."""

import logging
import threading
from collections.abc import Iterator

import pytest
from dgpt2_quant.core import blas
from dgpt2_quant.core.errors import RuntimeFailure
from dgpt2_quant.core.parallel import calculating, in_parallel
from threadpoolctl import ThreadpoolController, threadpool_info, threadpool_limits


def blas_threads(_: object = None) -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture(autouse=True)
def three() -> Iterator[None]:
    """The thread counts of the BLAS libraries."""
    with threadpool_limits(3, user_api="blas"):
        yield
        assert blas_threads() == {3}


def test_limit_is_set_and_restored() -> None:
    with calculating(2):
        assert blas_threads() == {1}
        with calculating(5):
            assert blas_threads() == {1}
        assert blas_threads() == {1}
        assert set().union(*in_parallel(blas_threads, range(4))) == {1}
    assert blas_threads() == {3}


def test_overlapping_blocks_share_the_limit() -> None:
    """The first to begin ends first: the other keeps the limit, and the last restores it."""
    inside, go_on = threading.Event(), threading.Event()
    found: list[set[int]] = []

    def other() -> None:
        with calculating(1):
            inside.set()
            assert go_on.wait(20)
            found.extend(in_parallel(blas_threads, range(3)))

    thread = threading.Thread(target=other)
    with calculating(1):
        thread.start()
        assert inside.wait(20)
    assert blas_threads() == {1}
    go_on.set()
    thread.join(20)
    assert found == [{1}] * 3
    assert blas_threads() == {3}


def test_limit_of_another_thread_is_overridden() -> None:
    """threadpoolctl lets only the first thread that did so set OpenBLAS."""
    inside, go_on = threading.Event(), threading.Event()

    def other() -> None:
        with threadpool_limits(2, user_api="blas"):
            inside.set()
            assert go_on.wait(20)

    with threadpool_limits(None):  # ends this thread's own control
        pass
    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(20)
    before = blas_threads()
    with calculating(2):
        assert blas_threads() == {1}
        assert [*in_parallel(blas_threads, range(3))] == [{1}] * 3
    assert blas_threads() == before
    go_on.set()
    thread.join(20)


def test_change_inside_the_block_is_overridden() -> None:
    with calculating(2):
        with threadpool_limits(2, user_api="blas"):
            assert [*in_parallel(blas_threads, range(3))] == [{1}] * 3
        assert [*in_parallel(blas_threads, range(3))] == [{1}] * 3


class Deaf:
    """A BLAS that ignores its limit."""

    internal_api, version, num_threads = "deaf", "1.0", 4

    def set_num_threads(self, threads: int) -> None:
        pass


def test_ineffective_limit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_libraries", lambda: [Deaf()])
    with pytest.raises(RuntimeFailure, match=r"BLAS \(deaf 1.0\) still uses 4 threads") as caught, calculating(1):
        pass
    assert "OPENBLAS_NUM_THREADS=1" in caught.value.hint


def test_unknown_blas_is_warned_about_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    blas._libraries.cache_clear()
    monkeypatch.setattr(ThreadpoolController, "select", lambda *_, **__: ThreadpoolController._from_controllers([]))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with calculating(1):
                assert [*in_parallel(abs, [-1])] == [1]
    blas._libraries.cache_clear()
    (message,) = [record.getMessage() for record in caplog.records]
    assert "cannot be limited to one thread" in message
