"""Limits NumPy's BLAS to one thread per product.

A BLAS splits products by its thread count, so the rounding of sums depends on it. The limit is per process (OpenBLAS
with its own threads, MKL) or per thread (a BLAS on OpenMP), and other code can change it. So the value is read back
after it is set, and in every computing thread.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

from .errors import RuntimeFailure

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_holders: set[object] = set()
_before: list[tuple[Any, int]] = []  # each library and its original thread count, while there are holders


@contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Limits products to one thread inside the block; the last of nested blocks restores the original counts.

    Raises `RuntimeFailure` if the limit has no effect. Logs one warning for a BLAS that cannot be limited.
    """
    holder = object()
    try:
        with _lock:
            _holders.add(holder)
            if not _before:
                _before.extend((library, library.num_threads) for library in _libraries())
            limit_this_thread()
        yield
    finally:
        with _lock:
            _holders.discard(holder)
            if not _holders:
                while _before:
                    library, threads = _before.pop()
                    _set_threads(library, threads)


def limit_this_thread() -> None:
    """Limits the calling thread where the limit is per thread. Raises `RuntimeFailure` if it has no effect."""
    for library in _libraries():
        if library.num_threads != 1:
            _set_threads(library, 1)
        if (threads := library.num_threads) != 1:
            raise RuntimeFailure(
                f"NumPy's BLAS ({library.internal_api} {library.version}) still uses {threads} threads; "
                "it must use 1, so that files do not depend on the thread count",
                "Set OPENBLAS_NUM_THREADS=1, MKL_NUM_THREADS=1 or OMP_NUM_THREADS=1 before the program starts.",
            )


def _set_threads(library: Any, threads: int) -> None:
    # threadpoolctl 3.8 and later lets one thread of the process set OpenBLAS, and ignores all others
    if hasattr(library, "clear_controlling_thread"):
        library.clear_controlling_thread(force=True)
    library.set_num_threads(threads)
    if hasattr(library, "clear_controlling_thread"):
        library.clear_controlling_thread(force=True)


@cache
def _libraries() -> list[Any]:
    """The BLAS libraries of the process; NumPy is imported first, so its BLAS is included."""
    import numpy as np

    found: list[Any] = ThreadpoolController().select(user_api="blas").lib_controllers
    if not found:
        name = np.show_config("dicts")["Build Dependencies"]["blas"]["name"]
        _log.warning(
            "NumPy's BLAS (%s) cannot be limited to one thread: the bytes of files may depend on the machine", name
        )
    return found
