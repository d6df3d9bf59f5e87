"""Reads a part of a file into an existing buffer.

Not by mmap: mapped pages count as the process's memory, and fault one by one.
"""

import os
from pathlib import Path

from .errors import CheckpointError


def read_at(path: Path, start: int, buffer: memoryview) -> None:
    """Fills the buffer with the bytes from `start` on.

    Raises `CheckpointError` if the file cannot be read or is too short.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            done = 0
            while done < len(buffer):
                count = os.preadv(descriptor, [buffer[done : done + (1 << 30)]], start + done)
                if count == 0:
                    raise CheckpointError(
                        f"{path} ends at byte {start + done} while it is read", "Download or save it again."
                    )
                done += count
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
