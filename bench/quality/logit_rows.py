"""Arithmetic on rows of logits, in small blocks on several threads.

255 rows of 50,257 logits do not fit a CPU cache, blocks of 8 do. NumPy releases the GIL, so blocks run in parallel.
Sums over a row are in float64.
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
_SMALL = 0.1  # difference of logits, below which the series is exact to a ten-thousandth


@contextmanager
def on_threads(threads: int) -> Iterator[ForBlocks]:
    """Gives `for_blocks(rows, function)`, which calls the function with each block of rows."""
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
    """The negative log-likelihood of the target tokens, in nats, (rows,); logits are (rows, vocabulary)."""
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
class TokenScores:
    """A model's scores per token: negative log-likelihood in nats, likeliest token, and its probability."""

    nll: FloatArray
    top: IntArray
    top_p: FloatArray


@dataclass(frozen=True)
class ReferenceRows(TokenScores):
    """The reference's rows of one window: target tokens, logits, `weights` = exp(logits - the row's largest), and
    `totals`, the sums of the weights."""

    targets: IntArray
    logits: Logits
    weights: Logits
    totals: FloatArray


@dataclass(frozen=True)
class FileScores:
    """A file's scores per token: `nll` and `kld` from the reference, in nats, and the likeliest token `top`."""

    nll: FloatArray
    kld: FloatArray
    top: IntArray


def reference_rows(rows: Logits, targets: IntArray, for_blocks: ForBlocks) -> ReferenceRows:
    """Scores of the reference from its logits, (rows, vocabulary), which may be read-only."""
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
    return ReferenceRows(np.log(totals) - came, top, 1 / totals, targets, rows, weights, totals)


def no_scores(count: int) -> FileScores:
    """Empty scores, which `compare` fills."""
    return FileScores(np.empty(count), np.empty(count), np.empty(count, np.int64))


def compare(rows: Logits, reference: ReferenceRows, start: int, result: FileScores, for_blocks: ForBlocks) -> None:
    """Compares a file's logits, (rows, all tokens), with the reference's, (rows, vocabulary), from row `start`.

    With d = l' - l, the file's logits minus the reference's, p the reference's probabilities and m = sum(p d),
    KL = ln sum(p exp(d)) - m. Adding a constant to all d does not change it.

    Pad tokens, which the reference lacks, have the share s of the file's probability. All other probabilities are
    scaled by 1 - s, which adds -ln(1 - s) to both losses.
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
            result.kld[there] = np.maximum(log_total - np.log(totals) - mean, 0.0)  # below 0 only by rounding
        result.kld[there] += lost

    for_blocks(len(rows), compute)


def _of_small(d: Logits, weights: Logits, totals: FloatArray) -> FloatArray:
    """KL divergence for small d of mean 0: ln(1 + sum(p (exp(d) - 1 - d))), by its series.

    The difference of two nearly equal logarithms would be only the rounding error of 32-bit exponentials.
    """
    terms = d * d * (np.float32(1 / 2) + d * (np.float32(1 / 6) + d * np.float32(1 / 24)))
    terms *= weights
    found: FloatArray = np.log1p(terms.sum(axis=-1, dtype=np.float64) / totals)
    return found
