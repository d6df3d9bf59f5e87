"""Top-k, top-p, min-p and typical filters over the whole vocabulary, in NumPy: the tokens that can be sampled.

llama.cpp's samplers take an array of all tokens, which is built for each token and, for some filters, sorted; with
50,257 flat logits that can take longer than the decode. These functions find the few tokens that a filter would leave;
llama.cpp's samplers then run on them. The result depends only on the logits.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.runtime.native.batch_token import Logits

Ids = npt.NDArray[np.intp]

_ROWS = 32  # rows into which logits are folded to bound the k-th largest
_USUALLY_ENOUGH = 256  # candidates that usually have the requested probability


def top_k_candidates(logits: Logits, count: int) -> Ids:
    """The `count` most likely tokens and perhaps some more, by id: those whose logits reach a cheap bound."""
    size = len(logits)
    columns = size // _ROWS
    if count >= size:
        return np.arange(size)
    # called for each token, after a decode has evicted everything from the caches: few operations
    if count <= columns // 4:
        # the k-th largest of the maxima of disjoint columns is a close lower bound of the k-th largest
        folded = np.maximum.reduce(logits[: _ROWS * columns].reshape(_ROWS, columns), axis=0)
    else:
        folded = logits.copy()
    kth = len(folded) - count
    folded.partition(kth)
    found: Ids = (logits >= folded[kth]).nonzero()[0]
    return found


def top_k(logits: Logits, count: int) -> Ids:
    """The `count` most likely tokens, shape (count,), by descending logit; of equal ones the lower id comes first."""
    return _descending(logits, top_k_candidates(logits, count))[:count]


def at_least(logits: Logits, bound: float) -> Ids:
    """The tokens whose logits reach `bound`, by id; at least the most likely one."""
    found = (logits >= bound).nonzero()[0]
    return found if len(found) else top_k(logits, 1)


def nucleus(logits: Logits, share: float, least: float = -np.inf) -> Ids:
    """Top-p: the most likely tokens that together have `share` of the probability, with all ties for the last place.

    Only those whose logits reach `least` (min-p, as a bound of the logits). In no particular order.
    """
    weights = np.exp(logits - logits.max())
    wanted = share * float(weights.sum(dtype=np.float64))
    if least > -np.inf:
        found = (logits >= least).nonzero()[0]
        if weights[found].sum(dtype=np.float64) <= wanted:  # both filters keep the beginning of the same order
            return found
    found = top_k(logits, _USUALLY_ENOUGH)
    ordered = weights[found]
    mass = ordered.cumsum(dtype=np.float64)
    if mass[-1] < wanted:
        ordered = np.sort(weights)[::-1]
        mass = ordered.cumsum(dtype=np.float64)
    last = ordered[min(int(np.searchsorted(mass, wanted)), len(mass) - 1)]
    return at_least(weights, last)


def typical(logits: Logits, share: float) -> Ids:
    """Locally typical tokens (Meister et al. 2022, arXiv:2202.00666), the most typical first.

    These are the tokens with the surprise nearest to the entropy that together have more than `share` of the
    probability.
    """
    shifted = logits - logits.max()
    weights = np.exp(shifted)
    total = float(weights.sum(dtype=np.float64))
    # entropy = log(total) - sum(p * shifted); a logit of -inf contributes nothing
    possible = np.where(weights > 0, shifted, 0)
    entropy = np.log(total) - float(np.dot(weights, possible)) / total
    distance = np.abs(np.log(total) - shifted - entropy)
    order = top_k(-distance.astype(np.float32), _USUALLY_ENOUGH)
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
