"""The handle of a scheduler's request: its events and its completion, for threads and for asyncio."""

import asyncio
import contextlib
import copy
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

from dgpt2_quant.core.errors import RuntimeFailure, WaitTimeoutError

from .completion import Completion, Event, Timing

Waiter = tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]
_POLL = 0.5  # seconds between two checks for the end: an interrupt may drop the notice of it


class RequestHandle(Iterator[Event], AsyncIterator[Event]):
    """One request of a scheduler. Iterate for its events (`for` or `async for`), or `await` its completion.

    Several readers share the events: each event goes to one of them, and the end to all. The scheduler does not wait
    for readers. Dropping the handle cancels the request. Reading raises the error that the request failed with.
    `prompt` are the token ids of the prompt, without those that token healing replaced, once there is an event.
    """

    def __init__(self, seed: int, prompt: list[int], timing: Timing, cancel: Callable[[], None]) -> None:
        self.seed = seed
        self.prompt = prompt
        self.timing = timing
        self._cancel = cancel
        self._end: Completion | BaseException | None = None
        # implemented in C: an interrupt cannot leave it locked
        self._events: SimpleQueue[Event | None] = SimpleQueue()  # None: check for the end
        self._waiters: deque[Waiter] = deque()
        self._process = os.getpid()

    def cancel(self) -> None:
        """Ends the request soon, with the finish reason `cancelled`. Does nothing after its end."""
        self._cancel()

    def result(self, timeout: float | None = None) -> Completion:
        """Waits for the end and returns the completion. It can be called again, and after a loop over the events.

        Raises `WaitTimeoutError` after `timeout` seconds without an event, and the error that the request failed with.
        """
        while self._next(timeout) is not None:
            pass
        return self._completion()

    def __await__(self) -> Generator[Any, None, Completion]:
        return self._result().__await__()

    async def _result(self) -> Completion:
        async for _ in self:
            pass
        return self._completion()

    def _completion(self) -> Completion:
        self._raise_failure()
        assert isinstance(self._end, Completion)
        return self._end

    def _raise_failure(self) -> None:
        """Raises a copy: the traceback of the error itself would refer to this handle, which refers to the error."""
        if isinstance(self._end, BaseException):
            raise copy.copy(self._end) from self._end

    def push(self, event: Event | BaseException) -> list[Waiter]:
        """Called by the scheduler; returns the tasks to `wake`. The last call has an exception, or a completion."""
        if self._end:
            return []
        if isinstance(event, Event):
            self._events.put(event)
            self._end = event.completion
        else:
            self._end = event
        if self._end:
            self._events.put(None)
        return [self._waiters.popleft() for _ in range(len(self._waiters))]

    def __next__(self) -> Event:
        event = self._next(None)
        if event is None:
            raise StopIteration
        return event

    async def __anext__(self) -> Event:
        self._check_process()
        waiter: asyncio.Future[None] | None = None
        while True:
            with contextlib.suppress(Empty):
                if (event := self._events.get_nowait()) is not None:
                    return event
            if self._ended():
                raise StopAsyncIteration
            if waiter is None:  # new events wake it; the loop then checks for events that came before
                loop = asyncio.get_running_loop()
                waiter = loop.create_future()
                self._waiters.append((loop, waiter))
            else:
                await waiter
                waiter = None

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise RuntimeFailure(
                f"the request was submitted in process {self._process}, which forked this one",
                "Load the model in each process.",
            )

    def _next(self, timeout: float | None) -> Event | None:
        """The next event; None after the last. Raises the error that the request failed with."""
        self._check_process()
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _POLL if until is None else min(_POLL, max(0.0, until - time.monotonic()))
            with contextlib.suppress(Empty):
                if (event := self._events.get(timeout=left)) is not None:
                    return event
            if self._ended():
                return None
            if until is not None and time.monotonic() >= until:
                raise WaitTimeoutError(
                    f"no event arrived within {timeout} s", "Raise `timeout`, or cancel the request."
                )

    def _ended(self) -> bool:
        """Whether all events were read. Raises the error that the request failed with."""
        if not self._end or not self._events.empty():
            return False
        self._events.put(None)  # for the other readers
        self._raise_failure()
        return True


def wake(waiters: Iterable[Waiter]) -> None:
    """Wakes tasks of asyncio from another thread: all of a loop together, as each call of a loop costs a turn of
    Python's lock."""
    by_loop: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for loop, waiter in waiters:
        by_loop.setdefault(loop, []).append(waiter)
    for loop, futures in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(_set, futures)


def _set(futures: "list[asyncio.Future[None]]") -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
