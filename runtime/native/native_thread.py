"""The native thread, in which C creates and frees models and contexts, so that no signal handler interrupts it.

Python runs signal handlers in the main thread, between any two bytecodes. There an interrupt can arrive after C has
returned a pointer and before it is stored, or at the start of a callback from C, where ctypes drops the exception and
the Ctrl-C is lost. No handler runs in any other thread. So the main thread only waits for the native thread, and raises
an interrupt after the call has ended.

An `Owned` holds what C created. It is freed after the last reference to it is gone: a call in another thread, or an
array that shows its memory, keeps it alive. This needs no lock, and no code that could be interrupted: the callback of
a weak reference is `SimpleQueue.put`, which is implemented in C and reentrant.
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
_alive: dict[int, "_Fate"] = {}  # a weak reference calls back only while it exists
_threads: dict[int, Queue] = {}  # by process: a forked child does not have its parent's threads
_own = threading.local()


class Owned:
    """The address of an object in C. `free(pointer)` is called after the last reference to this is gone.

    `keeps` are other objects that must exist until then, such as the model of a context.
    """

    __slots__ = ("__weakref__", "pointer")

    def __init__(self, pointer: int, free: Callable[[int], object], *keeps: object) -> None:
        self.pointer = pointer
        fate = _Fate(self, _queue().put)
        fate.pointer, fate.free, fate.keeps = pointer, free, keeps
        _alive[id(fate)] = fate


class _Fate(weakref.ref[Owned]):
    """Frees an `Owned`. The native thread calls it after that is gone."""

    __slots__ = ("free", "keeps", "pointer")
    pointer: int
    free: Callable[[int], object]
    keeps: tuple[object, ...]

    def __call__(self) -> None:
        _alive.pop(id(self), None)
        self.free(self.pointer)
        self.keeps = ()


def in_native_thread(call: Callable[[], Result], cancel: Callable[[], object] | None = None) -> Result:
    """The result of `call`, which runs in the native thread if this is the main thread, otherwise in this one.

    `call` must store what it creates itself: after an interrupt its result is lost. Then `cancel` is called, and the
    interrupt is raised after the end of the call. Raises `RuntimeFailure` if no thread can be started.
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
            del error  # a cycle of this frame and the error would keep everything in both
    found: Result = result
    return found


def flush() -> None:
    """Waits until all dropped objects are freed."""
    if not getattr(_own, "is_native", False) and os.getpid() in _threads:
        _run_and_wait(lambda: None)


def _run_and_wait(call: Callable[[], None], cancel: Callable[[], object] | None = None) -> None:
    """Runs `call` in the native thread, then frees the objects that were dropped meanwhile."""
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
    while not over:  # not when the lock is acquired: an interrupt can arrive after that
        try:
            if not handed:
                handed = True
                queue.put(run)  # last: an interrupt can arrive right after it
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
    """The queue of this process's native thread, which starts when first needed."""
    queue = _threads.get(os.getpid())
    if queue is None:
        mine: Queue = SimpleQueue()
        try:
            _thread.start_new_thread(_serve, (mine,))
        except RuntimeError as error:
            raise no_more_threads() from error
        queue = _threads.setdefault(os.getpid(), mine)
        if queue is not mine:
            mine.put(_thread.exit)  # another thread created one first
    return queue


def _serve(queue: Queue) -> None:
    _own.is_native = True
    while True:
        try:
            queue.get()()
        except SystemExit:
            return
        except BaseException:  # the thread must continue: others wait for it
            _log.exception("a call of llama.cpp failed")


@atexit.register
def _settle() -> None:
    """Ends calls of C before the interpreter ends."""
    flush()
