"""What is closed: at the end of a `with` block, and only when no other thread is in the middle of using it."""

import threading
from typing import Self


class Closing:
    """Gives a class that has `close` its `with`."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Uses:
    """The threads that are using something of C's, each within `with uses:`; who frees it waits for them."""

    def __init__(self) -> None:
        self._threads: list[int] = []
        # taken by itself: of a `with` on the condition, which is Python code, an interrupt could leave the lock taken
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    def __enter__(self) -> None:
        with self._lock:
            self._threads.append(threading.get_ident())

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._threads.remove(threading.get_ident())
            self._changed.notify_all()

    def wait(self) -> None:
        """Until no other thread uses it. (A signal's handler may close what its own thread was about to use.)"""
        own = threading.get_ident()
        with self._lock:
            self._changed.wait_for(lambda: all(thread == own for thread in self._threads))
