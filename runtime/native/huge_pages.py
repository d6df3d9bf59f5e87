"""The memory that C allocates: in huge pages where Linux has them, and given back to the system when it is freed.

This is the only file that touches `madvise` and `malloc_trim`.

A token reads all weights once, which in pages of 4 KiB are 14,000 for DistilGPT2 at four bits: more than a processor
remembers the places of (its TLB), and it reads ahead only within a page. In pages of 2 MiB decoding is faster
(docs/performance.md has by how much), but C's allocator does not ask for them.
"""

import ctypes
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

LARGE = 8 << 20  # bytes of weights; of fewer a processor knows all places anyway, and to ask takes milliseconds
_MAPS = Path("/proc/self/maps")
_SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
_BUFFERS = (b"model buffer size", b"KV buffer size")  # not "compute": most of it is never touched
_MADV_HUGEPAGE = 14  # include/uapi/asm-generic/mman-common.h


class _Thread(threading.local):
    known: set[int] | None = None


_thread = _Thread()


@contextmanager
def huge_pages_for_new_memory() -> Iterator[None]:
    """In the block, `ask_for_huge_pages` is for what has been allocated since its beginning."""
    _thread.known = _blocks()
    try:
        yield
    finally:
        _thread.known = None


def ask_for_huge_pages(logged: bytes) -> None:
    """Does so for all memory that was allocated in this thread's block, if llama.cpp logs that it has a buffer.

    It says so before it fills it, and pages that are filled stay what they are.
    """
    if _thread.known is None or not any(buffer in logged for buffer in _BUFFERS):
        return
    new = sorted(_blocks() - _thread.known)
    for address in new:
        # what others have allocated meanwhile is among it; it does them no harm, and if it is gone again, nothing
        _libc().madvise(address, _huge_page_bytes(), _MADV_HUGEPAGE)
    _thread.known.update(new)


def _blocks() -> set[int]:
    """The addresses at which huge pages can be: within private memory that is of no file."""
    found: set[int] = set()
    size = _huge_page_bytes()
    if not size:
        return found
    try:
        lines = _MAPS.read_text().splitlines()
    except OSError:  # a sandbox without it
        return found
    for line in lines:  # range, permissions, offset, device, inode, and a name or none
        addresses, permissions, _, _, inode, *name = line.split(maxsplit=5)
        if permissions == "rw-p" and inode == "0" and name in ([], ["[heap]"]):
            begin, end = (int(address, 16) for address in addresses.split("-"))
            found.update(range(-(-begin // size) * size, end - size + 1, size))
    return found


@cache
def _huge_page_bytes() -> int:
    """0 where there are none, or whoever runs the machine wants none."""
    try:
        if sys.platform != "linux" or "[never]" in (_SETTINGS / "enabled").read_text():
            return 0
        return int((_SETTINGS / "hpage_pmd_size").read_text())
    except (OSError, ValueError):
        return 0


def give_memory_back() -> None:
    """Returns freed memory to the system, which glibc keeps otherwise, for each thread by itself (malloc_trim(3))."""
    if hasattr(_libc(), "malloc_trim"):
        _libc().malloc_trim(0)


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim.argtypes = [ctypes.c_size_t]
    return libc
