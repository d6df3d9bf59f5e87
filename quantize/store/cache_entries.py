"""The cache: lists its entries, removes them, and keeps converted files within a limit.

An entry is a file with the exact name and place that this tool gives it. All other files stay, and symbolic links are
not followed: DGPT2_QUANT_CACHE may name a folder that is also used for other things.
"""

import fcntl
import logging
import os
import re
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dgpt2_quant.core.cache_folder import cache_folder
from dgpt2_quant.core.errors import OutputError, UsageError
from dgpt2_quant.core.quant_types import QUANT_TYPES
from dgpt2_quant.core.scratch import SCRATCH_FOLDERS, remove_scratch, scratch_files
from dgpt2_quant.core.sizes import parse_bytes

from .conversion_lock import free_folder, holder_of, lock_of
from .file_record import record_of

DEFAULT_LIMIT = "10GB"
CONVERTED, UNFINISHED = "converted", "unfinished conversion"
_LIMIT = "DGPT2_QUANT_CACHE_LIMIT"
_FOLDERS = ("models", r"(?P<model>.+)-[0-9a-f]{16}(-[0-9a-f]{12})?", r"stock-\d.*")  # of converted files
_MADE_BY = r"\d+(\.\d+)+\w*(-[0-9a-f]{12})?"
_LAYOUT: dict[str, Sequence[str]] = {
    CONVERTED: (*_FOLDERS, r"(?P<file>.+)\.(?P<type>\w+)\.gguf"),
    "calibration": ("calibration", rf"(?P<model>.+)-[0-9a-f]{{16}}-{_MADE_BY}\.gguf"),
    "effects": ("effects", r"((?P<model>.+)-)?[0-9a-f]{32}\.json"),
    "recipe": ("recipes", r"(?P<model>.+)\.gguf\.[0-9a-f]{12}\.recipe\.json"),
    "reference logits": ("reference", r"[0-9a-f]{32}\.f32"),
    "data set": ("datasets", r"[0-9a-f]{16}-.+"),
    "source hash": ("sources", r"[0-9a-f]{32}\.json"),
    UNFINISHED: SCRATCH_FOLDERS,
}
_PART = r"\..+\.[0-9a-f]{12}\.part"  # what a killed writer may leave (output_file.py)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheEntry:
    """One file in the cache, or the folder of an unfinished conversion.

    `last_used` is in seconds since 1970; `model` and `type` are None for other kinds.
    """

    kind: str
    model: str | None
    type: str | None
    path: Path
    bytes: int
    last_used: float


@dataclass(frozen=True)
class Cleared:
    """The entries that `clear_cache` removed, or would remove, and the folders that other processes convert into."""

    removed: list[CacheEntry]
    busy: list[Path]


def cache_entries() -> list[CacheEntry]:
    """All entries, by kind, most recently used first."""
    found = []
    for kind, patterns in _LAYOUT.items():
        for path, parts in _matching(cache_folder(), patterns):
            model, quant_type = parts.get("model"), parts.get("type")
            if kind == CONVERTED and (parts["file"] != model or quant_type not in QUANT_TYPES):
                continue  # not a name that this tool gives
            with suppress(FileNotFoundError):  # another process removed it
                status = path.lstat()
                used = max(status.st_atime, status.st_mtime)
                files = scratch_files(path) if kind == UNFINISHED else [path]
                size = sum(file.stat().st_size for file in files)
                found.append(CacheEntry(kind, model, quant_type, path, size, used))
    kinds = list(_LAYOUT)
    return sorted(found, key=lambda entry: (kinds.index(entry.kind), -entry.last_used))


