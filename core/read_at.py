"""Reading a part of a file at a place, into a buffer that is there already.

Not by mapping the file: a mapped one counts as the process's memory and faults page by page.
"""

import os
from pathlib import Path

from .errors import CheckpointError


def read_at(path: Path, start: int, buffer: memoryview) -> None:
    """Fills the buffer, of bytes, from byte `start` on.

    Raises `CheckpointError` when the file can not be read, or ends too early.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            done = 0
            while done < len(buffer):
                count = os.preadv(descriptor, [buffer[done : done + (1 << 30)]], start + done)
                if count == 0:
                    raise CheckpointError(
                        f"{path} ends at byte {start + done} while it is being read", "Fetch or save it again."
                    )
                done += count
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(f"{path} can not be read: {error.strerror}") from error
