"""A progress bar on stderr, where that is a terminal."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from dgpt2_quant.quantize.progress import Progress

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


@contextmanager
def progress_bar() -> Iterator[Progress | None]:
    """Gives what the library's `progress=` takes: called with (done, total, what); None where nobody watches.

    The bar appears with the first call, and goes away with the block: where there is nothing to wait for, none is seen.
    """
    if not sys.stderr.isatty():
        yield None
        return
    with ExitStack() as stack:
        bar: Bar | None = None

        def update(done: int, total: int, what: str) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(_new_bar())
                bar.add_task("")
            bar.update(bar.task_ids[0], completed=done, total=total, description=what)
            bar.refresh()

        yield update


def _new_bar() -> "Bar":
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    # without a thread that draws it: it would run beside what is measured
    return Bar(*columns, console=Console(stderr=True), transient=True, auto_refresh=False)
