"""Reads an input named by the user: a file, a FIFO, a pipe such as `/dev/fd/63`, or `-` for stdin, opened once.

The first bytes decide the format, not the name: plain, gzip, or an archive (ZIP, .tar.gz). The input is read into
memory, up to `MOST_BYTES`, so that a pipe and a file give the same bytes.
"""

import select
import sys
import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from .archive import MOST_BYTES, DataFile, Packing, detect_packing, is_packed, not_text_error, too_large_error, unpack
from .errors import ModelNotFoundError, UsageError
from .paths import user_path

Announce = Callable[[str], None]
_STDIN = {"-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"}
_PIECE = 1 << 20  # bytes per read
_used: list[weakref.ref[BinaryIO]] = []  # the stdin that was read; a program has one, the tests have several


@dataclass(frozen=True)
class Input:
    """The raw content of an input; `shown` is the name that the user gave, `name` the name for results."""

    shown: str
    name: str
    content: bytes

    @cached_property
    def packing(self) -> Packing | None:
        return detect_packing(self.content)

    def file(self, member: str | None = None, *, prefer: Collection[str] = ()) -> DataFile:
        """The unpacked content; of an archive the `member` of that name, in any folder.

        If `member` is None, an archive must contain one file, or one of the names in `prefer`. Raises `UsageError` for
        a broken archive, a missing member, or content that is too large.
        """
        if self.packing is None:
            return DataFile(self.name, self.content)
        return unpack(self.shown, self.name, self.content, self.packing, member, prefer)


def read_input(path: str | Path, what: str = "text", *, announce: Announce | None = None) -> Input:
    """Reads a file, a FIFO, a pipe, or stdin (`-`) to its end; `what` names its purpose in messages.

    `announce` is called with a note before a terminal is read. Raises `ModelNotFoundError` for an input that cannot be
    read, and `UsageError` for one that is binary or too large, and for a stdin that is closed or was read before.
    """
    shown = str(path)
    if not shown:
        raise UsageError(f"the name of the {what} is empty", "Name a file, or - for stdin.")
    if shown in _STDIN:
        return Input("stdin", "stdin", _read(_stdin(), "stdin", what, announce))
    try:
        file = user_path(path).open("rb")
    except (OSError, ValueError) as error:  # not found, permission denied, a folder, name too long, NUL byte
        raise _unreadable(what, shown, error) from error
    with file:
        name = shown if shown.startswith(("/dev/", "/proc/")) else Path(shown).name
        return Input(shown, name, _read(file, shown, what, announce))


def input_exists(path: str | Path) -> bool:
    """Whether an input of this name exists: it takes precedence over a bundled text or data set of that name."""
    try:
        return str(path) in _STDIN or (user_path(path).exists() and not user_path(path).is_dir())
    except (OSError, ValueError):
        return False


def _stdin() -> BinaryIO:
    stream: BinaryIO | None = getattr(sys.stdin, "buffer", None)
    if stream is None or stream.closed:
        raise UsageError("stdin is closed, so `-` cannot be read", "Name a file.")
    if any(used() is stream for used in _used):
        raise UsageError("stdin (`-`) was already read", "Use stdin once, and name a file for the other input.")
    _used[:] = [weakref.ref(stream)]
    return stream


def _read(file: BinaryIO, shown: str, what: str, announce: Announce | None) -> bytes:
    terminal = file.isatty()
    if announce and terminal:
        announce(f"Reading the {what} from the terminal; end it with Ctrl-D on an empty line")
    content = bytearray()
    while True:
        try:
            piece = file.read(_PIECE)
        except OSError as error:
            raise _unreadable(what, shown, error) from error
        if piece is None:  # the descriptor is non-blocking, as some parent processes leave it
            select.select([file], [], [])
            continue
        content += piece
        if b"\0" in piece and not is_packed(content):  # /dev/zero does not end
            raise not_text_error(shown, content)
        if len(content) > MOST_BYTES:
            raise too_large_error(shown)
        if not piece or (terminal and len(piece) < _PIECE):  # a further read would need a second Ctrl-D
            return bytes(content)


def _unreadable(what: str, shown: str, error: Exception) -> ModelNotFoundError:
    reason = getattr(error, "strerror", None) or error
    if isinstance(error, FileNotFoundError):
        return ModelNotFoundError(f"no {what} {shown[:200]!r}: {reason}", "Name a file, or - for stdin.")
    return ModelNotFoundError(f"cannot read the {what} {shown[:200]!r}: {reason}", "Name a file, or - for stdin.")
