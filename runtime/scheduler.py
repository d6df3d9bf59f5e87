"""Continuous batching: requests come and go one by one, and decode together in one context while they are there.

with Scheduler(model, parallel=8) as scheduler:
    ticket = scheduler.submit("Once upon a time", max_tokens=64)
    for event in ticket:
        print(event.text, end="")
"""

import _thread
import asyncio
import atexit
import contextlib
import os
import reprlib
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from queue import Empty, SimpleQueue
from typing import Any, Self, Unpack

from dgpt2_quant.core.errors import OverloadedError, RuntimeFailure, UsageError
from dgpt2_quant.core.workers import no_more_threads, require_threads
from dgpt2_quant.runtime.native.calls import flush, in_native_thread

from .engine import Engine, Totals
from .lifecycle import Closing
from .model import PARALLEL, Model, check_parallel
from .request import Options, check_count
from .request_handle import Event, Ticket
from .sequence import Draft

QUEUE = 64  # requests that may wait, unless the caller says otherwise


@dataclass(frozen=True)
class Stats:
    """Requests that wait and that are worked on, those that ended, and what was computed for them since the start.

    A snapshot: later work does not change it.
    """

    waiting: int
    active: int
    finished: int
    cancelled: int
    failed: int
    threads: int
    totals: Totals


@dataclass
class _Job:
    """A request on its way. The ticket is the caller's: when nobody has it any more, nobody waits for the text."""

    draft: Draft
    ticket: "weakref.ref[Ticket]"
    sent: int = 0  # tokens that have been reported
    cancelled: bool = False


