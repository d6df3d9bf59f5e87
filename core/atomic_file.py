"""Files that appear whole or not at all.

On Linux a file is written without a name (`O_TMPFILE`) and gets one when it is complete, so that even `kill -9` or a
power cut leaves nothing behind. Elsewhere, and in the instant in which an old file is replaced, it lies beside its
target under a hidden name. What a kill leaves there the next writer of that file removes: the dead hold no lock.
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
    """Raises `OutputError` for a target that is a folder or in none, or that exists and may not be overwritten, and
    `UsageError` for `-`, which elsewhere means stdout."""
    path = user_path(path)
    if path.parts[:1] == ("-",):
        raise UsageError("'-' is not a place to write to: this cannot go to stdout", "Name a file or a folder.")
    if "\0" in str(path):
        raise OutputError(f"{str(path)!r} is no file's name: it has a zero byte in it", "Use -o to write elsewhere.")
    with explain_errors(path):  # looking is refused where a folder may not be entered
        if os.path.lexists(path.parent) and not path.parent.is_dir():
            kind = "a file" if path.parent.is_file() else "a link to nothing, or a device"
            raise OutputError(f"{path.parent} is {kind}, not a folder", "Name a folder, or a file that ends in .gguf.")
        if path.is_dir():
            raise OutputError(f"{path} is a folder", "Name a file.")
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} is a device or a pipe, which is not replaced", "Name a file.")
        if path.exists() and not overwrite:
            raise OutputError(f"{path} exists already", "Use --overwrite to replace it, or name another place.")


@contextmanager
def output_file(path: Path, *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """A binary file to write to; it takes its place when the block ends without an error.

    Raises `OutputError` when the target exists (without `overwrite`), the folder can not be written, or the disk is
    full. An `OSError` in the block is taken for one of writing.
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
                    # with a folder's descriptor os.link follows the link in /proc, without one it does not
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
            # C at once: Python looks for signals on entry to a function of Python's, such as `Path.unlink`
            try:  # noqa: SIM105 - `suppress` is one, too
                os.unlink(hidden_name)  # noqa: PTH108
            except FileNotFoundError:
                pass


@contextmanager
def explain_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's errors into `OutputError`s that name the file."""
    try:
        yield
    except OSError as error:
        reasons = {
            errno.ENOSPC: ("the disk is full", "Free some space, or use -o to write elsewhere."),
            errno.EDQUOT: ("the disk quota is used up", "Free some space, or use -o to write elsewhere."),
            errno.EACCES: ("no permission to write there", "Use -o to write elsewhere."),
            errno.EROFS: ("the file system is read-only", "Use -o to write elsewhere."),
            errno.EEXIST: ("it exists already", "Use --overwrite to replace it, or name another place."),
        }
        reason, hint = reasons.get(error.errno or 0, (error.strerror or str(error), ""))
        raise OutputError(f"{path} can not be written: {reason}", hint) from error


@contextmanager
def _folder_for(path: Path) -> Iterator[int]:
    """The descriptor of its folder, made if need be; one that was made for nothing is removed again.

    It is locked, shared, while somebody writes there: a file without a name keeps no folder from being removed.
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
        for made in missing if failed else ():
            _remove_unused(made)


def _hold_folder(path: Path, held: list[int]) -> None:
    """Appends the folder's descriptor, locked; it is made anew if somebody removed it before the lock was there."""
    while True:
        path.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            # opened and remembered in one call of C: an interrupt between the two would leave the folder locked
            held.extend(map(os.open, [str(path)], [os.O_RDONLY]))
            _lock(held[-1], fcntl.LOCK_SH)
            if _leads_to(path, held[-1]):
                return


def _remove_unused(folder: Path) -> None:
    with contextlib.suppress(OSError):  # it is not empty, or somebody writes there
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            folder.rmdir()
        finally:
            os.close(descriptor)


def _remove_left_behind(path: Path) -> None:
    """Hidden files of this target whose writers are dead, so that they hold no lock."""
    for left in path.parent.glob(f".{glob.escape(path.name[:50])}.????????????.part"):
        with contextlib.suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _open(hidden: Path) -> tuple[int, bool]:
    """A locked descriptor to write to, and whether the file is still without a name."""
    if hasattr(os, "O_TMPFILE"):
        # a file system without nameless files (some overlays, NFS) says so; then a named one has to do
        with contextlib.suppress(OSError):
            descriptor = os.open(hidden.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
            _lock(descriptor, fcntl.LOCK_EX)
            return descriptor, True
    while True:
        descriptor = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        _lock(descriptor, fcntl.LOCK_EX)
        if _leads_to(hidden, descriptor):
            return descriptor, False
        os.close(descriptor)  # another writer took it for one of the dead, before it was locked


def _lock(descriptor: int, how: int) -> None:
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(descriptor, how)


def _leads_to(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _rename_to_new(hidden: Path, path: Path) -> None:
    """Renames, unless somebody else took the name meanwhile: a link, unlike a rename, does not replace."""
    try:
        os.link(hidden, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        hidden.rename(path)
