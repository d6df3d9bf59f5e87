"""An output that grows by whole slices: locked, flushed to the disk, and cut back to what a job record states."""

import fcntl
import gzip
import hashlib
import os
from contextlib import suppress
from pathlib import Path

from dgpt2_quant.core.atomic_file import explain_errors
from dgpt2_quant.core.errors import OutputError

_HASHED_AT_ONCE = 1 << 20


class OutputFile:
    """A file that is open for appending; one that ends in .gz has a gzip member for each slice.

    `bytes` and `sha256` describe what was appended and flushed.
    """

    def __init__(self, path: Path) -> None:
        """Opens or creates the file and its folder. Raises `OutputError`."""
        self.path, self.bytes = path, 0
        self._digest = hashlib.sha256()
        with explain_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # one call of C: an interrupt between opening and keeping the descriptor would leave the file open
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def lock(self) -> bool:
        """Whether this process has the file now; the lock ends with the process. True on file systems without locks."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            return True
        with suppress(FileNotFoundError):
            return os.path.samestat(self.path.stat(), os.fstat(self._descriptor))
        return False  # another process has removed the file before it was locked

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def continue_from(self, size: int, sha256: str) -> None:
        """Continues after the first `size` bytes and cuts the rest. Raises `OutputError` if they have another hash."""
        with explain_errors(self.path):
            at, digest = 0, hashlib.sha256()
            while at < size and (part := os.pread(self._descriptor, min(_HASHED_AT_ONCE, size - at), at)):
                digest.update(part)
                at += len(part)
            if at < size or digest.hexdigest() != sha256:
                raise changed_error(self.path)
            self.bytes, self._digest = size, digest
            if self.size != size:  # a finished job keeps its time
                os.ftruncate(self._descriptor, size)
            os.lseek(self._descriptor, size, os.SEEK_SET)

    def append(self, data: bytes) -> None:
        """Appends a slice and flushes it to the disk. Raises `OutputError`."""
        if not data:
            return
        if self.path.name.endswith(".gz"):
            data = gzip.compress(data, mtime=0)
        left = memoryview(data)
        with explain_errors(self.path):
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fsync(self._descriptor)
        self._digest.update(data)
        self.bytes += len(data)

    def cut(self, size: int) -> None:
        """Removes everything after the first `size` bytes, if that is possible."""
        with suppress(OSError):
            os.ftruncate(self._descriptor, size)

    def close(self) -> None:
        os.close(self._descriptor)


def changed_error(path: Path) -> OutputError:
    return OutputError(f"{path} has changed since the job wrote it", "Restore the file, or begin anew with `restart`.")
