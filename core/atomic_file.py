"""Atomic file output: a file appears complete or not at all.

On Linux the file is written without a name (`O_TMPFILE`) and linked to its name when it is complete, so `kill -9` or a
power cut leaves nothing. Elsewhere, and at the moment when an existing file is replaced, it has a hidden name next to
the target. A killed process can leave that hidden file; the next writer of the same target removes it, because a dead
process holds no lock.
"""

import contextlib
import errno
import fcntl
import glob
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import OutputError, UsageError
from .paths import user_path


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Checks that `path` can be written.

    Raises `OutputError` for a folder, a path inside a file, or an existing file (without `overwrite`), and
    `UsageError` for `-`.
    """
    path = user_path(path)
    if path.parts[:1] == ("-",):
        raise UsageError("'-' (stdout) is not possible here", "Name a file or a folder.")
    if "\0" in str(path):
        raise OutputError(f"{str(path)!r} is not a file name: it contains a NUL byte", "Choose another `output`.")
    with explain_errors(path):  # stat fails in a folder without search permission
        if os.path.lexists(path.parent) and not path.parent.is_dir():
            kind = "a file" if path.parent.is_file() else "a broken link or a device"
            raise OutputError(f"{path.parent} is {kind}, not a folder", "Name a folder, or a file that ends in .gguf.")
        if path.is_dir():
            raise OutputError(f"{path} is a folder", "Name a file.")
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} is a device or a pipe and cannot be replaced", "Name a file.")
        if path.exists() and not overwrite:
            raise OutputError(f"{path} already exists", "Set `overwrite` to replace it, or choose another `output`.")


@contextmanager
def output_file(path: Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Opens a binary file for writing; it gets its name when the block ends without an error.

    Raises `OutputError` when the target exists (without `overwrite`), the folder cannot be written, or the disk is
    full. Any `OSError` in the block counts as a write error.
    """
    path = user_path(path)
    refuse_existing(path, overwrite)
    with explain_errors(path), _folder_for(path) as folder:
        hidden = path.with_name(f".{path.name[:50]}.{secrets.token_hex(6)}.part")
        hidden_name = str(hidden)
        _remove_left_behind(path)
        try:
            descriptor, nameless = _open(hidden)
            try:
                with open(descriptor, "wb", closefd=False) as file:
                    yield file
                os.fsync(descriptor)
                if nameless:
                    # os.link follows the link in /proc only with a folder descriptor
                    name = hidden if overwrite else path
                    os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=folder, follow_symlinks=True)
                if overwrite:
                    hidden.replace(path)
                elif not nameless:
                    _rename_to_new(hidden, path)
                os.fsync(folder)
            finally:
                os.close(descriptor)
        finally:
            # A direct C call: Python runs signal handlers on entry to a Python function such as `Path.unlink`.
            try:  # noqa: SIM105 - `suppress` is a Python function too
                os.unlink(hidden_name)  # noqa: PTH108
            except FileNotFoundError:
                pass


@contextmanager
def explain_errors(path: Path) -> Iterator[None]:
    """Converts `OSError` to an `OutputError` that names the file."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: ("the disk is full", "Free some space, or choose another `output`."),
            errno.EDQUOT: ("the disk quota is exceeded", "Free some space, or choose another `output`."),
            errno.EACCES: ("permission denied", "Choose another `output`."),
            errno.EROFS: ("the file system is read-only", "Choose another `output`."),
            errno.EEXIST: ("it already exists", "Set `overwrite` to replace it, or choose another `output`."),
        }
        reason, hint = reasons.get(error.errno or 0, (error.strerror or str(error), ""))
        raise OutputError(f"cannot write {path}: {reason}", hint) from error


@contextmanager
def _folder_for(path: Path) -> Iterator[int]:
    """Opens the folder of `path`, creating missing folders; they are removed again when the block fails.

    A shared lock protects the folder: a file without a name does not keep its folder from being removed.
    """
    missing = [folder for folder in path.parents if not folder.exists()]
    held: list[int] = []
    failed = True
    try:
        _hold_folder(path.parent, held)
        yield held[-1]
        failed = False
    finally:
        for descriptor in held:
            os.close(descriptor)
        for created in missing if failed else ():
            _remove_unused(created)


def _hold_folder(path: Path, held: list[int]) -> None:
    """Appends the locked descriptor of the folder; creates the folder again if it was removed before the lock."""
    while True:
        path.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            # open and append in one C call: an interrupt between the two would leave the folder locked
            held.extend(map(os.open, [str(path)], [os.O_RDONLY]))
            _lock(held[-1], fcntl.LOCK_SH)
            if _leads_to(path, held[-1]):
                return


def _remove_unused(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not empty, or locked by a writer
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder.rmdir()
        finally:
            os.close(descriptor)


def _remove_left_behind(path: Path) -> None:
    """Removes hidden files of this target that no process has locked."""
    for left in path.parent.glob(f".{glob.escape(path.name[:50])}.????????????.part"):
        with contextlib.suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _open(hidden: Path) -> tuple[int, bool]:
    """Opens a locked file for writing; the flag is True while the file has no name."""
    if hasattr(os, "O_TMPFILE"):
        # file systems without O_TMPFILE (some overlays, NFS) fail here; then a named file is used
        with contextlib.suppress(OSError):
            descriptor = os.open(hidden.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
            _lock(descriptor, fcntl.LOCK_EX)
            return descriptor, True
    while True:
        descriptor = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        _lock(descriptor, fcntl.LOCK_EX)
        if _leads_to(hidden, descriptor):
            return descriptor, False
        os.close(descriptor)  # another writer removed the file before it was locked


def _lock(descriptor: int, how: int) -> None:
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, how)


def _leads_to(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _rename_to_new(hidden: Path, path: Path) -> None:
    """Renames without replacing: unlike a rename, a link fails if the name exists."""
    try:
        os.link(hidden, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        hidden.rename(path)
