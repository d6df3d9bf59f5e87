"""Perplexity, KL divergence and related figures of a file, with their uncertainty.

The names and definitions are those of `llama-perplexity --kl-divergence`, which stores the reference's logits in 16
bits; here both sides are compared in float32.
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

_CONFIDENCE = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)  # bounds of the reference's highest probability


@dataclass(frozen=True)
class Perplexity:
    """`nll` is the mean negative log-likelihood of a token, in nats; `stderr` is the perplexity's."""

    tokens: int
    nll: float
    perplexity: float
    stderr: float


@dataclass(frozen=True)
class Divergence:
    """The figures of one file; KL divergences in nats, shares as fractions of 1 (`schema.Result` defines each)."""

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
    """Perplexity from each scored token's negative log-likelihood, with llama-perplexity's standard error (delta rule).

    Raises `RuntimeFailure` if a value is not finite: no figure of such a model would mean anything.
    """
    if not np.isfinite(nll).all():
        raise overflowed()
    mean = float(nll.mean())
    spread = math.sqrt(nll.var() / (nll.size - 1)) if nll.size > 1 else math.nan
    return Perplexity(nll.size, mean, math.exp(mean), math.exp(mean) * spread)


def resampled(quality: Quality) -> Bootstrap:
    """The draws of the scored tokens that all intervals use."""
    # with the strided method the scored tokens of all windows are one run of the text
    runs = [sum(quality.lengths)] if quality.windowing.method == "strided" else quality.lengths
    return Bootstrap(token_blocks(runs))


def divergence(quality: Quality, number: int, draws: Bootstrap) -> Divergence:
    """The figures of the file with this number; `draws` is `resampled(quality)`."""
    base, found = quality.base, quality.files[number]
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
    """The differences of every two files; `a` is the one that was named first."""
    files = list(zip(names, quality.files, strict=True))
    return [
        {
            "a": a,
            "b": b,
            "kld_difference": draws.mean(of_b.kld - of_a.kld),
            "nll_difference": draws.mean(of_b.nll - of_a.nll),
        }
        for index, (a, of_a) in enumerate(files)
        for b, of_b in files[index + 1 :]
    ]


def noise_floor(quality: Quality) -> NoiseFloor:
    """The figures of the reference against itself."""
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
