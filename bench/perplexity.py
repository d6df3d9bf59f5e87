"""Perplexity by llama.cpp's method, so that the numbers can be laid beside everybody else's.

The text's tokens are cut into chunks of `context`; each chunk is a text of its own, and the tokens of its second half
are scored, so that each has at least half a context before it (llama.cpp, tools/perplexity/perplexity.cpp).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from dgpt2_quant.quantize.errors import UsageError

CONTEXT = 512


@dataclass(frozen=True)
class Perplexity:
    """`nll` is the mean negative log-likelihood of a token, in nats; `stderr` that of the perplexity."""

    tokens: int
    nll: float
    perplexity: float
    stderr: float


def chunks(tokens: Sequence[int], context: int) -> list[Sequence[int]]:
    """The whole chunks of `context` tokens. Raises `UsageError` when there is not even one."""
    if len(tokens) < context:
        raise UsageError(
            f"the text has {len(tokens)} tokens; at least one chunk of {context} is needed",
            "Take a longer text.",
        )
    return [tokens[start : start + context] for start in range(0, len(tokens) - context + 1, context)]


def scored_half(chunk: Sequence[int]) -> tuple[int, npt.NDArray[np.int64]]:
    """Where the scored half begins, and the tokens that its logits (the last one's aside) should have predicted."""
    first = len(chunk) // 2
    return first, np.asarray(chunk[first + 1 :], np.int64)


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Log-probabilities along the last axis, shape (rows, vocabulary); the sums are taken in float64."""
    shifted: npt.NDArray[np.float32] = logits - logits.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    shifted -= np.log(total).astype(np.float32)
    return shifted


def negative_log_likelihood(
    log_probs: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """Of the tokens that came, (rows,), in nats."""
    nll: npt.NDArray[np.float64] = -log_probs[np.arange(len(targets)), targets].astype(np.float64)
    return nll


def summarize(nll: npt.NDArray[np.floating]) -> Perplexity:
    """From each scored token's negative log-likelihood; the standard error is llama-perplexity's, by the delta rule."""
    count = nll.size
    mean = float(nll.mean(dtype=np.float64))
    spread = float(np.sqrt(nll.var(dtype=np.float64) / (count - 1))) if count > 1 else math.nan
    return Perplexity(count, mean, math.exp(mean), math.exp(mean) * spread)
