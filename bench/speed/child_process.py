"""Child processes that are waited for, but never for ever, and that leave nothing behind."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

Waiting = Callable[[float, float], None]
"""Called with the seconds that a child has been waited for, and how many it may take."""

WAIT_SECONDS = 5.0  # from one call of `Waiting` to the next


def run_child(
    command: Sequence[str],
    *,
    timeout: float,
    environment: Mapping[str, str] | None = None,
    waiting: Waiting | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Runs a program to its end, without stdin. It gets a process group of its own: where it takes longer than
    `timeout` seconds, or this process is interrupted, everything that it has started ends with it.

    Raises `subprocess.TimeoutExpired`, and `OSError` where it cannot be started.
    """
    started = time.monotonic()
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    ) as child:
        try:
            while True:
                left = started + timeout - time.monotonic()
                try:
                    out, error = child.communicate(timeout=max(0.0, min(left, WAIT_SECONDS)))
                    return subprocess.CompletedProcess(command, child.returncode, out, error)
                except subprocess.TimeoutExpired:
                    if left <= WAIT_SECONDS:
                        raise
                if waiting:
                    waiting(time.monotonic() - started, timeout)
        except BaseException:
            end_group(child)
            raise


def end_group(child: subprocess.Popen[bytes]) -> None:
    """Ends a child that has a group of its own, whatever it is doing, and whatever it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
