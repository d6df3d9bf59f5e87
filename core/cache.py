"""The cache folder: where it is, what decides its entries, and when each was last used.

Every entry carries `made_by()` in its name, so that nothing made by other code is taken for what this code would make.
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
_DEPENDENCIES = ("llama-cpp-python", "numpy")  # the quantizers, and the arithmetic of calibration


def cache_folder() -> Path:
    """$DGPT2_QUANT_CACHE, else $XDG_CACHE_HOME/dgpt2-quant, else ~/.cache/dgpt2-quant; `~` is expanded."""
    if own := os.environ.get("DGPT2_QUANT_CACHE"):
        return user_path(own)
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "dgpt2-quant"


@functools.cache
def made_by(*packages: str) -> str:
    """The version, and a hash of all that decides an entry: the code of `core`, of `quantize` and of the other packages
    that are named, and the versions of llama-cpp-python and NumPy.

    A hash of the code, not a number that somebody has to raise: a number would be forgotten. Reading it takes 1 ms.
    """
    from importlib.metadata import version

    ours = Path(__file__).parents[1]
    digest = hashlib.sha256("".join(f"{name} {version(name)}\n" for name in _DEPENDENCIES).encode())
    for package in ("core", "quantize", *packages):
        for path in sorted((ours / package).rglob("*.py")):  # none in an installation of bytecode alone
            digest.update(f"{path.relative_to(ours)}\n".encode() + path.read_bytes())
    return f"{tool_version()}-{digest.hexdigest()[:12]}"


def touch(path: Path) -> None:
    """Marks an entry as used now, by its access time: the modification time is that of its content."""
    with suppress(OSError):  # of somebody else, or on a read-only disk
        os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))


def read_entry(path: Path, parse: Callable[[Path], Parsed]) -> Parsed | None:
    """What `parse` reads from an entry, which then counts as used; None where there is none, or a damaged one.

    A damaged one is reported; the caller makes it again.
    """
    if not path.is_file():
        return None
    try:
        found = parse(path)
    except OSError:
        return None
    except (DgptQuantError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        _log.warning("%s is damaged, and is made again", path)
        return None
    touch(path)
    return found
