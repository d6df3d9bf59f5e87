"""Huge pages for the memory that C allocates, and its return to the system when it is freed.

This is the only file that touches `madvise` and `malloc_trim`.

Each token reads all weights: for DistilGPT2 at four bits 14,000 pages of 4 KiB, more than a processor's TLB holds, and
it prefetches only within a page. With pages of 2 MiB decoding is faster (measured in docs/performance.md), but C's
allocator does not request them.
"""

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

LARGE = 8 << 20  # bytes of weights; fewer fit the TLB, and the request takes milliseconds
_MAPS = Path("/proc/self/maps")
_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_BUFFERS = (b"model buffer size", b"KV buffer size")  # not "compute", most of which is never touched
_MADV_HUGEPAGE = 14  # include/uapi/asm-generic/mman-common.h


class _Thread(threading.local):
    known: set[int] | None = None


_thread = _Thread()


@contextmanager
def huge_pages_for_new_memory() -> Iterator[None]:
    """In the block, `ask_for_huge_pages` applies to memory allocated since its start."""
    _thread.known = _blocks()
    try:
        yield
    finally:
        _thread.known = None


def ask_for_huge_pages(logged: bytes) -> None:
    """Requests huge pages for the memory allocated in this thread's block, when llama.cpp logs a new buffer.

    The message comes before the buffer is filled; pages that are filled are not converted.
    """
    if _thread.known is None or not any(buffer in logged for buffer in _BUFFERS):
        return
    new = sorted(_blocks() - _thread.known)
    for address in new:
        # it may include memory of other threads, which is harmless, also after it is freed
        _libc().madvise(address, _huge_page_bytes(), _MADV_HUGEPAGE)
    _thread.known.update(new)


def _blocks() -> set[int]:
    """The addresses where huge pages are possible: in private anonymous memory."""
    found: set[int] = set()
    size = _huge_page_bytes()
    if not size:
        return found
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:  # a sandbox without /proc
        return found
    for line in lines:  # range, permissions, offset, device, inode, and a name or none
        addresses, permissions, _, _, inode, *name = line.split(maxsplit=5)
        if permissions == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            begin, end = (int(address, 16) for address in addresses.split("-"))
            found.update(range(-(-begin // size) * size, end - size + 1, size))
    return found


@cache
def _huge_page_bytes() -> int:
    """The size of a huge page; 0 if the system has none or its settings forbid them."""
    try:
        if sys.platform != "linux" or "[never]" in (_SETTINGS / "enabled").read_text():
            return 0
        return int((_SETTINGS / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return 0


def give_memory_back() -> None:
    """Returns freed memory to the system; glibc would keep it, separately for each thread (malloc_trim(3))."""
    if hasattr(_libc(), "malloc_trim"):
        _libc().malloc_trim(0)


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim.argtypes = [ctypes.c_size_t]
    return libc
