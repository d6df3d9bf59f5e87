"""Row-wise tensor access, so that a large tensor is never in memory as a whole; BF16 decoding."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

RowReader = Callable[[int, int], npt.NDArray[np.floating[Any]]]
"""Called with (first row, number of rows); returns weights, shape (rows, columns): float16, float32 or float64."""

BlockReader = Callable[[int, int], npt.NDArray[np.uint8]]
"""Called with (first row, number of rows); returns encoded rows, shape (rows, bytes of a row)."""


def from_bfloat16(halves: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Decodes BF16, the upper halves of float32 numbers, which NumPy lacks."""
    return (halves.astype(np.uint32) << 16).view(np.float32)
