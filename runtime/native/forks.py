"""Forked processes: llama.cpp's OpenMP threads do not survive a fork, and a child would wait for them for ever.

libgomp keeps a pool of threads for each thread that has computed in parallel. So before a fork the forking thread gives
its pool up (`omp_pause_resource_all`, OpenMP 5.0); its next decode makes another one, in the parent and in the child.
A fork that Python does not see, by a server in C, cannot be prepared; there a child is refused.
"""

import os
from typing import Any

from dgpt2_quant.core.errors import RuntimeFailure

_HARD = 2  # omp_pause_hard (omp.h)
_prepared_in: set[int] = set()  # the process in which the library can decode


def survive_forks(library: Any) -> None:
    """Called once, when llama.cpp has been loaded."""
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
            "this process was forked from one that had loaded llama.cpp, and its threads did not survive that",
            "Start worker processes by `spawn` or `forkserver`, or load the first model after the fork.",
        )
