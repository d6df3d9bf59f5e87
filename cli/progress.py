"""A progress bar on stderr, where that is a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int, str], None] | None]:
    """Gives what the library's `progress=` takes: called with (done, total, what); None where nobody watches.

    The bar appears with the first call, and goes away with the block: where there is nothing to wait for, none is seen.
    """
    if not sys.stderr.isatty():
        yield None
        return
    with ExitStack() as stack:
        bar: Progress | None = None

        def update(done: int, total: int, what: str) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(_new_bar())
                bar.add_task("")
            bar.update(bar.task_ids[0], completed=done, total=total, description=what)
            bar.refresh()

        yield update


def _new_bar() -> "Progress":
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    # without a thread that draws it: it would run beside what is measured
    return Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
