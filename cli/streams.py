"""stdin, stdout and stderr as they are found: closed, full, or with a reader that went away.

What cannot be read from stdin or written to stdout is one clear error. What cannot be written to stderr is dropped: a
lost remark is no reason to lose the work.
"""

import errno
import io
import os
import sys
from typing import Any

from dgpt2_quant.core.errors import DgptQuantError, OutputError

_replaced: list[object] = []  # kept, or their end could close the descriptors


class ReaderGoneError(Exception):
    """Nobody reads stdout any more, as after `| head`: the program ends, and that is no error."""


def open_streams() -> None:
    """Makes the three streams safe to use; called before anything is opened.

    A closed descriptor is taken, or the next file to be opened would get its number, and what C writes to stderr would
    go into that file. As gnulib's stdopen does, stdin gets what cannot be read, and stdout what cannot be written to.
    """
    for number, mode in enumerate((os.O_WRONLY, os.O_RDONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            found = os.open(os.devnull, mode)  # the lowest free number
            os.set_inheritable(found, True)
    _replaced.extend((sys.stdin, sys.stdout, sys.stderr))
    if _is_standard(sys.stdin, 0):
        sys.stdin = io.TextIOWrapper(io.BufferedReader(_Input(0, "r", closefd=False)), "utf-8")
    if _is_standard(sys.stdout, 1):
        data = io.BufferedWriter(_Data(1, "w", closefd=False))
        sys.stdout = io.TextIOWrapper(data, "utf-8", "replace", line_buffering=os.isatty(1))
    if _is_standard(sys.stderr, 2):
        remarks = io.BufferedWriter(_Remarks(2, "w", closefd=False))
        sys.stderr = io.TextIOWrapper(remarks, "utf-8", "replace", line_buffering=True)


def is_closed(number: int) -> bool:
    """Whether stdin (0) or stdout (1) was closed when the program started, and so is of no use."""
    import fcntl

    wrong = os.O_WRONLY if number == 0 else os.O_RDONLY
    return fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == wrong


def drop_output() -> None:
    """stdout goes nowhere from here on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _is_standard(stream: object, number: int) -> bool:
    """Whether it is the interpreter's own, not one that a test or an embedding program has put there."""
    if stream is None:
        return True
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() == number
    except (OSError, ValueError):
        return False


class _Input(io.FileIO):
    def readinto(self, buffer: Any, /) -> int | None:
        try:
            return super().readinto(buffer)
        except OSError as error:
            raise _unreadable(error) from error

    def readall(self) -> bytes | None:  # type: ignore[override]
        try:
            return super().readall()
        except OSError as error:
            raise _unreadable(error) from error


class _Data(io.FileIO):
    _failed = False

    def write(self, data: Any, /) -> int | None:  # type: ignore[override]
        if self._failed:  # the error was raised, and Python writes once more when it exits
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self._failed = True
            if error.errno == errno.EPIPE:
                raise ReaderGoneError from error
            why = "it is closed" if error.errno == errno.EBADF else error.strerror
            raise OutputError(f"cannot write to stdout: {why}", "Redirect it to a file or a pipe.") from error


class _Remarks(io.FileIO):
    def write(self, data: Any, /) -> int | None:  # type: ignore[override]
        try:
            written = super().write(data)
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written


def _unreadable(error: OSError) -> DgptQuantError:
    why = "it is closed" if error.errno == errno.EBADF else error.strerror
    return DgptQuantError(f"cannot read stdin: {why}", "Give it a file or a pipe.")
