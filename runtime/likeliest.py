"""`likeliest.c` in Python's terms, where it was compiled: the only file that touches it.

It finds what `candidates.at_least_likely` finds, in one call that writes right into the array of llama.cpp's samplers.
"""

import ctypes
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from .decoding import Logits


def _compiled() -> Callable[..., int] | None:
    library = find_spec("._likeliest", __package__)  # named like a module, so that it is found where Python looks
    if library is None or library.origin is None:  # there was no compiler: candidates.py does its work
        return None
    try:
        # it takes some microseconds, of which giving the interpreter's lock away and back would be a good part
        function: Any = ctypes.PyDLL(library.origin).likeliest
    except (OSError, AttributeError):  # of another machine
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int32]
    function.restype = ctypes.c_int32
    found: Callable[..., int] = function
    return found


find_likeliest = _compiled()


class Row:
    """Where the logits of a sequence lie. Each step of a text hands over the same object, so it is asked once."""

    def __init__(self) -> None:
        self._logits: Logits | None = None
        self._address = 0

    def likeliest(self, logits: Logits, count: int, target: int, capacity: int) -> int:
        """Writes the `count` likeliest tokens, and all that tie with the last, by id, to the array at `target`.

        That is of `llama_token_data` and has room for `capacity`. Returns how many they are; or -1, where NumPy has to
        find them: not compiled, many of them, or too few logits above -inf.
        """
        if find_likeliest is None:
            return -1
        if logits is not self._logits:
            if logits.dtype != np.float32 or not logits.flags.c_contiguous:
                return -1
            self._logits, self._address = logits, logits.ctypes.data
        return find_likeliest(self._address, len(logits), count, target, capacity)
