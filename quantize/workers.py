"""Threads to compute on, beside which Ctrl-C can be pressed at any moment.

Python calls a signal's handler at any call of its own code: also when `concurrent.futures` has just entered one of its
conditions, and has not yet come to where it would leave it again. Whoever enters that next waits for ever. So here the
main thread enters them only where handlers wait. (A `with` on a lock of C's has no such gap.)
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from .interrupts import interrupts_wait

Item = TypeVar("Item")
Result = TypeVar("Result")

_HEARD = 0.1  # seconds after which a handler is called, at the latest


class Workers(ThreadPoolExecutor):
    """A `ThreadPoolExecutor` whose results are waited for by `result_of`, or by `map`."""

    def submit(self, function: Callable[..., Result], /, *args: Any, **kwargs: Any) -> "Future[Result]":
        """As `ThreadPoolExecutor.submit`."""
        with interrupts_wait():
            return super().submit(function, *args, **kwargs)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:  # type: ignore[override]
        """Of each item, in their order. All are begun at once; who stops early does not wait for the others."""
        return self._results(deque([self.submit(function, item) for item in items]))

    def _results(self, futures: "deque[Future[Result]]") -> Iterator[Result]:
        try:
            while futures:
                yield result_of(futures.popleft())
        finally:
            with interrupts_wait():
                for future in futures:
                    future.cancel()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As `ThreadPoolExecutor.shutdown`."""
        with interrupts_wait():
            super().shutdown(wait=False, cancel_futures=cancel_futures)
        super().shutdown(wait=wait)  # which waits for the threads by locks of theirs


def result_of(future: "Future[Result]") -> Result:
    """As `Future.result`."""
    try:
        while True:
            with interrupts_wait():
                try:
                    return future.result(_HEARD)
                except TimeoutError:
                    if future.done():  # it is the function's own, or it ended just now
                        return future.result()
    finally:
        del future  # an exception has this frame, and must not have the future that has it: both would be kept
