"""Threads to compute on, which end soon after Ctrl-C.

Python calls signal handlers in the main thread, between any two instructions: also inside `threading` and
`concurrent.futures`, where an exception leaves a lock taken for ever. So here the main thread waits for nothing but
locks and queues that are written in C, which an exception leaves as they were. Workers that end early set a flag, and
long jobs look at it with `check_cancelled`.
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

_HEARD = 0.1  # seconds after which a job that waits for another one looks at the flag
_here = threading.local()  # `state` is that of the workers that the thread belongs to


class Cancelled(BaseException):
    """Ends a job whose workers end early."""


class _State:
    """What threads know of their `Workers`, which they do not keep alive."""

    cancelled = False


def check_cancelled() -> None:
    """To be called several times a second by long work. In a job whose workers end early it raises `Cancelled`."""
    state: _State | None = getattr(_here, "state", None)
    if state is not None and state.cancelled:
        raise Cancelled


class Job(Generic[Result]):
    """A call on another thread."""

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function: Callable[[], Result] | None = function
        self._value: Result | None = None
        self._error: BaseException | None = None
        self._pending = _thread.allocate_lock()  # taken until it has ended
        self._pending.acquire()

    def run(self) -> None:
        """Runs in the thread; `drop` before it makes it end with `Cancelled`."""
        try:
            if self._function is None:
                raise Cancelled
            self._value = self._function()
        except BaseException as error:
            self._error = error
        pending, self._function = self._pending, None
        del self  # the error has this frame, and would keep the job that has the error
        pending.release()

    def drop(self) -> None:
        self._function = None

    def result(self) -> Result:
        """Waits, and returns what the function returned or raises what it raised."""
        if hasattr(_here, "state"):  # no signal handler is called there
            while not self._pending.acquire(timeout=_HEARD):
                check_cancelled()
            self._pending.release()
        else:
            with self._pending:  # between `acquire` and `release` a handler could raise, but not inside `with`
                pass
        error = self._error
        if error is None:
            return cast(Result, self._value)
        try:
            raise error
        finally:
            del error, self


class Workers:
    """Threads that take jobs inside a `with` block, and have ended after it.

    Where the block ends by an exception, jobs that have not begun are dropped, and `check_cancelled` ends the others.
    """

    def __init__(self, threads: int) -> None:
        self._state = _State()
        self._jobs: SimpleQueue[Job[Any] | None] = SimpleQueue()
        self._living = [_thread.allocate_lock() for _ in range(threads)]  # each taken while its thread lives

    def __enter__(self) -> "Workers":
        """Raises `RuntimeFailure` where the system starts no more threads."""
        try:
            for living in self._living:
                living.acquire()
                _thread.start_new_thread(_work, (self._jobs, living, self._state))
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
        except BaseException:  # an interrupt: nobody waits for what is still running
            self._state.cancelled = True
            self._end()
            raise

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Job[Result]:
        job = Job(lambda: function(*arguments))
        self._jobs.put(job)
        return job

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The results, in the order of the items. All are submitted at once; closing the iterator drops the others."""
        return _results(deque([self.submit(function, item) for item in items]))

    def _end(self) -> None:
        """Each thread ends after the jobs that are in the queue now."""
        for _ in self._living:
            self._jobs.put(None)


def require_threads(count: int) -> None:
    """Raises `RuntimeFailure` where the system does not start `count` more threads at this moment.

    To be called before NumPy is imported and before OpenMP starts its threads: where OpenBLAS gets none it sends the
    process a SIGINT, and libgomp ends it.
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
    """What to raise from a `RuntimeError` of a thread that could not be started."""
    return RuntimeFailure(
        "the system refuses to start another thread",
        "Raise the limit of processes (`ulimit -u`, a container's pids limit) or of memory (`ulimit -v`).",
    )


def _work(jobs: "SimpleQueue[Job[Any] | None]", living: Any, state: _State) -> None:
    try:
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
