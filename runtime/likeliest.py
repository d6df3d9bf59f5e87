"""`likeliest.c` in Python's terms, where it was compiled: the only file that touches it.

It chooses what sampler.py would, in one call.
"""

import ctypes
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np

from .decoding import Logits
from .library import TOKEN_DATA, NativeSampler

_CAPACITY = 512  # candidates; more than C's MOST tie seldom


def _compiled() -> Callable[..., int] | None:
    library = find_spec("._likeliest", __package__)  # named like a module, so that it is found where Python looks
    if library is None or library.origin is None:  # there was no compiler: sampler.py does its work
        return None
    try:
        # it takes some microseconds, of which giving the interpreter's lock away and back would be a good part
        function: Any = ctypes.PyDLL(library.origin).choose
    except (OSError, AttributeError):  # of another machine, or another version
        return None
    function.argtypes = [ctypes.c_void_p]
    function.restype = ctypes.c_int32
    found: Callable[..., int] = function
    return found


choose = _compiled()


class _Choice(ctypes.Structure):
    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("size", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("samplers", ctypes.c_void_p),
        ("apply", ctypes.c_void_p),
        ("room", ctypes.c_void_p),
        ("capacity", ctypes.c_int32),
    )


class Chooser:
    """Chooses the likeliest token; or, with samplers, what they take of the `top_k` likeliest and all that tie.

    The samplers must live as long as it is used.
    """

    def __init__(self, top_k: int = 0, samplers: NativeSampler | None = None) -> None:
        self._choice = _Choice(count=top_k)
        self._address = ctypes.addressof(self._choice)
        self._logits: Logits | None = None
        if samplers:
            self._room = np.empty(_CAPACITY, TOKEN_DATA)
            self._choice.room, self._choice.capacity = self._room.ctypes.data, _CAPACITY
            self._choice.samplers, self._choice.apply = samplers.addresses()

    def choose(self, logits: Logits) -> int:
        """The next token by logits of shape (vocabulary,).

        -1 where sampler.py has to find it: not compiled, a `top_k` above 256, too few logits above -inf for it, a NaN
        or an infinity among the candidates; and for the likeliest one also a -inf anywhere.
        """
        if choose is None:
            return -1
        if logits is not self._logits:  # most steps hand over the same object, so it is asked once
            if logits.dtype != np.float32 or not logits.flags.c_contiguous:
                return -1
            self._logits = logits
            self._choice.logits, self._choice.size = logits.ctypes.data, len(logits)
        return choose(self._address)
