"""What goes into a decode, and what comes out of it: what needs no C."""

import reprlib
from collections.abc import Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import UsageError

Logits = npt.NDArray[np.float32]  # of one position, shape (real vocabulary,)
State = npt.NDArray[np.uint8]  # of a sequence: bytes, shape (size,)


class Fed(Protocol):
    """A token for a sequence: the slot where that lies, and the token's position there."""

    token: int
    next_position: int
    slot: int


def token_ids(tokens: object, vocabulary: int) -> list[int]:
    """Token ids as Python's numbers (NumPy's are none to C).

    Raises `UsageError` for what is no id of the vocabulary: llama.cpp ends the process on some of them.
    """
    if isinstance(tokens, bytes | bytearray | str) or not isinstance(tokens, Iterable):
        raise UsageError(f"{reprlib.repr(tokens)} is neither a text nor a list of token ids")
    found = list(tokens)
    for token in found:
        if not isinstance(token, int | np.integer) or not 0 <= token < vocabulary:
            raise UsageError(f"there is no token {token!r}; this vocabulary goes from 0 to {vocabulary - 1}")
    return [int(token) for token in found]
