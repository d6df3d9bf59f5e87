"""Calls that come in the middle of another one in the same thread, from a signal handler, a finalizer or a callback.

The lock of a model does not keep them out, as it lets its own thread in; what they would compute in the same context
would change what is being computed there.
"""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from dgpt2_quant.core.errors import RuntimeFailure


def refuse_within(owner: object, *methods: Callable[..., Any]) -> None:
    """Raises `RuntimeFailure` where this thread is in one of these methods of `owner`, other than by the caller's
    caller. By the stack, which is right whatever an interrupt has cut short."""
    codes = {method.__code__ for method in methods}
    frame: FrameType | None = sys._getframe(2).f_back
    while frame is not None:
        if frame.f_code in codes and frame.f_locals.get("self") is owner:
            raise RuntimeFailure(
                "the model was used in the middle of its own computing, by a signal handler or a callback",
                "Set a flag there, and use the model after the call has returned.",
            )
        frame = frame.f_back
