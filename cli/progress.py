"""Progress on stderr: a bar on a terminal, otherwise a line about every ten seconds, for logs and CI.

Both are written when the library reports a step, not by a thread, which would disturb measurements. If stderr cannot be
written, progress is omitted and the work continues.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from dgpt2_quant.core.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LINE_SECONDS = 10.0  # before the first line, and between lines
_SPEED_SECONDS = 600.0  # over which the time left is estimated: in a large model a step takes minutes
_FAILURES = (OSError, ValueError)  # ValueError: the stream is closed


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yields the `progress` argument of the library, which is called with (done, total, what).

    The bar appears with the first call, and is removed after the block; lines stay.
    """
    if not _has_bar():
        yield _Lines()
        return
    with ExitStack() as stack:
        yield _Drawn(stack)


class _Lines:
    """`[1:05] speed, round 2 of 3, Q4_0: 45 %, 1:20 left`."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()
        self._first = (0, 0, self._started)  # done, total and time of the first report of this whole
        self._done = 0

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        before, whole, begun = self._first
        if total != whole or done < self._done:
            before, whole, begun = self._first = (done, total, now)
        self._done = done
        if now - self._last < LINE_SECONDS:
            return
        self._last = now
        share = f": {100 * done // total} %" if total > 0 else ""
        if before < done < total:
            share += f", {_clock((now - begun) * (total - done) / (done - before))} left"
        line = f"[{_clock(now - self._started)}] {what}{share}\n"
        with suppress(*_FAILURES, AttributeError):  # AttributeError: Python has no stderr
            # unbuffered: Python would retry a failed write at exit, and exit with 120
            os.write(sys.stderr.fileno(), line.encode("utf-8", "replace"))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes}:{seconds:02}"


class _Drawn:
    """Draws Rich's bar at each call."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._bar: Bar | None = None

    def __call__(self, done: int, total: int, what: str) -> None:
        with suppress(*_FAILURES):
            if self._bar is None:
                self._bar = _new_bar()
                self._stack.callback(_stop, self._bar)
                self._bar.add_task("")  # first: a failed start is not repeated
                self._bar.start()
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, description=what)
            self._bar.refresh()


def _has_bar() -> bool:
    """Whether stderr is a terminal that can overwrite a line."""
    try:
        return sys.stderr.isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")
    except (ValueError, AttributeError):
        return False


def _stop(bar: "Bar") -> None:
    with suppress(*_FAILURES):
        bar.stop()


def _new_bar() -> "Bar":
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar
    from rich.table import Column

    what = TextColumn(
        "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
    )
    columns = (BarColumn(20), TaskProgressColumn(), TimeRemainingColumn(), what)
    return Bar(
        *columns,
        console=Console(stderr=True),
        transient=True,
        auto_refresh=False,
        expand=True,
        speed_estimate_period=_SPEED_SECONDS,
    )
