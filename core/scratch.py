"""Scratch: arrays of a long computation, in files, so that memory stays small and an interrupted computation resumes.

Each array is a file of a folder in the cache, written under another name and renamed. Its checksum is verified when a
later process finds it: after a power cut a file may be incomplete. Names have hashes of all that the arrays depend on.
The folder is removed when the computation is complete, and a week after an interruption by the next one.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import time
import zlib
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .atomic_file import explain_errors
from .cache_folder import cache_folder, cache_version
from .errors import OutputError

Array = npt.NDArray[Any]
Store = MutableMapping[str, Array]
NewStore = Callable[..., Store]
"""Called with what the arrays depend on besides the model, as JSON; returns their store."""

SCRATCH_FOLDERS = ("lean", r"(?P<model>.+)-[0-9a-f]{32}")
"""Patterns of the folders' path in the cache."""
_SUFFIXES = (".array", ".part")
_STALE = 7 * 24 * 3600.0  # seconds
SAVE_EVERY = 20.0
"""Seconds between two savings of a state that is computed again after an interruption."""
_HINT = "Set DGPT2_QUANT_CACHE to a writable folder with free space."
_log = logging.getLogger(__name__)


def in_memory(*_: object) -> Store:
    """A store without files."""
    return {}


@contextmanager
def scratch(model: str, sha256: str) -> Iterator[NewStore]:
    """Yields a function that opens stores in the folder of a model, which is removed when the block succeeds.

    While another process holds the folder, a new one is used. Without a writable cache the stores are in memory.
    """
    own = hashlib.sha256(f"{sha256} {cache_version()}".encode()).hexdigest()[:32]
    parent = cache_folder() / SCRATCH_FOLDERS[0]
    folder, held = None, None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(parent)
        for ending in (own, secrets.token_hex(16)):
            folder = parent / f"{model}-{ending}"
            folder.mkdir(exist_ok=True)
            held = _hold(folder)
            if held is not None:
                break
    except OSError as error:
        _log.warning("%s cannot be written (%s): an interruption would lose all work", parent, error.strerror)
    if folder is None or held is None:
        yield in_memory
        return
    try:
        yield lambda *parts: Files(folder, hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12])
        _empty(folder)
    finally:
        os.close(held)


def _remove_stale(parent: Path) -> None:
    for path in parent.iterdir():
        with suppress(OSError):  # another process may remove it
            if re.fullmatch(SCRATCH_FOLDERS[1], path.name) and time.time() - path.stat().st_mtime > _STALE:
                remove_scratch(path)


def scratch_files(folder: Path) -> list[Path]:
    """The files of a folder of scratch."""
    return [path for path in folder.iterdir() if path.suffix in _SUFFIXES]


def remove_scratch(folder: Path) -> bool:
    """Removes a folder of scratch; False if a conversion uses it. Raises `OSError`."""
    if (held := _hold(folder)) is None:
        return False
    try:
        _empty(folder)
    finally:
        os.close(held)
    return True


def _hold(folder: Path) -> int | None:
    """A descriptor of the folder, locked; None if another process has locked it, or removes it."""
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(folder.stat(), os.fstat(held)):
            return held
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(held)
    return None


def _empty(folder: Path) -> None:
    for path in scratch_files(folder):
        path.unlink()
    with suppress(OSError):  # it has a file of somebody else
        folder.rmdir()


class Rarely:
    """Called often; true when `SAVE_EVERY` seconds have passed since the last time."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self) -> bool:
        now = time.monotonic()
        if now - self._last < SAVE_EVERY:
            return False
        self._last = now
        return True


class Files(MutableMapping[str, Array]):
    """Arrays in files: a line of JSON, then the data."""

    def __init__(self, folder: Path, prefix: str) -> None:
        self._folder, self._prefix = folder, prefix
        for name in list(self):
            with self._path(name).open("rb") as file:
                head = json.loads(file.readline() or b"{}")
                checksum = 0
                while data := file.read(1 << 20):
                    checksum = zlib.crc32(data, checksum)
            if head.get("crc32") != checksum:
                del self[name]

    def __getitem__(self, name: str) -> Array:
        try:
            with self._path(name).open("rb") as file:
                head = json.loads(file.readline())
                array = np.empty(head["shape"], head["dtype"])
                file.readinto(array.reshape(-1).view(np.uint8).data)
                return array
        except FileNotFoundError as error:
            raise KeyError(name) from error

    def __setitem__(self, name: str, array: Array) -> None:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        head = {"dtype": array.dtype.str, "shape": array.shape, "crc32": zlib.crc32(data)}
        path = self._path(name)
        part = path.with_suffix(_SUFFIXES[1])
        try:
            with explain_errors(path), part.open("wb") as file:
                file.write(json.dumps(head).encode() + b"\n")
                file.write(data)
            part.replace(path)
        except OutputError as error:
            part.unlink(missing_ok=True)
            raise OutputError(error.message, _HINT) from error

    def __delitem__(self, name: str) -> None:
        self._path(name).unlink()

    def __iter__(self) -> Iterator[str]:
        for path in self._folder.glob(f"{self._prefix}.*{_SUFFIXES[0]}"):
            yield path.name.removeprefix(f"{self._prefix}.").removesuffix(_SUFFIXES[0])

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return self._path(str(name)).exists()

    def _path(self, name: str) -> Path:
        return self._folder / f"{self._prefix}.{name}{_SUFFIXES[0]}"