def clear_cache(older_than: float | None = None, *, dry_run: bool = False) -> Cleared:
    """Removes the entries that were not used for `older_than` seconds (default: all).

    Files are removed one by one: an interruption leaves the rest unchanged. Raises `OutputError`.
    """
    now = time.time()
    chosen = [entry for entry in cache_entries() if older_than is None or now - entry.last_used >= older_than]
    if dry_run:
        return Cleared(chosen, [])
    folders = sorted({entry.path.parent for entry in chosen if entry.kind == CONVERTED})
    removed = [entry for entry in chosen if entry.kind != CONVERTED and _remove(entry)]
    busy = [entry.path for entry in chosen if entry.kind == UNFINISHED and entry not in removed]
    for folder in folders:
        with free_folder(folder) as free:
            if free:
                removed += [entry for entry in chosen if entry.path.parent == folder and _remove(entry)]
            else:
                busy.append(folder)
    if older_than is None:
        _remove_left_behind()
    for folder, _ in _matching(cache_folder(), _FOLDERS):
        _tidy(folder)
    return Cleared(removed, busy)


def converted_limit() -> int:
    """The limit of converted files in bytes: $DGPT2_QUANT_CACHE_LIMIT, or 10 GB. Raises `UsageError`."""
    text = os.environ.get(_LIMIT) or DEFAULT_LIMIT
    try:
        return parse_bytes(text)
    except UsageError as error:
        raise UsageError(f"{_LIMIT} must be a size, not {text[:60]!r}", error.hint) from error


def enforce_limit(limit: int, keep: Collection[Path]) -> None:
    """Removes the least recently used converted files, except `keep`, until the rest takes at most `limit` bytes."""
    converted = [entry for entry in cache_entries() if entry.kind == CONVERTED]
    excess = sum(entry.bytes for entry in converted) - limit
    removed = []
    for entry in reversed(converted):
        if excess <= 0:
            break
        if entry.path in keep:
            continue
        with suppress(OutputError), free_folder(entry.path.parent) as free:
            if free and _remove(entry):
                removed.append(entry)
                excess -= entry.bytes
    if removed:
        names = ", ".join(entry.path.name for entry in removed[:3]) + (", ..." if len(removed) > 3 else "")
        _log.warning(
            "Removed the converted files that were used least recently (%d: %s), to keep the cache within %s=%s",
            len(removed),
            names,
            _LIMIT,
            os.environ.get(_LIMIT) or DEFAULT_LIMIT,
        )
    for folder in {entry.path.parent for entry in removed}:
        _tidy(folder)


def _matching(folder: Path, patterns: Sequence[str]) -> Iterator[tuple[Path, dict[str, str]]]:
    """The files whose path below `folder` matches the patterns, one for each part.

    For `_FOLDERS` and `SCRATCH_FOLDERS`, the folders.
    """
    first, *rest = patterns
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError:  # missing or not readable
        return
    for entry in entries:
        match = re.fullmatch(first, entry.name, re.DOTALL)
        if match is None or entry.is_symlink():
            continue
        path, parts = Path(entry.path), match.groupdict()
        if rest and entry.is_dir():
            yield from ((below, parts | more) for below, more in _matching(path, rest))
        elif not rest and (entry.is_file() or first in (_FOLDERS[-1], SCRATCH_FOLDERS[-1])):
            yield path, parts


def _remove(entry: CacheEntry) -> bool:
    """Whether it existed, and was not in use. Raises `OutputError`."""
    try:
        if entry.kind == UNFINISHED:
            return remove_scratch(entry.path)
        entry.path.unlink()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise OutputError(f"{entry.path} cannot be removed: {error.strerror}", "Check the folder's owner.") from error
    return True


def _remove_left_behind() -> None:
    """Removes hidden files of writers that were killed: nobody holds their lock."""
    for patterns in {tuple(patterns[:-1]) for patterns in _LAYOUT.values()}:
        for path, _ in _matching(cache_folder(), [*patterns, _PART]):
            with suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def _tidy(folder: Path) -> None:
    """Removes a folder of converted files, its record, its lock and its model's folder, if it holds nothing else."""
    own = {lock_of(folder), holder_of(folder)}

    def is_empty() -> bool:
        return set(folder.iterdir()) <= own

    with suppress(OSError, OutputError):
        if not is_empty():  # taking the lock would create a file in a folder of others
            return
        with free_folder(folder) as free:
            if free and is_empty():
                for path in (record_of(folder), *own):
                    path.unlink(missing_ok=True)
                folder.rmdir()
                folder.parent.rmdir()
