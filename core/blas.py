"""NumPy's BLAS, held at one thread for each product.

A BLAS cuts products by the number of its threads and so rounds their sums differently. Its limit belongs to the process
(OpenBLAS with threads of its own, MKL) or to each thread (a BLAS on OpenMP), and other code may set it too: it is read
again after it was set, and in every thread that computes.
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
_before: list[tuple[Any, int]] = []  # each library with its own number of threads, while there are holders


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Inside, a product has one thread; after the last of several such blocks, as many as before the first.

    Raises `RuntimeFailure` where the limit has no effect. Logs a warning, once, for a BLAS that cannot be limited.
    """
    holder = object()
    try:
        with _lock:
            _holders.add(holder)
            if not _before:
                _before.extend((library, library.num_threads) for library in _libraries())
            limit_here()
        yield
    finally:
        with _lock:
            _holders.discard(holder)
            if not _holders:
                while _before:
                    library, threads = _before.pop()
                    _set_threads(library, threads)


def limit_here() -> None:
    """Limits the calling thread where the limit belongs to threads. Raises `RuntimeFailure` where it has no effect."""
    for library in _libraries():
        if library.num_threads != 1:
            _set_threads(library, 1)
        if (threads := library.num_threads) != 1:
            raise RuntimeFailure(
                f"NumPy's BLAS ({library.internal_api} {library.version}) stays at {threads} threads, "
                "and the bytes of a file must not depend on their number",
                "Set OPENBLAS_NUM_THREADS=1, MKL_NUM_THREADS=1 or OMP_NUM_THREADS=1 before the program starts.",
            )


def _set_threads(library: Any, threads: int) -> None:
    # since 3.8, threadpoolctl lets only one thread of the process set OpenBLAS, and ignores all others
    if hasattr(library, "clear_controlling_thread"):
        library.clear_controlling_thread(force=True)
    library.set_num_threads(threads)
    if hasattr(library, "clear_controlling_thread"):
        library.clear_controlling_thread(force=True)


@cache
def _libraries() -> list[Any]:
    """The BLAS libraries of the process, NumPy's among them: it is loaded before this is called."""
    import numpy as np

    found: list[Any] = ThreadpoolController().select(user_api="blas").lib_controllers
    if not found:
        name = np.show_config("dicts")["Build Dependencies"]["blas"]["name"]
        _log.warning(
            "NumPy's BLAS (%s) cannot be limited to one thread: a file's bytes may depend on the machine", name
        )
    return found
