"""Progress on stderr: a bar on a terminal, and elsewhere a line about every ten seconds, for logs and CI.

Nothing is drawn by a thread of its own, which would run next to what is measured: both are written when the library
reports a step. Where stderr is closed, its disk full or its reader gone, progress is left out and the work goes on.
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

LINE_SECONDS = 10.0  # from the start to the first line, and between two: a quick run prints none
_FAILURES = (OSError, ValueError)  # ValueError: the stream is closed


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Gives what the library's `progress=` takes: called with (done, total, what).

    The bar appears with the first call and goes away with the block; lines stay.
    """
    if not _has_bar():
        yield _Lines()
        return
    with ExitStack() as stack:
        yield _Drawn(stack)


class _Lines:
    """`[1:05] speed, round 2 of 3, Q4_0: 45 %`."""

    def __init__(self) -> None:
        self._started = self._last = time.monotonic()

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if now - self._last < LINE_SECONDS:
            return
        self._last = now
        minutes, seconds = divmod(int(now - self._started), 60)
        share = f": {100 * done // total} %" if total > 0 else ""
        line = f"[{minutes}:{seconds:02}] {what}{share}\n"
        with suppress(*_FAILURES, AttributeError):  # AttributeError: Python has no stderr
            # past Python's buffer: what a full disk refused would be tried again at exit, and make its status 120
            os.write(sys.stderr.fileno(), line.encode("utf-8", "replace"))


class _Drawn:
    """Rich's bar, drawn when it is called."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._bar: Bar | None = None

    def __call__(self, done: int, total: int, what: str) -> None:
        with suppress(*_FAILURES):
            if self._bar is None:
                self._bar = _new_bar()
                self._stack.callback(_stop, self._bar)
                self._bar.start()
                self._bar.add_task("")
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, description=what)
            self._bar.refresh()


def _has_bar() -> bool:
    """Whether stderr is a terminal that can take a line back."""
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
    return Bar(*columns, console=Console(stderr=True), transient=True, auto_refresh=False, expand=True)
