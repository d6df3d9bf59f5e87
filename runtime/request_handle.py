"""What a scheduler hands back for a request: a stream of events, for threads and for asyncio."""

import asyncio
import contextlib
import copy
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from dgpt2_quant.core.errors import RuntimeFailure, WaitTimeoutError

from .sequence import Completion, Timing, TokenLogprob

_POLL = 0.5  # seconds after which a reader looks whether the end has come: an interrupt may have taken the word of it


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
    """Iterate for the events of one request, in a thread (`for`) or a task (`async for`), or `await` its completion.

    Several readers share the events: each event goes to one of them, and the end to all. The scheduler does not wait
    for readers. A ticket that is dropped cancels its request. An error of the scheduler is raised where the ticket is
    read.
    """

    def __init__(self, seed: int, timing: Timing, cancel: Callable[[], None]) -> None:
        self.seed = seed
        self.timing = timing
        self._cancel = cancel
        self._end: Completion | BaseException | None = None
        # queues of C's: an interrupt cannot leave them locked
        self._events: SimpleQueue[Event | None] = SimpleQueue()  # None: look whether the end has come
        self._waiters: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()
        self._process = os.getpid()

    def cancel(self) -> None:
        """Ends the request soon; its last event then has the reason `cancelled`. Nothing happens after its end."""
        self._cancel()

    def result(self, timeout: float | None = None) -> Completion:
        """Waits for the end and returns the whole text, as often as it is called, also after a loop over the events.

        Raises `WaitTimeoutError` after `timeout` s without news, and what the scheduler failed with.
        """
        while self._next(timeout):
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
        """A copy of it: the frames that it is raised through lead back to this ticket, which would keep them."""
        if isinstance(self._end, BaseException):
            raise copy.copy(self._end) from self._end

    def push(self, event: Event | BaseException) -> None:
        """Called by the scheduler; an exception, or an event with a completion, is the last."""
        if self._end:
            return
        if isinstance(event, Event):
            self._events.put(event)
            self._end = event.completion
        else:
            self._end = event
        if self._end:
            self._events.put(None)
        while self._waiters:
            loop, waiter = self._waiters.popleft()
            with contextlib.suppress(RuntimeError):  # a loop that was closed meanwhile
                loop.call_soon_threadsafe(_wake, waiter)

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
                if event := self._events.get_nowait():
                    return event
            if self._ended():
                raise StopAsyncIteration
            if waiter is None:  # what comes from now on wakes it, and what came meanwhile is looked for once more
                loop = asyncio.get_running_loop()
                waiter = loop.create_future()
                self._waiters.append((loop, waiter))
            else:
                await waiter
                waiter = None

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise RuntimeFailure(
                f"the request was handed in by process {self._process}; this is a child that it forked",
                "Load the model in each process.",
            )

    def _next(self, timeout: float | None) -> Event | None:
        """The next event; None after the last. Raises what the scheduler failed with."""
        self._check_process()
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            left = _POLL if until is None else min(_POLL, max(0.0, until - time.monotonic()))
            with contextlib.suppress(Empty):
                if event := self._events.get(timeout=left):
                    return event
            if self._ended():
                return None
            if until is not None and time.monotonic() >= until:
                raise WaitTimeoutError(f"nothing came for {timeout} s", "Wait longer, or cancel the ticket.")

    def _ended(self) -> bool:
        """Whether there is nothing more to come. Raises what the scheduler failed with."""
        if not self._end or not self._events.empty():
            return False
        self._events.put(None)  # for the other readers
        self._raise_failure()
        return True


def _wake(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
