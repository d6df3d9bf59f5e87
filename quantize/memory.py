"""Memory for large arrays, kept from one for the next.

glibc maps each block of more than 32 MiB anew and gives it back when it is freed; of others, what lies at the end of
its heap. A computation that goes through hundreds of large arrays then spends a tenth of its time in the kernel, which
has to find and to clear every page again (mallopt(3): M_MMAP_MAX, M_TRIM_THRESHOLD).
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8  # malloc.h
_USUAL = {_MMAP_MAX: 65_536, _TRIM_THRESHOLD: 1 << 27, _MMAP_THRESHOLD: 1 << 25, _ARENA_MAX: 0}
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: (1 << 31) - 1, _ARENA_MAX: 1}


@contextmanager
def memory_kept() -> Iterator[None]:
    """Inside, freed memory stays with the process; afterwards what is free of it goes back. Only with glibc."""
    process = ctypes.CDLL(None)
    if not (hasattr(process, "mallopt") and hasattr(process, "malloc_trim")):
        yield
        return
    for option, value in _KEEPING.items():
        process.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in _USUAL.items():
            process.mallopt(option, value)
        process.malloc_trim(ctypes.c_size_t(0))