class Scheduler(Closing):
    """Requests for one model, from any thread: `parallel` at a time, in the order in which they came.

    At most `queue` more may wait. Each has `ctx_size` positions (default: the model's). One thread of its own does the
    work; prompts are computed in chunks between the steps of the others. Closing the model closes its schedulers. One
    that is dropped without `close` finishes the requests whose tickets are kept, as a `ThreadPoolExecutor` does, and
    ends.
    """

    def __init__(
        self, model: Model, *, parallel: int = PARALLEL, queue: int = QUEUE, ctx_size: int | None = None
    ) -> None:
        if not isinstance(model, Model):
            raise UsageError(f"model is {reprlib.repr(model)}, not a Model", "Make one: Model.load(path).")
        parallel = check_parallel(parallel)
        queue = check_count("queue", queue)
        if ctx_size is not None:
            ctx_size = check_count("the context size", ctx_size, 1)
        self.model = model
        self.parallel = parallel
        self.queue = queue
        self.positions = min(ctx_size or model.positions, model.positions)
        self._lock = threading.RLock()
        self._worker = worker = _Worker(model.new_engine(parallel, self.positions))
        # the callback is C, so that no interrupt can come in between
        worker.scheduler = weakref.ref(self, worker.inbox.put)
        model.add_user(worker)
        in_native_thread(worker.start)  # an interrupt in the middle of `Thread.start` could hang the new thread

    def submit(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Ticket:
        """Hands in a request; its events come by the ticket. `Options` has the keywords.

        Raises `UsageError` for a prompt or a setting that is not possible, `OverloadedError` when the queue is full,
        and `RuntimeFailure` when the scheduler is closed.
        """
        draft = self.model.make_draft(prompt, self.positions, **options)
        job: _Job

        def cancel() -> None:
            job.cancelled = True  # the thread looks at it between two steps

        ticket = Ticket(draft.request.seed, draft.timing, cancel)
        job = _Job(draft, weakref.ref(ticket))
        worker = self._worker
        with self._lock:
            if worker.closing:
                raise RuntimeFailure("the scheduler is closed", "Make another one.")
            if worker.inbox.qsize() + len(worker.jobs) >= self.parallel + self.queue:
                raise OverloadedError(
                    f"{self.parallel} requests are being worked on and {self.queue} wait already", "Try again later."
                )
            worker.inbox.put(job)
            if worker.closing:  # it may have ended before this came
                job.cancelled = True
                raise RuntimeFailure("the scheduler is closed", "Make another one.")
        return ticket

    @property
    def stats(self) -> Stats:
        """Where things stand."""
        return self._worker.stats()

    def close(self, *, drain: bool = False) -> None:
        """Ends all requests, or with `drain` waits for them, and frees the context.

        Closing twice is fine; without `drain` it ends what another call waits for.
        """
        self._worker.close(drain=drain)

    async def aclose(self, *, drain: bool = False) -> None:
        """As `close`, for asyncio: the loop goes on meanwhile."""
        await asyncio.to_thread(self.close, drain=drain)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


@dataclass(eq=False)
class _Worker:
    """What the thread works on. It does not know its `Scheduler`, which can be dropped while the thread waits.

    Only the thread changes `jobs` and the engine. Others put requests into `inbox`, a queue of C's that an interrupt
    cannot leave locked; anything else there means: look whether it is time to end.
    """

    engine: Engine
    inbox: "SimpleQueue[_Job | weakref.ref[Scheduler] | None]" = field(default_factory=SimpleQueue)
    scheduler: "weakref.ref[Scheduler] | None" = None
    jobs: dict[Draft, _Job] = field(default_factory=dict)  # those that the engine has
    counts: dict[str, int] = field(default_factory=lambda: {"finished": 0, "cancelled": 0, "failed": 0})
    closing: bool = False
    draining: bool = False
    process: int = field(default_factory=os.getpid)
    thread: threading.Thread | None = None
    living: Any = field(default_factory=_thread.allocate_lock)  # taken while the thread runs

    def start(self) -> None:
        """Raises `RuntimeFailure` when the system allows no more threads."""
        thread = threading.Thread(target=self._run, name="dgpt2-quant scheduler", daemon=True)
        self.living.acquire()
        try:
            require_threads(self.engine.governor.most)  # OpenMP starts as many for each thread that decodes
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
        """Lets the thread end, without waiting for it."""
        # a close that does not wait goes before one that does
        self.draining = drain and (self.draining or not self.closing)
        self.closing = True
        self.inbox.put(None)

    def close(self, *, drain: bool = False) -> None:
        if self.process != os.getpid():
            return  # a forked child has neither the thread nor the context
        self.end(drain=drain)
        if self.thread is not threading.current_thread():
            with self.living:  # not `Thread.join`: an interrupt in it marks a thread as ended that still runs
                pass
            flush()

    def _run(self) -> None:
        try:
            while self._take_jobs():
                try:
                    for draft, text in self.engine.step():
                        self._report(draft, text)
                except BaseException as error:  # what the cache holds is not known any more
                    self._fail(error)
                    self.engine.reset()
            for draft, text in self.engine.cancel(*self.jobs):
                self._report(draft, text)
        except BaseException as error:  # nobody may wait for a thread that has ended
            self.closing = True
            self._receive(waits=False)
            self._fail(error)
        finally:
            self.engine.close()
            self.living.release()

    def _take_jobs(self) -> bool:
        """Gives new requests to the engine, and takes from it those that nobody wants; waits where there is nothing to
        do. False when it is time to end."""
        while True:
            ending = self._is_ending()  # before it looks: then what was handed in until that is there
            self._receive(waits=self.engine.idle and not ending)
            unwanted = [draft for draft, job in self.jobs.items() if job.cancelled or job.ticket() is None]
            for draft, text in self.engine.cancel(*unwanted) if unwanted else ():
                self._report(draft, text)
            if ending:
                return (self.draining or not self.closing) and not self.engine.idle
            if not self.engine.idle:
                return True

    def _receive(self, *, waits: bool) -> None:
        """Takes what has been handed in, and the first of it as soon as it comes."""
        with contextlib.suppress(Empty):
            while True:
                job = self.inbox.get(block=waits)
                waits = False
                if isinstance(job, _Job):
                    self.jobs[job.draft] = job
                    self.engine.add(job.draft)

    def _is_ending(self) -> bool:
        """Closed, or dropped: then what was handed in before is finished."""
        return self.closing or (self.scheduler is not None and self.scheduler() is None)

    def _report(self, draft: Draft, text: str) -> None:
        """Sends a piece, and counts a request that has ended."""
        job = self.jobs[draft]
        if draft.completion:
            del self.jobs[draft]
            self.counts["cancelled" if draft.completion.finish_reason == "cancelled" else "finished"] += 1
        ticket = job.ticket()
        if ticket is not None and (text or draft.completion):
            begin, job.sent = job.sent, len(draft.token_ids)
            event = Event(text, tuple(draft.token_ids[begin:]), draft.logprobs(begin), draft.completion)
            ticket.push(event)

    def _fail(self, error: BaseException) -> None:
        """Everything that the engine had is lost; its tickets raise the error."""
        failed = list(self.jobs.values())
        self.jobs.clear()
        self.counts["failed"] += len(failed)
        for job in failed:
            job.draft.stop()
            if ticket := job.ticket():
                ticket.push(error)


@cache
def _close_at_exit() -> "weakref.WeakSet[_Worker]":
    """Those that are to be closed before the interpreter ends: a thread must not be in C by then."""
    workers: weakref.WeakSet[_Worker] = weakref.WeakSet()

    @atexit.register
    def close_all() -> None:
        for worker in list(workers):
            with contextlib.suppress(Exception):
                worker.close()

    return workers
