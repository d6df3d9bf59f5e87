"""The bytes of a data file: plain, or one member of a ZIP or .tar.gz archive as the data sets are published.

An archive comes from elsewhere and is not trusted: nothing is unpacked to disk, the member is found by the last part
of its name, and neither it nor what lies before it may be larger than a data set can be.
"""

import gzip
import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from dgpt2_quant.quantize.errors import ModelNotFoundError, UsageError

MOST_BYTES = 1 << 28  # 256 MiB: enwik8, the largest set, has 100 MB
_MOST_MEMBERS = 10_000
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


@dataclass(frozen=True)
class DataFile:
    """A file's content; `name` is for people and messages, the hash that of the content itself, not of an archive."""

    name: str
    content: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def read_data_file(path: str | Path, member: str | None = None) -> DataFile:
    """A plain file's content, or that of the `member` of an archive (by its name without folders).

    Where `member` is None, an archive must hold a single file. Raises `ModelNotFoundError` for a missing file,
    `UsageError` for a broken archive, one without that member, or anything too large.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            file.seek(0)
            if magic == b"PK\x03\x04":
                return _from_zip(path, file, member)
            if magic[:2] == b"\x1f\x8b":
                return _from_tar(path, file, member)
            return DataFile(path.name, _read(file, str(path)))
    except _BROKEN as error:
        reason = str(error) or type(error).__name__
        raise UsageError(f"{path} can not be read: {reason}", "Download it again, or name an unpacked file.") from error
    except OSError as error:  # gzip's errors are such too
        if error.errno is None:
            raise UsageError(f"{path} is a broken archive: {error}", "Download it again.") from error
        raise ModelNotFoundError(
            f"there is no data file {path} ({error.strerror})", "Name a file: --data FILE."
        ) from error


def is_archive(path: str | Path) -> bool:
    """Whether it is there, and is a ZIP or gzip file."""
    try:
        with Path(path).open("rb") as file:
            return file.read(4).startswith((b"PK\x03\x04", b"\x1f\x8b"))
    except (OSError, ValueError):
        return False


def decode(file: DataFile, *, mark: bool = False) -> str:
    """The content as text; with `mark`, a byte order mark at the beginning is dropped.

    Raises `UsageError` that names the line of the first byte that is no UTF-8.
    """
    try:
        text = file.content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = file.content.count(b"\n", 0, error.start) + 1
        raise UsageError(
            f"{file.name}, line {line}: not UTF-8 ({error.reason})", "Convert it, for example with iconv."
        ) from error
    return text.removeprefix("\ufeff") if mark else text


def numbered_lines(file: DataFile) -> Iterator[tuple[int, str]]:
    """(number, line) of a file that is made of lines, from 1, with either line end and a byte order mark or none."""
    for number, line in enumerate(decode(file, mark=True).split("\n"), 1):  # splitlines() knows too many ends of lines
        yield number, line.removesuffix("\r")


def _from_zip(path: Path, file: IO[bytes], member: str | None) -> DataFile:
    with zipfile.ZipFile(file) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        name = _choose(path, [info.filename for info in infos], member)
        found = next(info for info in infos if info.filename == name)
        if found.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UsageError(f"{path} is packed by an unusual method", f"Name the unpacked file: {name}.")
        with archive.open(found) as inside:
            return DataFile(PurePosixPath(name).name, _read(inside, f"{name} in {path}"))


def _from_tar(path: Path, file: IO[bytes], member: str | None) -> DataFile:
    """Its members come one after the other: those before the wanted one have to be unpacked to be passed over."""
    names, passed = [], 0
    with _Bounded(fileobj=file) as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as archive:
        for info in archive:
            if info.isfile():
                names.append(info.name)
                if member is None or PurePosixPath(info.name).name == member:
                    inside = archive.extractfile(info)
                    assert inside is not None  # as isfile() says
                    with inside:
                        content = _read(inside, f"{info.name} in {path}")
                    if member is not None:
                        return DataFile(member, content)
            passed += info.size
            if passed > 16 * MOST_BYTES or len(names) > _MOST_MEMBERS:
                raise UsageError(f"{path} is too large for a data set", "Name an unpacked file.")
    _choose(path, names, member)
    return DataFile(PurePosixPath(names[0]).name, content)


class _Bounded(gzip.GzipFile):
    """No part that is read at once is larger than a data set, whatever size a header claims for the next one."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MOST_BYTES + 1:
            raise UsageError(f"{self.name} has a part of more than {MOST_BYTES >> 20} MiB", "Name an unpacked file.")
        return super().read(size)


def _choose(path: Path, names: list[str], member: str | None) -> str:
    """The wanted one of an archive's members. Raises `UsageError`."""
    found = [name for name in names if member is None or PurePosixPath(name).name == member]
    if len(found) == 1:
        return found[0]
    wanted = member or "a single file"
    there = ", ".join(name[:80] for name in names[:5]) or "nothing"
    what = f"{path} has {len(found)} members named {member}" if len(found) > 1 and member else None
    raise UsageError(what or f"{path} does not hold {wanted}, but {there}", f"Name the unpacked file: {wanted}.")


def _read(file: IO[bytes], what: str) -> bytes:
    """All of it. Whatever an archive says of the size, no more than the limit is unpacked."""
    content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise UsageError(f"{what} has more than {MOST_BYTES >> 20} MiB", "Take a part of it.")
    return content
