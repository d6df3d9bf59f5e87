"""Forks: llama.cpp's OpenMP threads do not survive one, and a child would wait for them for ever.

libgomp keeps a pool of threads for each thread that has computed in parallel. Before a fork, the forking thread
releases its pool (`omp_pause_resource_all`, OpenMP 5.0); the next decode creates a new one, in parent and child.
A fork that Python does not see, such as one by a server in C, cannot be prepared; the child then gets an error.
"""

import os
from typing import Any

from dgpt2_quant.core.errors import RuntimeFailure

_HARD = 2  # omp_pause_hard (omp.h)
_prepared_in: set[int] = set()  # the process in which the library can decode


def survive_forks(library: Any) -> None:
    """Prepares this process for forks. Called once, after llama.cpp is loaded."""
    _prepared_in.add(os.getpid())
    pause = getattr(library, "omp_pause_resource_all", None)
    if pause is None and hasattr(library, "GOMP_parallel"):
        return  # an OpenMP before 5.0
    if pause is not None:
        os.register_at_fork(before=lambda: pause(_HARD))
    os.register_at_fork(after_in_child=lambda: _prepared_in.add(os.getpid()))


def check_fork() -> None:
    """Raises `RuntimeFailure` in a child in which decoding would hang."""
    if _prepared_in and os.getpid() not in _prepared_in:
        raise RuntimeFailure(
            "this process was forked from one that had loaded llama.cpp, whose threads do not survive a fork",
            "Start worker processes with `spawn` or `forkserver`, or load the first model after the fork.",
        )
