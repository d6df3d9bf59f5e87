"""The cache folder: its location, versioned entry names, and the time of last use.

Every entry name contains `cache_version()`, so entries written by other code are never reused.
"""

import functools
import hashlib
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from .errors import DgptQuantError
from .paths import user_path
from .versions import tool_version

Parsed = TypeVar("Parsed")
_log = logging.getLogger(__name__)
_DEPENDENCIES = ("llama-cpp-python", "numpy")  # both affect the bytes of entries


def cache_folder() -> Path:
    """$DGPT2_QUANT_CACHE, else $XDG_CACHE_HOME/dgpt2-quant, else ~/.cache/dgpt2-quant; `~` is expanded."""
    if own := os.environ.get("DGPT2_QUANT_CACHE"):
        return user_path(own)
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dgpt2-quant"


@functools.cache
def cache_version(*packages: str) -> str:
    """The tool version and a hash of the code that decides an entry: `core`, `quantize`, the named packages, and the
    versions of llama-cpp-python and NumPy.

    A hash of the code cannot be forgotten, unlike a version number. It takes 1 ms.
    """
    from importlib.metadata import version

    ours = Path(__file__).parents[1]
    digest = hashlib.sha256("".join(f"{name} {version(name)}\n" for name in _DEPENDENCIES).encode())
    for package in ("core", "quantize", *packages):
        for path in sorted((ours / package).rglob("*.py")):  # none in an installation of bytecode only
            digest.update(f"{path.relative_to(ours)}\n".encode() + path.read_bytes())
    return f"{tool_version()}-{digest.hexdigest()[:12]}"


def touch(path: Path) -> None:
    """Marks an entry as used now by its access time; the modification time stays that of the content."""
    with suppress(OSError):  # another user's file, or a read-only disk
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def read_entry(path: Path, parse: Callable[[Path], Parsed]) -> Parsed | None:
    """Returns `parse(path)` and marks the entry as used; None if it is missing or damaged.

    Logs a warning for a damaged entry; the caller creates it again.
    """
    if not path.is_file():
        return None
    try:
        found = parse(path)
    except OSError:
        return None
    except (DgptQuantError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        _log.warning("%s is damaged and will be created again", path)
        return None
    touch(path)
    return found
