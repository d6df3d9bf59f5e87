"""Continuous batching: requests come and go one by one, and decode together in one context while they are there.

with Scheduler(model, parallel=8) as scheduler:
    ticket = scheduler.submit("Once upon a time", max_tokens=64)
    for event in ticket:
        print(event.text, end="")
"""

import atexit
import contextlib
import os
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Unpack

from dgpt2_quant.quantize.errors import OverloadedError, RuntimeFailure
from dgpt2_quant.quantize.interrupts import interrupts_wait

from .closing import Closing
from .draft import Draft
from .engine import Engine, Totals
from .model import PARALLEL, Model, check_parallel
from .request import Options, check_count
from .ticket import Event, Ticket

QUEUE = 64  # requests that may wait, unless the caller says otherwise


@dataclass(frozen=True)
class Stats:
    """Requests that wait and that are worked on, those that were, and what was computed for them since the start."""

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
    sent: int = 0  # tokens that were told of
    cancelled: bool = False


class Scheduler(Closing):
    """Requests for one model, from any thread: `parallel` at a time, in the order in which they came.

    At most `queue` more may wait. Each has `ctx_size` positions (default: the model's). One thread of its own does the
    work; prompts are computed in chunks between the steps of the others. The model must stay open; closing it closes
    its schedulers.
    """

    def __init__(
        self, model: Model, *, parallel: int = PARALLEL, queue: int = QUEUE, ctx_size: int | None = None
    ) -> None:
        parallel = check_parallel(parallel)
        queue = check_count("queue", queue)
        if ctx_size is not None:
            ctx_size = check_count("the context size", ctx_size, 1)
        self.model = model
        self.parallel = parallel
        self.queue = queue
        self.positions = min(ctx_size or model.positions, model.positions)
        self._lock = threading.RLock()  # taken by itself, as in `Uses`
        self._changed = threading.Condition(self._lock)
        self._incoming: list[_Job] = []
        self._jobs: dict[Draft, _Job] = {}  # those that the engine has
        self._closing = self._draining = False
        self._counts = {"finished": 0, "cancelled": 0, "failed": 0}
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="dgpt2-quant scheduler", daemon=True)
        with interrupts_wait():  # the model closes it from when it has an engine, and so it has to be whole
            self._engine: Engine = model.new_engine(parallel, self.positions, user=self)
            _close_at_exit().add(self)
            self._thread.start()

    def submit(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Ticket:
        """Hands in a request; its events come by the ticket. `Options` tells what can be said by keyword.

        Raises `UsageError` for a prompt or a setting that can not be, `OverloadedError` when the queue is full, and
        `RuntimeFailure` when the scheduler is closed.
        """
        draft = self.model.make_draft(prompt, self.positions, **options)
        job: _Job

        def cancel() -> None:
            job.cancelled = True  # the thread looks at it between two steps

        ticket = Ticket(draft.request.seed, draft.timing, cancel)
        job = _Job(draft, weakref.ref(ticket))
        with self._lock:
            if self._closing:
                raise RuntimeFailure("the scheduler is closed")
            if len(self._incoming) + len(self._jobs) >= self.parallel + self.queue:
                raise OverloadedError(
                    f"{self.parallel} requests are being worked on and {self.queue} wait already", "Try again later."
                )
            self._incoming.append(job)
            self._changed.notify()
        return ticket

    @property
    def stats(self) -> Stats:
        """Where things stand."""
        with self._lock:
            active = self._engine.active
            waiting = len(self._incoming) + len(self._jobs) - active
            return Stats(
                max(waiting, 0),
                active,
                **self._counts,
                threads=self._engine.governor.threads,
                totals=self._engine.totals,
            )

    def close(self, *, drain: bool = False) -> None:
        """Ends all requests, or with `drain` waits for them, and frees the context.

        Closing twice is fine; without `drain` it ends what another call waits for.
        """
        if self._process != os.getpid():
            return  # a forked child has neither the thread nor the context, and a lock may be held for ever
        with self._lock:
            # who does not want to wait goes before who does
            self._draining = drain and (self._draining or not self._closing)
            self._closing = True
            self._changed.notify()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self.model.free_engine(self._engine)

    def _run(self) -> None:
        while self._wait():
            try:
                self._take_jobs()
                for draft, text in self._engine.step():
                    self._tell(draft, text)
            except BaseException as error:  # what the cache holds is not known any more
                self._engine.forget()
                self._fail(error)
        self._take_jobs()
        for draft, text in self._engine.cancel(*self._jobs):
            self._tell(draft, text)

    def _wait(self) -> bool:
        """Until there is something to do; False when it is time to end."""
        with self._lock:
            while not self._closing and not self._incoming and self._engine.idle:
                self._changed.wait()
            if not self._closing:
                return True
            return self._draining and bool(self._incoming or not self._engine.idle)

    def _take_jobs(self) -> None:
        """Gives new requests to the engine, and takes from it those that nobody wants any more."""
        with self._lock:
            arrived, self._incoming = self._incoming, []
            for job in arrived:
                self._jobs[job.draft] = job
        for job in arrived:
            self._engine.add(job.draft)
        unwanted = [draft for draft, job in self._jobs.items() if job.cancelled]
        for draft, text in self._engine.cancel(*unwanted) if unwanted else ():
            self._tell(draft, text)

    def _tell(self, draft: Draft, text: str) -> None:
        """Sends a piece, and counts a request that is through."""
        job = self._jobs[draft]
        if draft.completion:
            with self._lock:
                del self._jobs[draft]
                self._counts["cancelled" if draft.completion.finish_reason == "cancelled" else "finished"] += 1
        ticket = job.ticket()
        if ticket is not None and (text or draft.completion):
            begin, job.sent = job.sent, len(draft.token_ids)
            event = Event(text, tuple(draft.token_ids[begin:]), draft.logprobs(begin), draft.completion)
            ticket.push(event)

    def _fail(self, error: BaseException) -> None:
        """Everything that the engine had is lost; who waits for it is told why."""
        with self._lock:
            failed, self._jobs = list(self._jobs.values()), {}
            self._counts["failed"] += len(failed)
        for job in failed:
            job.draft.stop()
            if ticket := job.ticket():
                ticket.push(error)


@cache
def _close_at_exit() -> "weakref.WeakSet[Scheduler]":
    """Those that are to be closed before the interpreter ends: a thread must not be in C by then."""
    schedulers: weakref.WeakSet[Scheduler] = weakref.WeakSet()

    @atexit.register
    def close_all() -> None:
        for scheduler in list(schedulers):
            with contextlib.suppress(Exception):
                scheduler.close()

    return schedulers
