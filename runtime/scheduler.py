"""Continuous batching: requests arrive and end one by one, and decode together in one context.

with Scheduler(model, parallel=8) as scheduler:
    handle = scheduler.submit("Once upon a time", max_tokens=64)
    for event in handle:
        print(event, end="")
"""

import _thread
import asyncio
import atexit
import contextlib
import os
import reprlib
import threading
import weakref
from dataclasses import dataclass, field, replace
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any, Self, Unpack

from dgpt2_quant.core.errors import OverloadedError, RuntimeFailure, UsageError
from dgpt2_quant.core.workers import no_more_threads, require_threads
from dgpt2_quant.runtime.native.native_thread import flush, in_native_thread

from .decode_loop import Engine, Piece, Totals
from .lifecycle import Closing
from .model import PARALLEL, Model, check_parallel
from .request import Options, Prompt, check_count
from .request_handle import RequestHandle, Waiter, wake
from .sequence import Sequence

QUEUE = 64  # default number of requests that may wait


@dataclass(frozen=True)
class Stats:
    """A snapshot of a scheduler: waiting and active requests, requests that ended, and the totals since the start."""

    waiting: int
    active: int
    finished: int
    cancelled: int
    failed: int
    threads: int
    totals: Totals


@dataclass
class _Job:
    """A request in progress. The caller owns the handle; without it, no one waits for the text."""

    sequence: Sequence
    handle: "weakref.ref[RequestHandle]"
    cancelled: bool = False


class Scheduler(Closing):
    """Runs requests from any thread on one model, `parallel` at a time, in the order of their arrival.

    At most `queue` more may wait. Each has `ctx_size` positions (default: the model's). One thread does the
    work; prompts are computed in chunks between the steps of other requests. A request whose grammar takes more than
    `grammar_seconds` for a token fails (default: no limit). Closing the model closes its schedulers. A scheduler that
    is dropped without `close` finishes the requests whose handles still exist, as a `ThreadPoolExecutor` does, and
    ends.
    """

    def __init__(
        self,
        model: Model,
        *,
        parallel: int = PARALLEL,
        queue: int = QUEUE,
        ctx_size: int | None = None,
        grammar_seconds: float | None = None,
    ) -> None:
        if not isinstance(model, Model):
            raise UsageError(f"`model` must be a Model, not {reprlib.repr(model)}", "Load one with Model.load(path).")
        parallel = check_parallel(parallel)
        queue = check_count("queue", queue)
        if ctx_size is not None:
            ctx_size = check_count("ctx_size", ctx_size, 1)
        if grammar_seconds is not None and not (isinstance(grammar_seconds, int | float) and grammar_seconds > 0):
            raise UsageError(f"`grammar_seconds` must be a number above 0, not {grammar_seconds!r}")
        self.model = model
        self.parallel = parallel
        self.queue = queue
        self.grammar_seconds = grammar_seconds
        self.positions = min(ctx_size or model.positions, model.positions)
        self._lock = threading.RLock()
        self._worker = worker = _Worker(model.new_engine(parallel, self.positions))
        # the callback is C, so no interrupt can arrive in it
        worker.scheduler = weakref.ref(self, worker.inbox.put)
        model.add_user(worker)
        in_native_thread(worker.start)  # an interrupt in `Thread.start` could hang the new thread

    def submit(self, prompt: Prompt, **options: Unpack[Options]) -> RequestHandle:
        """Submits a request; the handle gives its events. `Options` lists the keyword arguments.

        Raises `UsageError` for a prompt that does not fit or a setting out of range, `OverloadedError` when the queue
        is full, and `RuntimeFailure` when the scheduler is closed.
        """
        sequence = self.model.new_sequence(prompt, self.positions, **options)
        if self.grammar_seconds is not None:
            sequence.limit_grammar(self.grammar_seconds)
        job: _Job

        def cancel() -> None:
            job.cancelled = True  # the thread checks it between two steps

        handle = RequestHandle(sequence.request.seed, sequence.prompt, sequence.timing, cancel)
        job = _Job(sequence, weakref.ref(handle))
        worker = self._worker
        with self._lock:
            if worker.closing:
                raise RuntimeFailure("the scheduler is closed", "Create another one.")
            if worker.inbox.qsize() + len(worker.jobs) >= self.parallel + self.queue:
                raise OverloadedError(
                    f"the scheduler is full: {self.parallel} requests at a time, and {self.queue} in its queue",
                    "Try again later, or raise `queue`.",
                )
            worker.inbox.put(job)
            if worker.closing:  # the thread may have ended before this arrived
                job.cancelled = True
                raise RuntimeFailure("the scheduler is closed", "Create another one.")
        return handle

    @property
    def stats(self) -> Stats:
        """The current state."""
        return self._worker.stats()

    def close(self, *, drain: bool = False) -> None:
        """Ends all requests, or with `drain` waits for their ends, and frees the context.

        Closing twice is fine; without `drain` it also ends the requests that another `close` waits for.
        """
        self._worker.close(drain=drain)

    async def aclose(self, *, drain: bool = False) -> None:
        """`close` for asyncio: does not block the event loop."""
        await asyncio.to_thread(self.close, drain=drain)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


