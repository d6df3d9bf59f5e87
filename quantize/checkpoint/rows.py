"""How tensors are handed on: some rows at a time, so that a large one is never in memory as a whole."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

RowReader = Callable[[int, int], npt.NDArray[np.floating[Any]]]
"""Called with (first row, number of rows), gives weights of the shape (rows, columns), float16, float32 or float64."""

BlockReader = Callable[[int, int], npt.NDArray[np.uint8]]
"""Called with (first row, number of rows), gives their bytes as they are stored, shape (rows, bytes of a row)."""


def from_bfloat16(halves: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """NumPy has no BF16: the numbers of which these are the upper halves."""
    return (halves.astype(np.uint32) << 16).view(np.float32)
