"""A lock: one conversion at a time into a folder of the cache. A process that waits reports which one it waits for.

The holder is written next to the lock, which by itself does not name it.
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
_LOOKS, _PAUSE = 10, 0.05  # for a holder that has the lock and has not yet written its name


@contextmanager
def conversion_lock(folder: Path, what: str) -> Iterator[None]:
    """Holds the lock of a folder, which is created, while `what` is converted; reports whom it waits for."""
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
            _log.warning("Waiting for %s", holder or f"another process that converts into {folder}")
            lock.acquire()
    try:
        with suppress(OSError):  # only for the message of those that wait
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
    """Yields whether no process converts into the folder, and keeps it so in the block. Raises `OutputError`."""
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
    """The path of a folder's lock."""
    return folder / ".lock"


def holder_of(folder: Path) -> Path:
    """The path of the file that names the lock's holder."""
    return folder / ".lock.json"


def _holder(folder: Path) -> str | None:
    """The holder, in words; None where it is not written, or has ended."""
    with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
        known = json.loads(holder_of(folder).read_bytes())
        pid, host = int(known["pid"]), str(known["host"])
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(known["since"])))
        if host == socket.gethostname():
            with suppress(PermissionError):  # it runs, as another user
                os.kill(pid, 0)
        return f"process {pid} on {host}, which has been converting {known['what']} since {since}"
    return None
