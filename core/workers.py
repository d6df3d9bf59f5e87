"""Worker threads that end soon after Ctrl-C.

Python runs signal handlers in the main thread between any two instructions, also inside `threading` and
`concurrent.futures`, where an exception can leave a lock held forever. So the main thread waits only on locks and
queues written in C, which an exception leaves intact. Workers that end early set a flag; long jobs test it with
`check_cancelled`.
"""

import _thread
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Generic, TypeVar, cast

from .errors import RuntimeFailure

Item = TypeVar("Item")
Result = TypeVar("Result")

_HEARD = 0.1  # seconds between two tests of the flag in a job that waits for another one
_BEGINS = 30.0  # seconds that a thread may take to begin
_here = threading.local()  # `state` is that of the thread's workers


class Cancelled(BaseException):
    """Ends a job when its workers end early."""


class _State:
    """State shared by `Workers` and their threads, which do not keep the `Workers` alive."""

    cancelled = False


def check_cancelled() -> None:
    """Raises `Cancelled` in a job whose workers end early; long work calls it several times a second."""
    state: _State | None = getattr(_here, "state", None)
    if state is not None and state.cancelled:
        raise Cancelled


class Job(Generic[Result]):
    """A function call on another thread."""

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function: Callable[[], Result] | None = function
        self._value: Result | None = None
        self._error: BaseException | None = None
        self._pending = _thread.allocate_lock()  # held until the call has ended
        self._pending.acquire()

    def run(self) -> None:
        """Runs the function; after `drop` it ends with `Cancelled`."""
        try:
            if self._function is None:
                raise Cancelled
            self._value = self._function()
        except BaseException as error:
            self._error = error
        pending, self._function = self._pending, None
        del self  # the error refers to this frame, and would keep alive the job that holds the error
        pending.release()

    def drop(self) -> None:
        self._function = None

    def result(self) -> Result:
        """Waits for the end; returns the function's result or raises its exception."""
        if hasattr(_here, "state"):  # a worker thread, where no signal handler runs
            while not self._pending.acquire(timeout=_HEARD):
                check_cancelled()
            self._pending.release()
        else:
            with self._pending:  # a handler could raise between `acquire` and `release`, but not inside `with`
                pass
        error = self._error
        if error is None:
            return cast(Result, self._value)
        try:
            raise error
        finally:
            del error, self


class Workers:
    """A pool of threads for a `with` block; all have ended after it.

    If the block ends with an exception, waiting jobs are dropped, and `check_cancelled` ends the running ones.
    """

    def __init__(self, threads: int) -> None:
        self._state = _State()
        self._jobs: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._living = [_thread.allocate_lock() for _ in range(threads)]  # each held while its thread lives

    def __enter__(self) -> "Workers":
        """Raises `RuntimeFailure` if the system starts no more threads."""
        try:
            for number, living in enumerate(self._living):
                living.acquire()
                begun = _thread.allocate_lock()
                begun.acquire()
                _thread.start_new_thread(_work, (self._jobs, living, begun, self._state))
                if not begun.acquire(timeout=_BEGINS):  # without memory a thread can end before its first line
                    del self._living[number:]
                    raise no_more_threads()
        except BaseException as error:
            self._end()
            if isinstance(error, RuntimeError):
                raise no_more_threads() from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._state.cancelled = kind is not None
            self._end()
            for living in self._living:
                with living:
                    pass
        except BaseException:  # an interrupt: do not wait for running jobs
            self._state.cancelled = True
            self._end()
            raise

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Job[Result]:
        job = Job(lambda: function(*arguments))
        self._jobs.put(job)
        return job

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results in the order of the items. All are submitted at once; closing the iterator drops waiting jobs."""
        return _results(deque([self.submit(function, item) for item in items]))

    def _end(self) -> None:
        """Ends each thread after the jobs that are now in the queue."""
        for _ in self._living:
            self._jobs.put(None)


def require_threads(count: int) -> None:
    """Raises `RuntimeFailure` if the system does not start `count` more threads.

    Call it before NumPy is imported and before OpenMP starts its threads: without threads, OpenBLAS sends the process
    a SIGINT, and libgomp ends it.
    """
    waiting = _thread.allocate_lock()
    with waiting:
        try:
            for _ in range(count):
                _thread.start_new_thread(_pass_through, (waiting,))
        except RuntimeError as error:
            raise no_more_threads() from error


def _pass_through(lock: Any) -> None:
    with lock:
        pass


def no_more_threads() -> RuntimeFailure:
    """The error for a `RuntimeError` of a thread that could not be started."""
    return RuntimeFailure(
        "the system refuses to start another thread",
        "Raise the limit of processes (`ulimit -u`, a container's pids limit) or of memory (`ulimit -v`).",
    )


def _work(jobs: "SimpleQueue[Job[Any] | None]", living: Any, begun: Any, state: _State) -> None:
    try:
        begun.release()
        _here.state = state
        while (job := jobs.get()) is not None:
            if state.cancelled:
                job.drop()
            job.run()
            del job
    finally:
        living.release()


def _results(jobs: "deque[Job[Result]]") -> Iterator[Result]:
    try:
        while jobs:
            yield jobs.popleft().result()
    finally:
        for job in jobs:
            job.drop()
