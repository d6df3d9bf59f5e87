"""Reads the lines of a job in slices, with memory for one slice: limits of their length, and duplicate `custom_id`s."""

import gzip
import hashlib
import json
import os
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Self

from dgpt2_quant.core.errors import ModelNotFoundError, OutputError, UsageError
from dgpt2_quant.core.paths import user_path

from .record import Part

MAX_LINE = 1 << 20
_GZIP = b"\x1f\x8b"
_SKIPPED = 1 << 16  # bytes of an overlong line that are read at once


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the input, from 1 on. `too_long` is its limit in bytes, if it has more; then there is no `data`.

    `same_id_as` is the number of an earlier line with its `custom_id`, or 0.
    """

    number: int
    data: bytes
    too_long: int = 0
    same_id_as: int = 0


class Input:
    """A file of lines, plain or gzip by its first bytes; `-` is stdin. Use it in `with`.

    `read` has the lines so far, their bytes after decompression, and the hash of these.
    """

    def __init__(self, path: str | Path, max_line: int = MAX_LINE) -> None:
        """Raises `ModelNotFoundError` for a file that cannot be read."""
        self._is_stdin = str(path) == "-"
        self.name = "stdin" if self._is_stdin else str(path)
        self._lines = self._bytes = 0
        self._digest, self._max_line = hashlib.sha256(), max_line
        try:
            self.raw: Any = sys.stdin.buffer if self._is_stdin else user_path(path).open("rb")
        except (OSError, ValueError, AttributeError) as error:  # AttributeError: Python has no stdin
            reason = getattr(error, "strerror", None) or error
            raise ModelNotFoundError(f"cannot read {self.name}: {reason}", "Name a file, or - for stdin.") from error
        self._file: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_stdin:
            self.raw.close()

    @property
    def read(self) -> Part:
        return Part(self._lines, self._bytes, self._digest.hexdigest())

    @property
    def size(self) -> int:
        """The bytes of the file; 0 for a pipe."""
        with suppress(OSError, ValueError):
            return os.fstat(self.raw.fileno()).st_size
        return 0

    @property
    def position(self) -> int:
        """The bytes of the file that were read; 0 for a pipe."""
        with suppress(OSError, ValueError):
            return int(self.raw.tell())
        return 0

    def __iter__(self) -> Iterator[bytes]:
        """The lines without their ends. One beyond the limit has its first bytes, one more than the limit.

        Raises `UsageError` for a damaged file.
        """
        try:
            if self._file is None:
                packed = self.raw.peek(2)[:2] == _GZIP
                self._file = gzip.GzipFile(fileobj=self.raw) if packed else self.raw
            while line := self._file.readline(self._max_line + 1):
                self._lines += 1
                part = line
                self._count(part)
                while not part.endswith(b"\n") and (part := self._file.readline(_SKIPPED)):
                    self._count(part)
                yield line.removesuffix(b"\n")
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            message = f"{self.name} cannot be read after line {self._lines}: {reason}"
            raise UsageError(message, "Repair the file, and run the same command again.") from error

    def _count(self, data: bytes) -> None:
        self._digest.update(data)
        self._bytes += len(data)


@dataclass
class CustomIds:
    """The `custom_id`s so far. They are in a temporary database on disk, so that memory does not grow with them."""

    _database: object = field(default=None, repr=False)

    def first_line(self, data: bytes, number: int) -> int:
        """The number of the first line with this line's `custom_id`; 0 for one without."""
        if b'"custom_id"' not in data:
            return 0
        try:
            custom_id = json.loads(data)["custom_id"]
            custom_id.encode()
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return 0  # another error of the line
        import sqlite3

        try:
            if self._database is None:
                self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
                for step in ("PRAGMA journal_mode = OFF", "PRAGMA synchronous = OFF", "BEGIN"):
                    self._database.execute(step)
                self._database.execute("CREATE TABLE ids (id TEXT PRIMARY KEY, line INTEGER) WITHOUT ROWID")
            assert isinstance(self._database, sqlite3.Connection)
            self._database.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (custom_id, number))
            [found] = self._database.execute("SELECT line FROM ids WHERE id = ?", (custom_id,)).fetchone()
        except sqlite3.OperationalError as error:
            raise OutputError(
                f"cannot keep the `custom_id`s of the lines: {error}",
                "Free some space in the folder of temporary files, and run the same command again.",
            ) from error
        return int(found)


def numbered(lines: Iterable[bytes], max_line: int, ids: CustomIds) -> Iterator[Line]:
    """The lines with their numbers, and what only a look at all lines can find."""
    for number, data in enumerate(lines, 1):
        if len(data) > max_line:
            yield Line(number, b"", too_long=max_line)
        else:
            first = ids.first_line(data, number)
            yield Line(number, data, same_id_as=first if first != number else 0)


def slices_of(lines: Iterator[Line], size: int) -> Iterator[list[Line]]:
    """Lists of `size` lines; the last one may be shorter."""
    while found := list(islice(lines, size)):
        yield found
