"""Turns: schedulers of several models, and other calls, that share the cores compute one after the other."""

import threading
from collections import deque


class Turns:
    """A lock that its users get in the order in which they ask.

    Two models that decode at the same time on the same cores take several times as long as one after the other: at each
    barrier of a decode, threads wait for one that has no core. Give the same object to each `Scheduler`, and run other
    computations in a `with` block of it:

        with turns:
            model.features(text, pooling="mean")

    Enter it in threads other than the main one: a signal handler that raises while it is entered there could keep it
    locked.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tickets: deque[threading.Lock] = deque()  # the owner of the first computes; the others wait for theirs

    def __enter__(self) -> None:
        ticket = threading.Lock()
        ticket.acquire()
        with self._lock:
            self._tickets.append(ticket)
            waits = len(self._tickets) > 1
        if waits:
            ticket.acquire()

    def pass_on(self) -> None:
        """Inside the block: lets those that wait compute first."""
        self.__exit__()
        self.__enter__()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._tickets.popleft()
            if self._tickets:
                self._tickets[0].release()
