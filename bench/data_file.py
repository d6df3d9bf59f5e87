"""The bytes of a data file: plain, packed by gzip, or one member of a ZIP or .tar.gz archive, as data sets are
published. The first bytes tell which, not the name.

An archive comes from elsewhere and is not trusted: nothing is unpacked to disk, the member is found by the last part
of its name, and neither it nor what lies before it may be larger than a data set can be.
"""

import gzip
import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

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


def read_data_file(path: str | Path, member: str | None = None, *, prefer: Collection[str] = ()) -> DataFile:
    """A plain or packed file's content, or that of the `member` of an archive (by its name without folders).

    Where `member` is None, an archive must hold a single file, or a single one of those to `prefer`. Raises
    `ModelNotFoundError` for a missing file, `UsageError` for a broken archive, one without that member, or anything too
    large.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            kind = _packing(file)
            if kind == "zip":
                return _from_zip(path, file, member, prefer)
            if kind == "tar":
                return _from_tar(path, file, member, prefer)
            if kind == "gzip":
                name = path.stem if path.suffix.lower() == ".gz" else path.name
                with gzip.GzipFile(fileobj=file) as unpacked:
                    return DataFile(name, _read(unpacked, str(path)))
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


def packing(path: str | Path) -> Literal["zip", "tar", "gzip"] | None:
    """How a file is packed: a ZIP archive, a .tar.gz one, by gzip alone, or (as one that is not there) not at all."""
    try:
        with Path(path).open("rb") as file:
            return _packing(file)
    except (OSError, ValueError):
        return None


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


def _packing(file: IO[bytes]) -> Literal["zip", "tar", "gzip"] | None:
    """By the first bytes; the file is at its beginning again."""
    magic = file.read(4)
    file.seek(0)
    if magic == b"PK\x03\x04":
        return "zip"
    if magic[:2] != b"\x1f\x8b":
        return None
    try:
        with gzip.GzipFile(fileobj=file) as unpacked:  # which leaves the file open
            block = unpacked.read(tarfile.BLOCKSIZE)
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return "tar" if block == bytes(tarfile.BLOCKSIZE) else "gzip"  # zeros: an archive of nothing
    except (OSError, EOFError, zlib.error):
        return "tar"  # it is broken, which who reads it tells
    finally:
        file.seek(0)
    return "tar"


def _from_zip(path: Path, file: IO[bytes], member: str | None, prefer: Collection[str]) -> DataFile:
    with zipfile.ZipFile(file) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        name = _choose(path, [info.filename for info in infos], member, prefer)
        found = next(info for info in infos if info.filename == name)
        if found.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UsageError(f"{path} is packed by an unusual method", f"Unpack it, and name {name}.")
        with archive.open(found) as inside:
            return DataFile(PurePosixPath(name).name, _read(inside, f"{name} in {path}"))


def _from_tar(path: Path, file: IO[bytes], member: str | None, prefer: Collection[str]) -> DataFile:
    """Its members come one after the other: those before the wanted one have to be unpacked to be passed over."""
    if member is None:  # all have to be seen before one is chosen, and none is kept meanwhile
        member = PurePosixPath(_choose(path, [info.name for info, _ in _members(path, file)], None, prefer)).name
    names = []
    for info, archive in _members(path, file):
        names.append(info.name)
        if PurePosixPath(info.name).name == member:
            inside = archive.extractfile(info)
            assert inside is not None  # as isfile() says
            with inside:
                return DataFile(member, _read(inside, f"{info.name} in {path}"))
    raise _not_held(path, names, member)


def _members(path: Path, file: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """The files of a .tar.gz archive, each to be read before the next one. Raises `UsageError` for too much."""
    file.seek(0)
    count = passed = 0
    with _Bounded(fileobj=file) as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as archive:
        for info in archive:
            if info.isfile():
                count += 1
                yield info, archive
            passed += info.size
            if passed > 16 * MOST_BYTES or count > _MOST_MEMBERS:
                raise UsageError(f"{path} is too large for a data set", "Name an unpacked file.")


class _Bounded(gzip.GzipFile):
    """No part that is read at once is larger than a data set, whatever size a header claims for the next one."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MOST_BYTES + 1:
            raise UsageError(f"{self.name} has a part of more than {MOST_BYTES >> 20} MiB", "Name an unpacked file.")
        return super().read(size)


def _choose(path: Path, names: list[str], member: str | None, prefer: Collection[str]) -> str:
    """The wanted one of an archive's members. Raises `UsageError`."""
    if member is None:
        found = [name for name in names if PurePosixPath(name).name in prefer] if len(names) > 1 else names
    else:
        found = [name for name in names if PurePosixPath(name).name == member]
    if len(found) == 1:
        return found[0]
    raise _not_held(path, names, member)


def _not_held(path: Path, names: list[str], member: str | None) -> UsageError:
    """What is wrong with the members of an archive, of which none or more than one is the wanted one."""
    there = ", ".join(name[:80] for name in names[:5]) + (", ..." if len(names) > 5 else "")
    if member is None and not names:
        return UsageError(f"{path} holds no file", "Name another one.")
    if member is None:
        return UsageError(f"{path} holds several files: {there}", "Unpack it, and name one of them.")
    if (count := sum(PurePosixPath(name).name == member for name in names)) > 1:
        return UsageError(f"{path} has {count} members named {member}", "Unpack it, and name one of them.")
    return UsageError(
        f"{path} does not hold {member}, but {there or 'nothing'}",
        "Name the archive that is published, or the unpacked file.",
    )


def _read(file: IO[bytes] | gzip.GzipFile, what: str) -> bytes:
    """All of it. Whatever an archive says of the size, no more than the limit is unpacked."""
    content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise UsageError(f"{what} has more than {MOST_BYTES >> 20} MiB", "Take a part of it.")
    return content
