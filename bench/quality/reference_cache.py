"""The cache of a reference's logits for a text.

The logits are kept in float32. The key is a hash of everything that decides them: the reference file's content, the
tokens and windows, the code, and the processor, whose kernels have their own rounding. The oldest entries are removed
when the folder would exceed its limit. Logits that do not fit at all are not kept, but computed window by window.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np
from dgpt2_quant.bench.document.environment import cpu_name
from dgpt2_quant.core.atomic_file import output_file
from dgpt2_quant.core.cache_folder import cache_folder, cache_version
from dgpt2_quant.core.errors import OutputError

from .logit_rows import Logits
from .windows import Window

LIMIT = 1_000_000_000  # bytes of all entries

Compute = Callable[[Window], Logits]


class ReferenceCache:
    """The folder of kept logits; `limit` in bytes, 0 keeps none."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.folder = cache_folder() / "reference"

    def rows(self, file: Path, windows: Sequence[Window], vocabulary: int, compute: Compute) -> Generator[Logits]:
        """Yields the logits of each window's scored rows, (rows, vocabulary), valid until the next.

        `compute` is called for windows that are not in the cache.
        """
        counts = [len(window.targets) for window in windows]
        size = 4 * vocabulary * sum(counts)
        if size > self.limit:
            yield from map(compute, windows)
            return
        path = self.folder / f"{_key(file, windows, vocabulary)}.f32"
        with contextlib.suppress(OSError, ValueError):  # missing, unreadable or incomplete
            if path.stat().st_size == size:
                kept = np.memmap(path, np.float32, "r", shape=(sum(counts), vocabulary))
                with contextlib.suppress(OSError):
                    os.utime(path)  # the oldest are removed first
                start = 0
                for count in counts:
                    yield kept[start : start + count]
                    start += count
                return
        yield from self._kept(path, size, windows, compute)

    def _kept(self, path: Path, size: int, windows: Sequence[Window], compute: Compute) -> Generator[Logits]:
        """Computes the logits, and keeps them if there is room: a full disk is no reason to fail."""
        done = 0
        with contextlib.suppress(OutputError):
            self._make_room(size)
            with output_file(path, overwrite=True) as file:
                for window in windows:
                    rows = compute(window)
                    file.write(np.ascontiguousarray(rows).data)
                    done += 1
                    yield rows
        yield from map(compute, windows[done:])

    def _make_room(self, size: int) -> None:
        with contextlib.suppress(OSError):
            kept = sorted(self.folder.glob("*.f32"), key=lambda path: path.stat().st_mtime)
            room = self.limit - sum(path.stat().st_size for path in kept)
            for path in kept:
                if room >= size:
                    break
                room += path.stat().st_size
                path.unlink()


def _key(file: Path, windows: Sequence[Window], vocabulary: int) -> str:
    key = hashlib.sha256()
    with file.open("rb") as content:
        key.update(hashlib.file_digest(content, "sha256").digest())
    key.update(f"{cache_version('runtime', 'bench')} {cpu_name()} {vocabulary}\n".encode())
    for window in windows:
        key.update(np.array([window.first, *window.tokens], np.int32).tobytes())
        key.update(b";")
    return key.hexdigest()[:32]
