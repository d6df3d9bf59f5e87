"""Arithmetic on rows of logits, some rows at a time on several threads: 255 rows of 50,257 do not fit a cache.

NumPy lets other threads run while it works, so blocks of rows that fit the cache go over the cores that decoded them.
Sums over a row are taken in float64.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.workers import Workers

Logits = npt.NDArray[np.float32]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
ForBlocks = Callable[[int, Callable[[slice], None]], None]

_BLOCK = 8  # rows
_SMALL = 0.1  # difference of logits: what the series leaves out is a ten-thousandth of its sum at the most


@contextmanager
def on_threads(threads: int) -> Iterator[ForBlocks]:
    """A function that calls another one for all blocks of so many rows."""
    with Workers(threads) as pool:

        def for_blocks(rows: int, function: Callable[[slice], None]) -> None:
            blocks = [slice(start, min(start + _BLOCK, rows)) for start in range(0, rows, _BLOCK)]
            if threads == 1 or len(blocks) == 1:
                for block in blocks:
                    function(block)
            else:
                for _ in pool.map(function, blocks):
                    pass

        yield for_blocks


def nll(rows: Logits, targets: IntArray, for_blocks: ForBlocks) -> FloatArray:
    """The negative log-likelihood of the tokens that came, in nats, (rows,), by logits (rows, vocabulary)."""
    result = np.empty(len(targets))

    def compute(block: slice) -> None:
        part = rows[block]
        shifted = part - part.max(axis=-1, keepdims=True)
        came = shifted[np.arange(len(part)), targets[block]].astype(np.float64)
        np.exp(shifted, out=shifted)
        result[block] = np.log(shifted.sum(axis=-1, dtype=np.float64)) - came

    for_blocks(len(targets), compute)
    return result


@dataclass(frozen=True)
class Base:
    """What the reference makes of scored tokens: their negative log-likelihood in nats, the likeliest token in their
    place, and that one's probability."""

    nll: FloatArray
    top: IntArray
    top_p: FloatArray


@dataclass(frozen=True)
class Expected(Base):
    """The reference's rows of one window: the tokens that came, the logits, the exponentials of what they are below
    the row's largest, and the sums of these."""

    targets: IntArray
    logits: Logits
    weights: Logits
    totals: FloatArray


@dataclass(frozen=True)
class Found:
    """Per scored token of a level: `nll` and `kld` from the reference in nats, and its likeliest token `top`."""

    nll: FloatArray
    kld: FloatArray
    top: IntArray


def expected(rows: Logits, targets: IntArray, for_blocks: ForBlocks) -> Expected:
    """From the reference's logits, (rows, vocabulary), which may be read only."""
    count = len(targets)
    weights = np.empty_like(rows)
    totals, came, top = np.empty(count), np.empty(count), np.empty(count, np.int64)

    def compute(block: slice) -> None:
        part, weight = rows[block], weights[block]
        index = np.arange(len(part))
        top[block] = part.argmax(axis=-1)
        np.subtract(part, part[index, top[block], None], out=weight)
        came[block] = weight[index, targets[block]]
        np.exp(weight, out=weight)
        totals[block] = weight.sum(axis=-1, dtype=np.float64)

    for_blocks(count, compute)
    return Expected(np.log(totals) - came, top, 1 / totals, targets, rows, weights, totals)


def no_scores(count: int) -> Found:
    """To be filled by `compare`."""
    return Found(np.empty(count), np.empty(count), np.empty(count, np.int64))


def compare(rows: Logits, reference: Expected, start: int, result: Found, for_blocks: ForBlocks) -> None:
    """Compares a level's logits, (rows, all tokens), with the reference's, (rows, vocabulary), from the row `start` on.

    With d = l' - l, the level's logits less the reference's, p the reference's probabilities and m = sum(p d),
    KL = ln sum(p exp(d)) - m, which does not change when all d move by a constant.

    Pad tokens, which the reference does not have, take the share s of the level's probability. That scales all others
    by 1 - s, which adds -ln(1 - s) to both losses.
    """
    vocabulary = reference.logits.shape[-1]

    def compute(block: slice) -> None:
        part, pads = rows[block][:, :vocabulary], rows[block][:, vocabulary:]
        there = slice(start + block.start, start + block.start + len(part))
        index = np.arange(len(part))
        weights, totals = reference.weights[there], reference.totals[there]
        top = part.argmax(axis=-1)
        largest = part[index, top]
        offset = largest - reference.logits[there][index, reference.top[there]]
        d = part - reference.logits[there]
        d -= offset[:, None]
        shifted = part - largest[:, None]
        came = shifted[index, reference.targets[there]].astype(np.float64)
        np.exp(shifted, out=shifted)
        log_total = np.log(shifted.sum(axis=-1, dtype=np.float64))
        mean = (weights * d).sum(axis=-1, dtype=np.float64) / totals
        log_pads = np.logaddexp.reduce(np.subtract(pads, largest[:, None], dtype=np.float64), axis=-1)
        lost = np.logaddexp(0.0, log_pads - log_total)  # -ln(1 - s); 0 without pads
        result.top[there] = rows[block].argmax(axis=-1) if pads.shape[-1] else top
        result.nll[there] = log_total + lost - came
        if max(d.max(), -d.min()) < _SMALL:
            result.kld[there] = _of_small(d - mean.astype(np.float32)[:, None], weights, totals)
        else:
            result.kld[there] = np.maximum(log_total - np.log(totals) - mean, 0.0)  # not negative but for rounding
        result.kld[there] += lost

    for_blocks(len(rows), compute)


def _of_small(d: Logits, weights: Logits, totals: FloatArray) -> FloatArray:
    """KL divergence where all d are small and have the mean 0: ln(1 + sum(p (exp(d) - 1 - d))), by its series.

    The difference of two logarithms that are nearly equal would leave nothing but rounding of 32-bit exponentials.
    """
    terms = d * d * (np.float32(1 / 2) + d * (np.float32(1 / 6) + d * np.float32(1 / 24)))
    terms *= weights
    found: FloatArray = np.log1p(terms.sum(axis=-1, dtype=np.float64) / totals)
    return found
