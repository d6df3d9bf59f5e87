"""Turns: schedulers of several models, and other calls, that share the cores compute one after the other."""

import threading


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
        self._next = threading.Lock()  # held by the first that waits: one who has just left cannot overtake it
        self._turn = threading.Lock()

    def __enter__(self) -> None:
        with self._next:
            self._turn.acquire()

    def __exit__(self, *_: object) -> None:
        self._turn.release()
