"""Processes of other libraries: workers that answer lines of JSON, and programs that run once."""

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .child_process import WAIT_SECONDS, Waiting, end_group, run_child

# Peers use the defaults of their libraries, whatever the user has set for ours.
_WAIT_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_LONGEST_LINE = 1 << 20
_LAST_WORDS = 300
END_TIMEOUT = 10.0  # seconds from the end of its output to its exit


class PeerFailed(Exception):
    """Why a peer cannot take part, or continue."""


class Worker:
    """A child process that answers each line with a line, in a temporary folder and a new process group."""

    def __init__(self, command: Sequence[str], threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dgpt2-quant-peer-", ignore_cleanup_errors=True)
        self._said = Path(self._folder.name, "stderr")
        self._rest = b""
        try:
            with self._said.open("wb") as said:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    cwd=self._folder.name,
                    env=_environment(threads),
                    bufsize=0,
                    start_new_session=True,  # Ctrl-C reaches only us, and the group ends as a whole
                )
        except BaseException as error:
            self._folder.cleanup()
            if isinstance(error, OSError):
                raise PeerFailed(f"it cannot be started: {error}") from error
            raise

    def ask(self, question: dict[str, Any]) -> None:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):  # `answer` reports the reason
            self._process.stdin.write(json.dumps(question).encode() + b"\n")

    def answer(self, timeout: float, waiting: Waiting | None = None) -> dict[str, Any]:
        """The next line. Raises `PeerFailed` if the child ends, exceeds the timeout, or answers something else."""
        found = _parsed(self._line(timeout, waiting))
        if not isinstance(found, dict):
            raise PeerFailed(f"it answered {shortened(found)}")
        return found

    def _line(self, timeout: float, waiting: Waiting | None) -> bytes:
        assert self._process.stdout
        pipe, started = self._process.stdout.fileno(), time.monotonic()
        while b"\n" not in self._rest:
            left = started + timeout - time.monotonic()
            ready, _, _ = select.select([pipe], [], [], max(0.0, min(left, WAIT_SECONDS)))
            if not ready:
                if left <= WAIT_SECONDS:
                    raise PeerFailed(f"it said nothing for {timeout:g} s; last: {self._last_words()}")
                if waiting:
                    waiting(time.monotonic() - started, timeout)
                continue
            part = os.read(pipe, 1 << 16)
            if not part:
                raise PeerFailed(f"{self._end()}: {self._last_words()}")
            self._rest += part
            if len(self._rest) > _LONGEST_LINE:
                raise PeerFailed(f"it answered {shortened(self._rest)}")
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def close(self) -> None:
        """Kills the child and everything that it has started."""
        end_group(self._process)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._folder.cleanup()

    def _end(self) -> str:
        try:
            return _ended(self._process.wait(END_TIMEOUT))
        except subprocess.TimeoutExpired:
            return "it has closed its output"

    def _last_words(self) -> str:
        try:
            return _last_words(self._said.read_bytes()[-8192:])
        except OSError:
            return "nothing"


def run_once(command: Sequence[str], threads: int, timeout: float, waiting: Waiting | None = None) -> Any:
    """The JSON output of a program. Raises `PeerFailed` if it cannot be started, fails, or takes too long."""
    try:
        done = run_child(command, timeout=timeout, environment=_environment(threads), waiting=waiting)
    except subprocess.TimeoutExpired as error:
        raise PeerFailed(f"it took more than {timeout:g} s") from error
    except OSError as error:
        raise PeerFailed(f"it cannot be started: {error}") from error
    if done.returncode:
        raise PeerFailed(f"{_ended(done.returncode)}: {_last_words(done.stderr)}")
    return _parsed(done.stdout)


def number(document: dict[str, Any], key: str, least: float = 0.0) -> float:
    """A finite number, at least `least`. Raises `PeerFailed` for anything else."""
    value: Any = document.get(key)
    if type(value) not in (int, float) or not math.isfinite(value) or value < least:
        raise PeerFailed(f"it answered {shortened(value)} for {key}")
    return float(value)


def shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _environment(threads: int) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _WAIT_SETTINGS}
    return {**kept, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PeerFailed(f"it answered {shortened(line)}") from error


def _ended(status: int) -> str:
    if status < 0:
        return f"it was ended by a signal ({signal.strsignal(-status) or -status})"
    return f"it ended with status {status}"


def _last_words(said: bytes) -> str:
    words = " ".join(said.decode("utf-8", "replace").split())
    return words[-_LAST_WORDS:] or "nothing"
