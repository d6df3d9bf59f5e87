"""Checks that the files of a folder in the cache are those that were written there.

Size, modification time and hash of each file are recorded when it is complete. A file with the recorded size and time
counts as whole and is not read; any other is read and must have the recorded hash.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dgpt2_quant.core.atomic_file import output_file
from dgpt2_quant.core.errors import DgptQuantError, OutputError
from dgpt2_quant.quantize.checkpoint.folder import file_sha256


class KeptFiles:
    """The record of a folder, read once; it is next to the folder, with `.json` after its name."""

    def __init__(self, folder: Path) -> None:
        self._record = record_of(folder)
        self._known: dict[str, Any] = {}
        with suppress(OSError, ValueError, RecursionError):
            known = json.loads(self._record.read_bytes())
            self._known = known if isinstance(known, dict) else {}

    def is_unchanged(self, path: Path) -> bool:
        """By size and modification time."""
        known = self._known.get(path.name)
        return isinstance(known, dict) and _stamp(path) == {name: known.get(name) for name in ("bytes", "mtime_ns")}

    def is_whole(self, path: Path) -> bool:
        """By size and time, or by content where these have changed."""
        if self.is_unchanged(path):
            return True
        known, stamp = self._known.get(path.name), _stamp(path)
        if not isinstance(known, dict) or stamp is None or stamp["bytes"] != known.get("bytes"):
            return False
        with suppress(DgptQuantError):
            return file_sha256(path) == known.get("sha256")
        return False

    def record(self, hashes: Mapping[Path, str | None]) -> None:
        """Adds complete files; a file without a hash keeps its recorded one."""
        for path, sha256 in hashes.items():
            before = self._known.get(path.name, {})
            self._known[path.name] = {**(_stamp(path) or {}), "sha256": sha256 or before.get("sha256")}
        with (
            suppress(OutputError),
            output_file(self._record, overwrite=True) as file,
        ):
            file.write(json.dumps(self._known, indent=1).encode())


def record_of(folder: Path) -> Path:
    """The path of a folder's record."""
    return folder.with_name(f"{folder.name}.json")


def _stamp(path: Path) -> dict[str, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}