@dataclass(eq=False)
class _Worker:
    """The thread's state. It has no reference to its `Scheduler`, which can be dropped while the thread waits.

    Only the thread changes `jobs` and the engine. Others put requests into `inbox`, a queue in C that an interrupt
    cannot leave locked; any other entry asks the thread to check whether to end.
    """

    engine: Engine
    inbox: "SimpleQueue[_Job | weakref.ref[Scheduler] | None]" = field(default_factory=SimpleQueue)
    scheduler: "weakref.ref[Scheduler] | None" = None
    jobs: dict[Sequence, _Job] = field(default_factory=dict)  # of the sequences that the engine has
    counts: dict[str, int] = field(default_factory=lambda: {"finished": 0, "cancelled": 0, "failed": 0})
    closing: bool = False
    draining: bool = False
    process: int = field(default_factory=os.getpid)
    thread: threading.Thread | None = None
    living: Any = field(default_factory=_thread.allocate_lock)  # held while the thread runs

    def start(self) -> None:
        """Raises `RuntimeFailure` when the system allows no more threads."""
        thread = threading.Thread(target=self._run, name="dgpt2-quant scheduler", daemon=True)
        self.living.acquire()
        try:
            require_threads(self.engine.governor.most)  # OpenMP starts that many for each thread that decodes
            thread.start()
        except BaseException as error:
            self.closing = True
            self.engine.close()
            self.living.release()
            if isinstance(error, RuntimeError):
                raise no_more_threads() from error
            raise
        self.thread = thread
        _close_at_exit().add(self)

    def stats(self) -> Stats:
        active, engine = self.engine.active, self.engine
        waiting = max(0, self.inbox.qsize() + len(self.jobs) - active)
        return Stats(waiting, active, **self.counts, threads=engine.governor.threads, totals=replace(engine.totals))

    def end(self, *, drain: bool) -> None:
        """Asks the thread to end, without waiting for it."""
        # a close that does not wait overrides one that does
        self.draining = drain and (self.draining or not self.closing)
        self.closing = True
        self.inbox.put(None)

    def close(self, *, drain: bool = False) -> None:
        if self.process != os.getpid():
            return  # a forked child has neither the thread nor the context
        self.end(drain=drain)
        if self.thread is not threading.current_thread():
            with self.living:  # an interrupt in `Thread.join` marks a running thread as ended
                pass
            flush()

    def _run(self) -> None:
        try:
            while self._take_jobs():
                try:
                    self._report(self.engine.step())
                except BaseException as error:  # the state of the KV cache is unknown
                    self._fail(error)
                    self.engine.reset()
            self._report(self.engine.cancel(*self.jobs))
        except BaseException as error:  # no one may wait for a thread that has ended
            self.closing = True
            self._receive(waits=False)
            self._fail(error)
        finally:
            self.engine.close()
            self.living.release()

    def _take_jobs(self) -> bool:
        """Gives new requests to the engine and cancels dropped ones; waits while idle. Returns False at the end."""
        while True:
            ending = self._is_ending()  # first, so that requests submitted before the end are received
            self._receive(waits=self.engine.idle and not ending)
            unwanted = [sequence for sequence, job in self.jobs.items() if job.cancelled or job.handle() is None]
            if unwanted:
                self._report(self.engine.cancel(*unwanted))
            if ending:
                return (self.draining or not self.closing) and not self.engine.idle
            if not self.engine.idle:
                return True

    def _receive(self, *, waits: bool) -> None:
        """Takes submitted requests from the inbox; if it `waits`, it waits for the first entry."""
        with contextlib.suppress(Empty):
            while True:
                job = self.inbox.get(block=waits)
                waits = False
                if isinstance(job, _Job):
                    self.jobs[job.sequence] = job
                    self.engine.add(job.sequence)

    def _is_ending(self) -> bool:
        """Whether the scheduler was closed, or dropped, in which case earlier requests are finished first."""
        return self.closing or (self.scheduler is not None and self.scheduler() is None)

    def _report(self, pieces: list[Piece]) -> None:
        """Sends events to the handles, and counts the requests that have ended."""
        waiters: list[Waiter] = []
        for sequence, text in pieces:
            handle = self.jobs[sequence].handle()
            if sequence.completion:
                del self.jobs[sequence]
                is_cancelled = sequence.completion.finish_reason == "cancelled"
                self.counts["failed" if sequence.error else "cancelled" if is_cancelled else "finished"] += 1
            if handle is not None and sequence.error:
                waiters += handle.push(sequence.error)
            elif handle is not None and (event := sequence.event(text)) is not None:
                waiters += handle.push(event)
        wake(waiters)

    def _fail(self, error: BaseException) -> None:
        """Ends all requests of the engine; their handles raise the error."""
        failed = list(self.jobs.values())
        self.jobs.clear()
        self.counts["failed"] += len(failed)
        for job in failed:
            job.sequence.stop()
            if handle := job.handle():
                wake(handle.push(error))


@cache
def _close_at_exit() -> "weakref.WeakSet[_Worker]":
    """The workers to close before the interpreter ends: no thread may be in C by then."""
    workers: weakref.WeakSet[_Worker] = weakref.WeakSet()

    @atexit.register
    def close_all() -> None:
        for worker in list(workers):
            with contextlib.suppress(Exception):
                worker.close()

    return workers
