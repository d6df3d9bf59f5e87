"""Runs child processes with a time limit, and ends everything that they started."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

Waiting = Callable[[float, float], None]
"""Called with the seconds waited so far, and the limit."""

WAIT_SECONDS = 5.0  # between calls of `Waiting`


def run_child(
    command: Sequence[str],
    *,
    timeout: float,
    environment: Mapping[str, str] | None = None,
    waiting: Waiting | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Runs a program without stdin, in a new process group, which is killed after `timeout` seconds or an interrupt.

    Raises `subprocess.TimeoutExpired`, and `OSError` if it cannot be started.
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
    """Kills a child that leads a process group, with everything that it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
