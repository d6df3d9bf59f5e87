"""95 % intervals by bootstrap, of means over tokens or items; paired where the same instance is asked twice.

Neighbouring tokens of a text are alike, and resampling them one by one would make the intervals too narrow: whole
blocks of them are drawn (the block bootstrap; Carlstein 1986). All means that one `Bootstrap` is asked for are taken
over the same draws, so the interval of a difference between two levels is that of their difference on the same tokens,
which is far better known than either. The draws are seeded: the same scores give the same interval.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from dgpt2_quant.bench.document.schema import Interval

BLOCK = 32  # tokens that are drawn together
_FEWEST, _MOST = 10, 4000  # blocks: fewer draws than these have no spread to speak of, more take gigabytes
_DRAWS = 2000
_SEED = 20190924
_TAILS = (0.025, 0.975)

FloatArray = npt.NDArray[np.float64]


class Bootstrap:
    """Draws from blocks of values: `blocks` has the block's number of each value, 0 and up, shape (values,)."""

    def __init__(self, blocks: npt.NDArray[np.integer], *, draws: int = _DRAWS) -> None:
        self._blocks = np.asarray(blocks)
        self._counts = np.bincount(self._blocks).astype(np.float64)
        size = len(self._counts)
        # how often each block comes in each draw, shape (draws, blocks)
        times = np.random.default_rng(_SEED).multinomial(size, np.full(size, 1 / size), size=draws)
        self._times = times.astype(np.float64)
        self._drawn = self._times @ self._counts

    def mean(
        self, values: npt.NDArray[np.floating] | npt.NDArray[np.bool_], *, of: Callable[..., FloatArray] | None = None
    ) -> Interval:
        """The mean of the values, shape (values,), with its interval; or what `of` makes of a mean (say, its exp)."""
        sums = np.bincount(self._blocks, weights=values, minlength=len(self._counts))
        means = (self._times @ sums) / self._drawn
        whole = np.array(sums.sum() / self._counts.sum())
        if of is not None:
            means, whole = of(means), of(whole)
        low, high = np.quantile(means, _TAILS)
        return {"value": float(whole), "low": float(low), "high": float(high)}


def token_blocks(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """The block of each token in runs of so many tokens that follow one another; no block reaches over a run's end.

    Blocks have `BLOCK` tokens, fewer in a short text, and more in a very long one.
    """
    total = sum(lengths)
    block = max(1, min(BLOCK, total // _FEWEST), -(-total // _MOST))
    numbers, first = [np.empty(0, np.int64)], 0
    for length in lengths:
        numbers.append(first + np.arange(length) // block)
        first += -(-length // block)
    return np.concatenate(numbers)
