"""Computing in NumPy on several cores, with the same results on one.

A BLAS with threads of its own cuts products, and so rounds sums, differently by how many it has; rounding with feedback
makes other bytes of the last bit of a sum. Here each product has one thread, and what is independent is computed beside
one another, cut in the same way always. That is also faster: what is not a product runs on all cores, too, and no
thread waits in a loop for another that has lost its core.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from .cores import threads_or_all
from .memory import memory_kept
from .workers import Workers, result_of

Array = npt.NDArray[np.floating[Any]]
Item = TypeVar("Item")
Result = TypeVar("Result")

_ROWS = 1024  # of a large matrix at once: what is computed of them on the way stays small enough to be used again
_AHEAD = 3  # items: what is computed by one thread alone, and leaves a core to them, comes in turns
_LAST = 19  # the lowest priority
_pool: ContextVar[Workers | None] = ContextVar("pool", default=None)


@contextmanager
def calculating(threads: int | None = None) -> Iterator[None]:
    """Inside, `in_parallel` uses so many threads (default: the usable cores), and BLAS one for each product.

    Inside another one it changes nothing.
    """
    if _pool.get() is not None:
        yield
        return
    pool = Workers(threads_or_all(threads))
    token = _pool.set(pool)
    try:
        with threadpool_limits(1, user_api="blas"), memory_kept():
            yield
    finally:
        _pool.reset(token)
        pool.shutdown(cancel_futures=True)


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Of each item, in their order.

    Outside `calculating`, and in a function that is called by this, one is computed after the other.
    """
    pool = _pool.get()
    return map(function, items) if pool is None else pool.map(function, items)


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same, some of them computed before they are asked for, in a thread that takes the time that others leave."""
    if _pool.get() is None:
        yield from items
        return
    end, aside = object(), Workers(1, initializer=give_way)
    try:
        following = deque(aside.submit(next, items, end) for _ in range(_AHEAD))
        while (item := result_of(following.popleft())) is not end:
            following.append(aside.submit(next, items, end))
            yield cast(Item, item)
    finally:
        aside.shutdown(cancel_futures=True)  # who stops early need not wait for all of them


def give_way() -> None:
    """From now on the calling thread runs only where a core has nothing else to do."""
    if sys.platform == "linux":  # elsewhere priorities are of processes
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LAST)


def pieces(rows: int, size: int = _ROWS) -> list[slice]:
    """Of so many rows, all but the last of one size."""
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


def evenly(rows: int, most: int) -> list[slice]:
    """As few pieces as can be of at most so many rows, nearly all of one size."""
    count = max(1, -(-rows // most))
    return pieces(rows, max(1, -(-rows // count)))


def mean_of(sums: Iterable[Sequence[Array]], count: int) -> list[Array]:
    """Sums of parts, several of each part, put together and divided by how much they are of."""
    whole: list[Array] = []
    for parts in sums:
        if not whole:
            whole = list(parts)
            continue
        for one, part in zip(whole, parts, strict=True):
            one += part
    for one in whole:
        one /= count
    return whole


def by_rows(
    function: Callable[[Array], Array], x: Array, columns: int, size: int = _ROWS, out: Array | None = None
) -> Array:
    """What the function makes of so many rows at a time, shape (rows, columns); `out` to write it to may be `x`."""
    made: Array = np.empty((len(x), columns), np.float32) if out is None else out

    def compute(piece: slice) -> None:
        made[piece] = function(x[piece])

    for _ in in_parallel(compute, pieces(len(x), size)):
        pass
    return made
