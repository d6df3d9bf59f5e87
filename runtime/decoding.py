"""What goes into a decode, and what comes out of it: types that need no C."""

from typing import Protocol

import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]  # of one position, shape (real vocabulary,)
State = npt.NDArray[np.uint8]  # of a sequence: bytes, shape (size,)


class Fed(Protocol):
    """A token for a sequence: the slot where that lies, and the token's position there."""

    token: int
    next_position: int
    slot: int
