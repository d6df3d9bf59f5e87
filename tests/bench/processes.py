"""Processes that must be gone."""

import os
import time


def await_end(process: int) -> None:
    """Returns when it has ended, which a process that was killed does soon. Raises `AssertionError` after a while."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            os.kill(process, 0)
            with open(f"/proc/{process}/stat", encoding="utf-8") as file:  # noqa: PTH123
                if file.read().rpartition(")")[2].split()[0] == "Z":  # ended, and nobody has asked for its status
                    return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.01)
    raise AssertionError(f"process {process} is still there")
