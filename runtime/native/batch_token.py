"""Types of a decode: its tokens, its logits, and the saved state of a sequence."""

import reprlib
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import UsageError

TokenIds = Sequence[int]
Logits = npt.NDArray[np.float32]  # of one position, shape (real vocabulary,)
State = npt.NDArray[np.uint8]  # saved cells of a sequence: bytes, shape (size,)


class BatchToken(Protocol):
    """A token to decode: the slot of its sequence, and its position there."""

    token: int
    next_position: int
    slot: int


def token_ids(tokens: object, vocabulary: int) -> list[int]:
    """Token ids as Python integers; C does not take NumPy's.

    Raises `UsageError` for an id outside the vocabulary: some of them make llama.cpp end the process.
    """
    if isinstance(tokens, bytes | bytearray | str) or not isinstance(tokens, Iterable):
        raise UsageError(f"expected a text or a list of token ids, not {reprlib.repr(tokens)}")
    found = list(tokens)
    for token in found:
        if not isinstance(token, int | np.integer) or not 0 <= token < vocabulary:
            raise UsageError(f"a token id must be 0-{vocabulary - 1} in this vocabulary, not {token!r}")
    return [int(token) for token in found]
