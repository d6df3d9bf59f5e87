"""How far a level's next-token distribution is from the reference's: the figures, with their uncertainty.

The names and definitions are llama-perplexity's (`--kl-divergence`), which stores the reference's logits in 16 bits;
here both sides are compared as the floats that they are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from dgpt2_quant.bench.document.schema import ConfidenceJson, Interval, NoiseFloor, Pair
from dgpt2_quant.runtime.sampling.sampler import overflowed

from .bootstrap import Bootstrap, token_blocks
from .compare_files import Quality
from .logit_rows import FloatArray

Flags = npt.NDArray[np.bool_]

_CONFIDENCE = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # of the reference in its likeliest token


@dataclass(frozen=True)
class Perplexity:
    """`nll` is the mean negative log-likelihood of a token, in nats; `stderr` that of the perplexity."""

    tokens: int
    nll: float
    perplexity: float
    stderr: float


@dataclass(frozen=True)
class Divergence:
    """KL divergence of a level from the reference, in nats, and friends, as fractions of 1 (schema.py tells each)."""

    perplexity: Perplexity
    ppl_ratio: float
    ppl_ratio_interval: Interval
    kld_mean: float
    kld_stderr: float
    kld_interval: Interval
    kld_median: float
    kld_p90: float
    kld_p95: float
    kld_p99: float
    kld_p999: float
    kld_max: float
    top1_agreement: float
    mean_dp: float
    rms_dp: float
    nll_correlation: float | None
    by_confidence: list[ConfidenceJson]


def summarize(nll: FloatArray) -> Perplexity:
    """From each scored token's negative log-likelihood; the standard error is llama-perplexity's, by the delta rule.

    Raises `RuntimeFailure` where one is not finite: no figure of such a model would mean anything.
    """
    if not np.isfinite(nll).all():
        raise overflowed()
    mean = float(nll.mean())
    spread = math.sqrt(nll.var() / (nll.size - 1)) if nll.size > 1 else math.nan
    return Perplexity(nll.size, mean, math.exp(mean), math.exp(mean) * spread)


def resampled(quality: Quality) -> Bootstrap:
    """Draws of its scored tokens, the same for all that is asked of them."""
    # by the strided method the scored tokens of all windows are one run of the text
    runs = [sum(quality.lengths)] if quality.cut.method == "strided" else quality.lengths
    return Bootstrap(token_blocks(runs))


def divergence(quality: Quality, level: int, draws: Bootstrap) -> Divergence:
    """The figures of one level; `draws` are `resampled(quality)`."""
    base, found = quality.base, quality.levels[level]
    kld, dp = found.kld, np.exp(-found.nll) - np.exp(-base.nll)
    median, p90, p95, p99, p999 = map(float, np.quantile(kld, [0.5, 0.9, 0.95, 0.99, 0.999]))
    difference = found.nll - base.nll
    varies = base.nll.std() > 0 and found.nll.std() > 0
    same = found.top == base.top
    return Divergence(
        perplexity=summarize(found.nll),
        ppl_ratio=math.exp(difference.mean()),
        ppl_ratio_interval=draws.mean(difference, of=np.exp),
        kld_mean=float(kld.mean()),
        kld_stderr=float(kld.std() / math.sqrt(max(1, kld.size - 1))),
        kld_interval=draws.mean(kld),
        kld_median=median,
        kld_p90=p90,
        kld_p95=p95,
        kld_p99=p99,
        kld_p999=p999,
        kld_max=float(kld.max()),
        top1_agreement=float(same.mean()),
        mean_dp=float(dp.mean()),
        rms_dp=math.sqrt(float(np.mean(dp**2))),
        nll_correlation=float(np.corrcoef(found.nll, base.nll)[0, 1]) if varies else None,
        by_confidence=[
            _of(kld, same, np.digitize(base.top_p, _CONFIDENCE[1:-1]) == index, low, high)
            for index, (low, high) in enumerate(pairwise(_CONFIDENCE))
        ],
    )


def pairs(quality: Quality, names: Sequence[str], draws: Bootstrap) -> list[Pair]:
    """Every two levels, the one that was named first as `a`."""
    levels = list(zip(names, quality.levels, strict=True))
    return [
        {
            "a": a,
            "b": b,
            "kld_difference": draws.mean(of_b.kld - of_a.kld),
            "nll_difference": draws.mean(of_b.nll - of_a.nll),
        }
        for index, (a, of_a) in enumerate(levels)
        for b, of_b in levels[index + 1 :]
    ]


def noise_floor(quality: Quality) -> NoiseFloor:
    """What the reference differs from itself."""
    found = quality.noise.scores
    base = quality.base.nll[: len(found.nll)]
    return {
        "how": quality.noise.how,
        "kld_mean": float(found.kld.mean()),
        "kld_p99": float(np.quantile(found.kld, 0.99)),
        "kld_max": float(found.kld.max()),
        "top1_agreement": float((found.top == quality.base.top[: len(found.top)]).mean()),
        "rms_dp": math.sqrt(float(np.mean((np.exp(-found.nll) - np.exp(-base)) ** 2))),
        "ppl_ratio": math.exp(float((found.nll - base).mean())),
    }


def _of(kld: FloatArray, same: Flags, chosen: Flags, low: float, high: float) -> ConfidenceJson:
    count = int(chosen.sum())
    return {
        "low": low,
        "high": high,
        "tokens": count,
        "kld_mean": float(kld[chosen].mean()) if count else None,
        "top1_agreement": float(same[chosen].mean()) if count else None,
    }
