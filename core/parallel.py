"""Computing in NumPy on several cores, with the same results on one.

A BLAS with threads of its own cuts products, and so rounds sums, differently by how many it has; rounding with feedback
makes other bytes of the last bit of a sum. Here each product has one thread (blas.py), and independent parts are
computed at the same time, always cut in the same way. That is also faster: all cores do what is not a product, too.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .blas import limit_here, one_thread_each
from .cores import threads_or_all
from .workers import Workers, check_cancelled

Array = npt.NDArray[np.floating[Any]]
Item = TypeVar("Item")
Result = TypeVar("Result")

_ROWS = 1024  # of a large matrix at once: what is computed of them on the way stays small enough to be used again
_pool: ContextVar[Workers | None] = ContextVar("pool", default=None)


@contextmanager
def calculating(threads: int | None = None) -> Iterator[None]:
    """Inside, `in_parallel` uses this many threads (default: the usable cores), and BLAS one for each product.

    Inside another one it changes nothing. Raises `RuntimeFailure` where threads or the BLAS do not obey.
    """
    if _pool.get() is not None:
        yield
        return
    with one_thread_each(), Workers(threads_or_all(threads)) as pool:
        token = _pool.set(pool)
        try:
            yield
        finally:
            _pool.reset(token)


def in_parallel(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results, in the order of the items.

    Outside `calculating`, and in a function that is called by this, one is computed after the other.
    """

    def compute(item: Item) -> Result:
        check_cancelled()
        return function(item)

    def compute_limited(item: Item) -> Result:
        limit_here()
        return function(item)

    pool = _pool.get()
    return map(compute, items) if pool is None else pool.map(compute_limited, items)


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
