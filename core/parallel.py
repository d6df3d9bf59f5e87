"""Parallel NumPy on several cores, with results that do not depend on the number of threads.

A BLAS with several threads splits products, and so rounds sums, by its thread count; one changed bit of a sum can
change the bytes of a rounded matrix. Here each product has one thread (blas.py), and independent parts, always split
the same way, are computed in parallel. This is also faster: other operations than products use all cores too.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .blas import limit_this_thread, single_threaded_blas
from .cores import threads_or_all
from .workers import Workers, check_cancelled

Array = npt.NDArray[np.floating[Any]]
Item = TypeVar("Item")
Result = TypeVar("Result")

_ROWS = 1024  # rows of a large matrix per part: intermediate results stay in the cache
_pool: ContextVar[Workers | None] = ContextVar("pool", default=None)


@contextmanager
def calculating(threads: int | None = None) -> Iterator[None]:
    """Inside, `in_parallel` uses `threads` threads (default: the usable cores), and BLAS one per product.

    A nested block has no effect. Raises `RuntimeFailure` if threads do not start or the BLAS cannot be limited.
    """
    if _pool.get() is not None:
        yield
        return
    with single_threaded_blas(), Workers(threads_or_all(threads)) as pool:
        token = _pool.set(pool)
        try:
            yield
        finally:
            _pool.reset(token)


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Applies the function on several threads; yields results in the order of the items.

    Outside `calculating`, and when called from such a function, items are computed one after the other.
    """

    def compute(item: Item) -> Result:
        check_cancelled()
        return function(item)

    def compute_limited(item: Item) -> Result:
        limit_this_thread()
        return function(item)

    pool = _pool.get()
    return map(compute, items) if pool is None else pool.map(compute_limited, items)


def pieces(rows: int, size: int = _ROWS) -> list[slice]:
    """Slices of `size` rows each; the last may be shorter."""
    return [slice(first, min(first + size, rows)) for first in range(0, rows, size)]


def evenly(rows: int, most: int) -> list[slice]:
    """The smallest number of slices of at most `most` rows, nearly equal in size."""
    count = max(1, -(-rows // most))
    return pieces(rows, max(1, -(-rows // count)))


def mean_of(sums: Iterable[Sequence[Array]], count: int) -> list[Array]:
    """Adds up partial sums, several arrays per part, and divides the totals by `count`."""
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
    """Applies the function to `size` rows at a time, result shape (rows, columns); `out` may be `x`."""
    result: Array = np.empty((len(x), columns), np.float32) if out is None else out

    def compute(piece: slice) -> None:
        result[piece] = function(x[piece])

    for _ in in_parallel(compute, pieces(len(x), size)):
        pass
    return result
