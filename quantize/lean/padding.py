"""Pad tokens: copies of the least likely token that fill the vocabulary to a multiple of 8.

llama.cpp has faster kernels for matrices whose row count is a multiple of 8, and no GPT-2 has such a vocabulary. This
project's runtime ignores pad tokens. Other programs sample from all tokens, so pads take probability from real ones.
A byte copy of a real row has that row's logit, in every kernel and for every input: a pad is never above its twin, and
greedy decoding takes the first of equals, the twin.
"""

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from dgpt2_quant.quantize.calibration.numpy_gpt2 import Array


@dataclass(frozen=True)
class Padding:
    """`count` pad tokens after the real ones, copies of the token `twin`. `probability` is the share of the next-token
    probability that all of them take, the mean over the beginning of the calibration text."""

    count: int
    twin: int
    probability: float = 0.0

    def to_json(self) -> dict[str, float]:
        return asdict(self)

    def append_pads(self, rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Appends the pads' rows, shape (tokens + count, bytes of a row)."""
        return np.concatenate([rows, np.repeat(rows[self.twin : self.twin + 1], self.count, axis=0)])


NO_PADDING = Padding(0, 0)


def least_likely(rows: Array, mean_hidden: Array) -> int:
    """The token with the lowest mean log-probability, given the output matrix, shape (tokens, width).

    `mean_hidden`, shape (width,), is the mean of the final norm's outputs h. A token's log-probability is w·h minus a
    term that is the same for all tokens, so the means are ordered as w·E[h].
    """
    return int((rows @ mean_hidden.astype(np.float32)).argmin())
