"""Unpacks gzip files, and single members of ZIP or .tar.gz archives.

Archives are not trusted: nothing is unpacked to disk, a member is found by the last part of its name, and the size of
the member and of all data before it is limited.
"""

import gzip
import hashlib
import io
import tarfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import IO, Literal

from .errors import DgptQuantError, UsageError

MOST_BYTES = 1 << 30  # 1 GiB: enwik9, the largest common evaluation text, has 10^9 bytes
Packing = Literal["zip", "tar", "gzip"]
_MOST_MEMBERS = 10_000
_GZIP, _ZIP = b"\x1f\x8b", b"PK\x03\x04"
_KINDS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"GGUF": "a GGUF file",
    b"\xfd7zXZ\0": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"BZh": "packed by bzip2",
}
_BROKEN = (
    OSError,
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True)
class DataFile:
    """The unpacked content of a file; `name` is for messages, `sha256` the hash of the content."""

    name: str
    content: bytes

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


def is_packed(content: bytes | bytearray) -> bool:
    """Whether the content begins like a gzip or ZIP file."""
    return content.startswith((_GZIP, _ZIP))


def detect_packing(content: bytes) -> Packing | None:
    """The packing of an input: ZIP, .tar.gz, gzip, or None."""
    if content.startswith(_ZIP):
        return "zip"
    if not content.startswith(_GZIP):
        return None
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as inside:
            block = inside.read(tarfile.BLOCKSIZE)
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return "tar" if block == bytes(tarfile.BLOCKSIZE) else "gzip"  # zeros: an empty archive
    except (OSError, EOFError, zlib.error):
        return "gzip"  # broken; unpacking reports it
    return "tar"


def unpack(
    shown: str, name: str, content: bytes, packing: Packing, member: str | None, prefer: Collection[str]
) -> DataFile:
    """Implements `Input.file`; `shown` names the archive in messages, `name` is that of an input packed by gzip."""
    file = io.BytesIO(content)
    try:
        if packing == "zip":
            return _from_zip(shown, file, member, prefer)
        if packing == "tar":
            return _from_tar(shown, file, member, prefer)
        with gzip.GzipFile(fileobj=file) as inside:
            return DataFile(name[:-3] if name.lower().endswith(".gz") else name, _read(inside, shown))
    except DgptQuantError:
        raise
    except _BROKEN as error:
        reason = str(error) or type(error).__name__
        kind = "gzip" if packing == "gzip" else f"{'.tar.gz' if packing == 'tar' else 'ZIP'} archive"
        raise UsageError(
            f"{shown} is a broken {kind} file: {reason}", "Is it complete? `gzip -t` or `unzip -t` checks it."
        ) from error


def too_large_error(what: str) -> UsageError:
    """The error for an input of more than `MOST_BYTES`."""
    return UsageError(f"{what} has more than {MOST_BYTES >> 20} MiB", "Take a part of it, for example with `head -c`.")


def not_text_error(what: str, content: bytes | bytearray, error: UnicodeDecodeError | None = None) -> UsageError:
    """The error for content with a NUL byte, or not in UTF-8 (as `error` reports)."""
    if kinds := [kind for start, kind in _KINDS.items() if content.startswith(start)]:
        return UsageError(f"{what} is {kinds[0]}, not UTF-8 text", "Unpack it, or convert it with iconv.")
    if error is None:
        return UsageError(f"{what} is binary (NUL byte at offset {content.find(0)}), not UTF-8 text", "Name a text.")
    line = content.count(b"\n", 0, error.start) + 1
    return UsageError(
        f"{what} is not UTF-8: line {line}, byte 0x{content[error.start]:02x} at offset {error.start}",
        "Convert it, for example with `iconv -f LATIN1 -t UTF-8`.",
    )


def _from_zip(shown: str, file: IO[bytes], member: str | None, prefer: Collection[str]) -> DataFile:
    with zipfile.ZipFile(file) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        name = _choose(shown, [info.filename for info in infos], member, prefer)
        found = next(info for info in infos if info.filename == name)
        if found.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UsageError(f"{shown} uses an unsupported compression method", f"Unpack it, and name {name}.")
        with archive.open(found) as inside:
            return DataFile(PurePosixPath(name).name, _read(inside, f"{name} in {shown}"))


def _from_tar(shown: str, file: IO[bytes], member: str | None, prefer: Collection[str]) -> DataFile:
    """Members follow one another: all data before the wanted member must be decompressed too."""
    if member is None:  # list all names first, and keep no content
        member = PurePosixPath(_choose(shown, [info.name for info, _ in _members(shown, file)], None, prefer)).name
    names = []
    for info, archive in _members(shown, file):
        names.append(info.name)
        if PurePosixPath(info.name).name == member:
            inside = archive.extractfile(info)
            assert inside is not None  # isfile() is true
            with inside:
                return DataFile(member, _read(inside, f"{info.name} in {shown}"))
    raise _member_error(shown, names, member)


def _members(shown: str, file: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """The files of a .tar.gz archive, each to be read before the next. Raises `UsageError` if it is too large."""
    file.seek(0)
    count = passed = 0
    with _Bounded(shown, fileobj=file) as inside, tarfile.open(fileobj=inside, mode="r:") as archive:
        for info in archive:
            if info.isfile():
                count += 1
                yield info, archive
            passed += info.size
            if passed > 4 * MOST_BYTES or count > _MOST_MEMBERS:
                raise UsageError(f"{shown} is too large for a data set", "Name an unpacked file.")


class _Bounded(gzip.GzipFile):
    """Limits every read, whatever size a tar header claims."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= MOST_BYTES + 1:
            raise UsageError(f"{self.name} has a part of more than {MOST_BYTES >> 20} MiB", "Name an unpacked file.")
        return super().read(size)


def _choose(shown: str, names: list[str], member: str | None, prefer: Collection[str]) -> str:
    """The name of the wanted member. Raises `UsageError`."""
    if member is None:
        found = [name for name in names if PurePosixPath(name).name in prefer] if len(names) > 1 else names
    else:
        found = [name for name in names if PurePosixPath(name).name == member]
    if len(found) == 1:
        return found[0]
    raise _member_error(shown, names, member)


def _member_error(shown: str, names: list[str], member: str | None) -> UsageError:
    """The error for an archive with no wanted member, or several."""
    there = ", ".join(name[:80] for name in names[:5]) + (", ..." if len(names) > 5 else "")
    if member is None and not names:
        return UsageError(f"{shown} contains no file", "Name another one.")
    if member is None:
        return UsageError(f"{shown} contains several files: {there}", "Unpack it, and name one of them.")
    if (count := sum(PurePosixPath(name).name == member for name in names)) > 1:
        return UsageError(f"{shown} has {count} members named {member}", "Unpack it, and name one of them.")
    return UsageError(
        f"{shown} does not contain {member}, but {there or 'nothing'}",
        "Name the archive as published, or the unpacked file.",
    )


def _read(file: IO[bytes] | gzip.GzipFile, what: str) -> bytes:
    """Reads all of it, up to the limit, whatever size the archive claims."""
    content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise too_large_error(what)
    return content
