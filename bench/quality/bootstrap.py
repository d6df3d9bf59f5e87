"""95 % intervals of means over tokens, by block bootstrap.

Neighbouring tokens of a text are correlated, so that drawing single tokens would make the intervals too narrow. Blocks
of tokens are drawn instead (Carlstein 1986). One `Bootstrap` uses the same draws for every mean, so the interval of a
difference between two files is paired: it is that of the difference on the same tokens, which is much narrower than
either file's own. The draws are seeded: the same scores give the same interval.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from dgpt2_quant.bench.document.schema import Interval

BLOCK = 32  # tokens
_FEWEST, _MOST = 10, 4000  # blocks: with fewer the spread is not known, more take gigabytes
_DRAWS = 2000
_SEED = 20190924
_TAILS = (0.025, 0.975)

FloatArray = npt.NDArray[np.float64]


class Bootstrap:
    """Draws blocks of values; `blocks` has the block number of each value, from 0, shape (values,)."""

    def __init__(self, blocks: npt.NDArray[np.integer], *, draws: int = _DRAWS) -> None:
        self._blocks = np.asarray(blocks)
        self._counts = np.bincount(self._blocks).astype(np.float64)
        size = len(self._counts)
        # how often each block is in each draw, shape (draws, blocks)
        times = np.random.default_rng(_SEED).multinomial(size, np.full(size, 1 / size), size=draws)
        self._times = times.astype(np.float64)
        self._drawn = self._times @ self._counts

    def mean(
        self, values: npt.NDArray[np.floating] | npt.NDArray[np.bool_], *, of: Callable[..., FloatArray] | None = None
    ) -> Interval:
        """The mean of the values, shape (values,), with its interval; or `of` the mean, for example its exp."""
        sums = np.bincount(self._blocks, weights=values, minlength=len(self._counts))
        means = (self._times @ sums) / self._drawn
        whole = np.array(sums.sum() / self._counts.sum())
        if of is not None:
            means, whole = of(means), of(whole)
        low, high = np.quantile(means, _TAILS)
        return {"value": float(whole), "low": float(low), "high": float(high)}


def token_blocks(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """The block of each token, for consecutive runs of these lengths. No block spans two runs.

    Blocks have `BLOCK` tokens, fewer in a short text and more in a very long one.
    """
    total = sum(lengths)
    block = max(1, min(BLOCK, total // _FEWEST), -(-total // _MOST))
    numbers, first = [np.empty(0, np.int64)], 0
    for length in lengths:
        numbers.append(first + np.arange(length) // block)
        first += -(-length // block)
    return np.concatenate(numbers)
