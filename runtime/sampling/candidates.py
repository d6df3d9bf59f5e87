"""Which tokens can be chosen at all: the cheap part of sampling, over the whole vocabulary.

llama.cpp's samplers take an array of all tokens, which is built anew for each token and, for some, sorted; for 50,257
flat logits that can take longer than the decode itself. These functions find by vectors the few tokens that such a
filter would leave; C then does the rest on them. What they find depends on nothing but the logits.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.runtime.native.batch_token import Logits

Ids = npt.NDArray[np.intp]

_ROWS = 32  # how a row of logits is folded to find a bound of the k-th largest
_FIRST_GUESS = 256  # candidates that usually hold the mass asked for


def at_least_likely(logits: Logits, count: int) -> Ids:
    """The `count` likeliest tokens and some more, by id: all from a bound on that is easy to find."""
    size = len(logits)
    columns = size // _ROWS
    if count >= size:
        return np.arange(size)
    # called once a token, right after a decode has emptied the caches: as few operations as can be
    if count <= columns // 4:
        # the k-th largest of the maxima of disjoint columns is a lower bound of the k-th largest, and a close one
        folded = np.maximum.reduce(logits[: _ROWS * columns].reshape(_ROWS, columns), axis=0)
    else:
        folded = logits.copy()
    kth = len(folded) - count
    folded.partition(kth)
    found: Ids = (logits >= folded[kth]).nonzero()[0]
    return found


def likeliest(logits: Logits, count: int) -> Ids:
    """The `count` likeliest tokens, shape (count,), by falling logit; of equal ones the lower id comes first."""
    return _descending(logits, at_least_likely(logits, count))[:count]


def at_least(logits: Logits, bound: float) -> Ids:
    """The tokens whose logits reach `bound`, by id, and the likeliest one in any case."""
    found = (logits >= bound).nonzero()[0]
    return found if len(found) else likeliest(logits, 1)


def nucleus(logits: Logits, share: float, least: float = -np.inf) -> Ids:
    """Top-p: the likeliest tokens that together have `share` of the probability; all that tie for the last place.

    Of these, those whose logits reach `least` (min-p, which needs no normalization of its own). In no special order.
    """
    weights = np.exp(logits - logits.max())
    wanted = share * float(weights.sum(dtype=np.float64))
    if least > -np.inf:
        found = (logits >= least).nonzero()[0]
        if weights[found].sum(dtype=np.float64) <= wanted:  # both filters keep a beginning of the same order
            return found
    found = likeliest(logits, _FIRST_GUESS)
    ordered = weights[found]
    mass = ordered.cumsum(dtype=np.float64)
    if mass[-1] < wanted:
        ordered = np.sort(weights)[::-1]
        mass = ordered.cumsum(dtype=np.float64)
    last = ordered[min(int(np.searchsorted(mass, wanted)), len(mass) - 1)]
    return at_least(weights, last)


def typical(logits: Logits, share: float) -> Ids:
    """Locally typical tokens (Meister et al. 2022, arXiv:2202.00666), the most typical first.

    Those whose surprise is nearest to the entropy and that together have more than `share` of the probability.
    """
    shifted = logits - logits.max()
    weights = np.exp(shifted)
    total = float(weights.sum(dtype=np.float64))
    # entropy = log(total) - sum(p * shifted); a logit of -inf has no part in it
    possible = np.where(weights > 0, shifted, 0)
    entropy = np.log(total) - float(np.dot(weights, possible)) / total
    distance = np.abs(np.log(total) - shifted - entropy)
    order = likeliest(-distance.astype(np.float32), _FIRST_GUESS)
    mass = weights[order].cumsum(dtype=np.float64)
    if mass[-1] <= share * total:
        order = np.argsort(distance)
        mass = weights[order].cumsum(dtype=np.float64)
    return order[: int(np.searchsorted(mass, share * total, side="right")) + 1]


def log_total(logits: Logits) -> float:
    """log(sum(exp(logits))), in nats: a token's log-probability is its logit minus this."""
    top = float(logits.max())
    return top + float(np.log(np.exp(logits - np.float32(top)).sum(dtype=np.float64)))


def _descending(logits: npt.NDArray[Any], ids: Ids) -> Ids:
    return ids[np.argsort(-logits[ids], kind="stable")]
