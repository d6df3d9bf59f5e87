"""The native thread: where C makes and frees models and contexts, so that no signal handler runs in the middle of it.

Python runs signal handlers in the main thread, between any two bytecodes. There an interrupt can come after C has
returned a handle and before it is kept, or at the start of a callback from C, where ctypes drops the exception and the
Ctrl-C is lost. In any other thread no handler runs. So the main thread only waits here, and an interrupt is raised
after the call has ended.

What C made is held by an `Owned`. It is freed when the last reference to it goes, and never earlier: a call in another
thread, or an array that shows its memory, keeps it alive. This needs no lock, and no code that could be interrupted:
the callback of a weak reference is `SimpleQueue.put`, which is C and made for it.
"""

import _thread
import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

from dgpt2_quant.core.workers import no_more_threads

Result = TypeVar("Result")
Queue = SimpleQueue[Callable[[], object]]

_log = logging.getLogger(__name__)
_alive: dict[int, "_Fate"] = {}  # a weak reference calls back only while it exists itself
_threads: dict[int, Queue] = {}  # by process: a forked child has none of its parent's threads
_own = threading.local()


class Owned:
    """The address of something that C made. `free(pointer)` is called after the last reference to this has gone.

    `keeps` are other things that must exist for as long, such as the model of a context.
    """

    __slots__ = ("__weakref__", "pointer")

    def __init__(self, pointer: int, free: Callable[[int], object], *keeps: object) -> None:
        self.pointer = pointer
        fate = _Fate(self, _queue().put)
        fate.pointer, fate.free, fate.keeps = pointer, free, keeps
        _alive[id(fate)] = fate


class _Fate(weakref.ref[Owned]):
    """What becomes of an `Owned`. The native thread calls it when that is gone."""

    __slots__ = ("free", "keeps", "pointer")
    pointer: int
    free: Callable[[int], object]
    keeps: tuple[object, ...]

    def __call__(self) -> None:
        _alive.pop(id(self), None)
        self.free(self.pointer)
        self.keeps = ()


def in_native_thread(call: Callable[[], Result], cancel: Callable[[], object] | None = None) -> Result:
    """What `call` returns; called in the native thread if this is the main thread, otherwise here.

    What it makes, it must store where it belongs by itself. After an interrupt, `cancel` is called, the end of the
    call is awaited, and then the interrupt is raised. Raises `RuntimeFailure` when no thread can be started.
    """
    if threading.get_ident() != threading.main_thread().ident:
        return call()
    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:
            outcome.append((None, error))

    _run_and_wait(run, cancel)
    result, error = outcome.pop()
    if error is not None:
        try:
            raise error
        finally:
            del error  # a cycle of this frame and the error would keep all that both refer to
    found: Result = result
    return found


def flush() -> None:
    """Waits until everything that has been dropped is freed."""
    if not getattr(_own, "is_native", False) and os.getpid() in _threads:
        _run_and_wait(lambda: None)


def _run_and_wait(call: Callable[[], None], cancel: Callable[[], object] | None = None) -> None:
    """Runs it in the native thread, and then frees what was dropped meanwhile."""
    queue, woken, over = _queue(), _thread.allocate_lock(), False
    woken.acquire()

    def end() -> None:
        nonlocal over
        over = True
        woken.release()

    def run() -> None:
        call()
        queue.put(end)

    interrupt: BaseException | None = None
    handed = False
    while not over:  # and not until the lock is taken: an interrupt can come after that
        try:
            if not handed:
                handed = True
                queue.put(run)  # here, as an interrupt can come right after it
            woken.acquire()
        except BaseException as error:
            interrupt = error
            if cancel:
                cancel()
    if interrupt is not None:
        try:
            raise interrupt
        finally:
            del interrupt


def _queue() -> Queue:
    """Of this process's native thread, which is started when it is first needed."""
    queue = _threads.get(os.getpid())
    if queue is None:
        mine: Queue = SimpleQueue()
        try:
            _thread.start_new_thread(_serve, (mine,))
        except RuntimeError as error:
            raise no_more_threads() from error
        queue = _threads.setdefault(os.getpid(), mine)
        if queue is not mine:
            mine.put(_thread.exit)  # another thread was first
    return queue


def _serve(queue: Queue) -> None:
    _own.is_native = True
    while True:
        try:
            queue.get()()
        except SystemExit:
            return
        except BaseException:  # it must go on: everybody waits for it
            _log.exception("a call of llama.cpp failed")


@atexit.register
def _settle() -> None:
    """A thread must not be in C when the interpreter ends."""
    flush()
