"""How far a level's next-token distribution is from the reference's, token by token.

Both sides' logits are compared as the floats that they are. (llama-perplexity stores the reference's in 16 bits,
which alone costs 5e-4 of KL divergence.)
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .perplexity import Perplexity, negative_log_likelihood, summarize

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class TokenScores:
    """Per scored token: `nll` in nats, `kld` from the reference in nats, `same_top`, `dp` of the true token."""

    nll: npt.NDArray[np.float64]
    kld: npt.NDArray[np.float64]
    same_top: npt.NDArray[np.bool_]
    dp: npt.NDArray[np.float64]


@dataclass(frozen=True)
class Divergence:
    """KL divergence of a level from the reference, and friends; `top1` and `rms_dp` are fractions of 1."""

    perplexity: Perplexity
    kld_mean: float
    kld_stderr: float
    kld_median: float
    kld_p99: float
    kld_p999: float
    kld_max: float
    top1: float
    rms_dp: float


def score(reference: FloatArray, log_probs: FloatArray, targets: npt.NDArray[np.int64]) -> TokenScores:
    """Compares log-probabilities, both (rows, vocabulary), on the tokens that came, (rows,)."""
    rows = np.arange(len(targets))
    nll = negative_log_likelihood(log_probs, targets)
    expected = np.exp(reference)
    kld = (expected * (reference - log_probs)).sum(axis=-1, dtype=np.float64)
    return TokenScores(
        nll=nll,
        kld=np.maximum(kld, 0.0),  # never negative but for rounding
        same_top=reference.argmax(axis=-1) == log_probs.argmax(axis=-1),
        dp=np.exp(-nll) - np.exp(reference[rows, targets].astype(np.float64)),
    )


def combine(scores: list[TokenScores]) -> Divergence:
    """The figures of all chunks together."""
    kld = np.concatenate([part.kld for part in scores])
    dp = np.concatenate([part.dp for part in scores])
    median, p99, p999 = np.quantile(kld, [0.5, 0.99, 0.999])
    return Divergence(
        perplexity=summarize(np.concatenate([part.nll for part in scores])),
        kld_mean=float(kld.mean()),
        kld_stderr=float(kld.std() / np.sqrt(max(1, kld.size - 1))),
        kld_median=float(median),
        kld_p99=float(p99),
        kld_p999=float(p999),
        kld_max=float(kld.max()),
        top1=float(np.concatenate([part.same_top for part in scores]).mean()),
        rms_dp=float(np.sqrt(np.mean(dp**2))),
    )
