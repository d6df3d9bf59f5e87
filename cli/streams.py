"""Handles stdin, stdout and stderr that are closed, full, or have lost their reader.

A failure of stdin or stdout is one clear error. A failure of stderr is ignored: a lost message is no reason to lose the
work.
"""

import errno
import io
import os
import sys
from typing import Any

from dgpt2_quant.core.errors import DgptQuantError, OutputError

_replaced: list[object] = []  # kept, because their destructors could close the descriptors


class ReaderGoneError(Exception):
    """The reader of stdout is gone, as after `| head`: the program ends, without an error."""


def open_streams() -> None:
    """Makes the three streams safe to use. Must be called before any file is opened.

    A closed descriptor is replaced: otherwise the next file would get its number, and C's messages to stderr would be
    written into that file. As in gnulib's stdopen, reading such a stdin fails, and so does writing to such a stdout.
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
    """Whether stdin (0) or stdout (1) was closed when the program started."""
    import fcntl

    wrong = os.O_WRONLY if number == 0 else os.O_RDONLY
    return fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == wrong


def drop_output() -> None:
    """Discards what is written to stdout from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)


def _is_standard(stream: object, number: int) -> bool:
    """Whether it is the interpreter's stream, not one of a test or an embedding program."""
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
        if self._failed:  # the error was raised already, and Python writes again at exit
            return memoryview(data).nbytes
        try:
            return super().write(data)
        except OSError as error:
            self._failed = True
            if error.errno == errno.EPIPE:
                raise ReaderGoneError from error
            why = "it is closed" if error.errno == errno.EBADF else error.strerror
            raise OutputError(f"cannot write to stdout: {why}", "Redirect stdout to a file or a pipe.") from error


class _Remarks(io.FileIO):
    def write(self, data: Any, /) -> int | None:  # type: ignore[override]
        try:
            written = super().write(data)
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written


def _unreadable(error: OSError) -> DgptQuantError:
    why = "it is closed" if error.errno == errno.EBADF else error.strerror
    return DgptQuantError(f"cannot read stdin: {why}", "Redirect stdin from a file or a pipe.")
