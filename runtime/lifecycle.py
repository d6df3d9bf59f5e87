"""When a model may be used: `with` blocks, and calls that arrive in the middle of another one.

A signal handler, a finalizer or a callback can call a model while the same thread is in the middle of a call. The
model's lock lets its own thread in, and the second call would change what the first one is computing.
"""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from dgpt2_quant.core.errors import RuntimeFailure


class Closing:
    """Gives a class with `close` its `with` block."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def refuse_within(owner: object, *methods: Callable[..., Any]) -> None:
    """Raises `RuntimeFailure` if this thread is already in one of these methods of `owner`, outside the caller's
    caller. It searches the stack, which is correct whatever an interrupt has cut short."""
    codes = {method.__code__ for method in methods}
    frame: FrameType | None = sys._getframe(2).f_back
    while frame is not None:
        if frame.f_code in codes and frame.f_locals.get("self") is owner:
            raise RuntimeFailure(
                "a signal handler or a callback used the model in the middle of one of its calls",
                "Set a flag there, and use the model after the call has returned.",
            )
        frame = frame.f_back
