"""What a scheduler hands back for a request: a stream of events, for threads and for asyncio."""

import asyncio
import contextlib
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from dgpt2_quant.quantize.errors import RuntimeFailure, WaitTimeoutError

from .draft import Completion, Timing, TokenLogprob


@dataclass(frozen=True)
class Event:
    """A piece of text with the tokens that came since the event before; the last one has the completion.

    `logprobs` are theirs, where they were asked for. A piece can lag behind its tokens, while a character or a stop
    string is undecided.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    completion: Completion | None = None


class Ticket(Iterator[Event], AsyncIterator[Event]):
    """Iterate for the events of one request, in a thread (`for`) or a task (`async for`), but in one place only.

    Its scheduler goes on without waiting for who reads. A ticket that is thrown away cancels its request. An error of
    the scheduler is raised where the ticket is read.
    """

    def __init__(self, seed: int, timing: Timing, cancel: Callable[[], None]) -> None:
        self.seed = seed
        self.timing = timing
        self._cancel = cancel
        self._events: deque[Event | BaseException] = deque()
        self._end: Completion | BaseException | None = None  # how it went, from when its last event has come
        self._lock = threading.RLock()  # taken by itself, as in `Uses`
        self._ready = threading.Condition(self._lock)
        self._process = os.getpid()
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def cancel(self) -> None:
        """Ends the request soon; its last event then tells `cancelled`. Nothing happens where it is through."""
        self._cancel()

    def result(self, timeout: float | None = None) -> Completion:
        """Waits for the end and returns the whole text, as often as it is asked, also behind a loop over the events.

        Raises `WaitTimeoutError` after `timeout` s without news, and what the scheduler failed with.
        """
        while self._next(timeout):
            pass
        if isinstance(self._end, BaseException):
            raise self._end
        assert self._end
        return self._end

    def push(self, event: Event | BaseException) -> None:
        """Called by the scheduler; an exception, or an event with a completion, is the last."""
        with self._lock:
            if self._end:
                return
            self._events.append(event)
            self._end = event if isinstance(event, BaseException) else event.completion
            self._ready.notify_all()
            waiter, self._waiter = self._waiter, None
        if waiter:
            with contextlib.suppress(RuntimeError):  # a loop that was closed meanwhile
                waiter[0].call_soon_threadsafe(_wake, waiter[1])

    def __next__(self) -> Event:
        event = self._next(None)
        if event is None:
            raise StopIteration
        return event

    async def __anext__(self) -> Event:
        self._check_process()
        while True:
            with self._lock:
                if self._events:
                    return self._take()
                if self._end:
                    raise StopAsyncIteration
                loop = asyncio.get_running_loop()
                waiter = loop.create_future()
                self._waiter = loop, waiter
            await waiter

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise RuntimeFailure(
                f"the request was handed in by process {self._process}; this is a child that it forked",
                "Load the model in each process, or start processes by `spawn`.",
            )

    def _next(self, timeout: float | None) -> Event | None:
        self._check_process()
        with self._lock:
            while not self._events:
                if self._end:
                    return None
                if not self._ready.wait(timeout):
                    raise WaitTimeoutError(f"nothing came for {timeout} s", "Wait longer, or cancel the ticket.")
            return self._take()

    def _take(self) -> Event:
        event = self._events.popleft()
        if isinstance(event, BaseException):
            raise event
        return event

    def __del__(self) -> None:
        if not self._end:
            self._cancel()


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
