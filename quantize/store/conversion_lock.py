"""One conversion at a time into a folder of the cache. Who has to wait hears for whom.

Who converts is written next to the lock: the lock alone says only that somebody does.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dgpt2_quant.core.errors import OutputError

_log = logging.getLogger(__name__)
_LOOKS, _PAUSE = 10, 0.05  # for a holder that has the lock, and has not yet written who it is


@contextmanager
def conversion_lock(folder: Path, what: str) -> Iterator[None]:
    """Held while `what` is converted into the folder, which is made; waits, and reports it, while another holds it."""
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_of(folder))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        holder = None
        for _ in range(_LOOKS):
            if holder := _holder(folder):
                break
            with suppress(Timeout):
                lock.acquire(timeout=_PAUSE)
                break
        if not lock.is_locked:
            _log.warning("Waiting for %s", holder or f"another process, which converts into {folder}")
            lock.acquire()
    try:
        with suppress(OSError):  # it is only for those who wait
            holder_of(folder).write_text(
                json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": time.time(), "what": what})
            )
        yield
    finally:
        with suppress(OSError):
            holder_of(folder).unlink()
        lock.release(force=True)


@contextmanager
def free_folder(folder: Path) -> Iterator[bool]:
    """Whether nobody converts into the folder; if so, nobody does before the block ends. Raises `OutputError`."""
    from filelock import FileLock, Timeout

    lock = FileLock(lock_of(folder))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    except OSError as error:
        raise OutputError(f"{folder} cannot be changed: {error.strerror}", "Is the folder yours?") from error
    try:
        yield True
    finally:
        lock.release(force=True)


def lock_of(folder: Path) -> Path:
    """Where the lock of a folder lies."""
    return folder / ".lock"


def holder_of(folder: Path) -> Path:
    """Where it is written who holds the lock."""
    return folder / ".lock.json"


def _holder(folder: Path) -> str | None:
    """Who converts, in words; None where it is not written, or is that of a process which ended."""
    with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
        known = json.loads(holder_of(folder).read_bytes())
        pid, host = int(known["pid"]), str(known["host"])
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(known["since"])))
        if host == socket.gethostname():
            with suppress(PermissionError):  # it is there, and of another user
                os.kill(pid, 0)
        return f"process {pid} on {host}, which has been converting {known['what']} since {since}"
    return None
