"""Pad tokens: copies of the least likely token, which fill the vocabulary up to a multiple of 8.

llama.cpp has faster kernels for matrices whose rows come in eights, and no GPT-2 has such a vocabulary. Our runtime
leaves pad tokens out. Other programs sample from all tokens, where the pads take probability from the real ones.
A byte copy of a real row has the logit of that row, in every kernel and for every input: a pad is never above its twin,
and greedy decoding takes the first of equals, which is the twin.
"""

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from dgpt2_quant.quantize.calibration.numpy_gpt2 import Array


@dataclass(frozen=True)
class Padding:
    """`count` pad tokens after the real ones, each a copy of the token `twin`."""

    count: int
    twin: int

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    def filled_up(self, rows: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """A matrix with the pads' rows, shape (tokens + count, bytes of a row)."""
        return np.concatenate([rows, np.repeat(rows[self.twin : self.twin + 1], self.count, axis=0)])


NO_PADDING = Padding(0, 0)


def least_likely(rows: Array, mean_hidden: Array) -> int:
    """The token with the lowest mean log-probability, by the output matrix's rows, shape (tokens, width).

    `mean_hidden`, shape (width,), is the mean of the final norm's outputs h. A token's log-probability is w·h less the
    logarithm of a sum over all tokens, which is the same for each of them: the means differ as w·E[h] does.
    """
    return int((rows @ mean_hidden.astype(np.float32)).argmin())
