"""The convex hull of an output matrix's rows: what is known of the best logit, whatever the activations are.

A point of the hull is a mean of the rows by some weights q, and its logit the same mean of theirs: so it can not be
above the best of them, for any activations, however a kernel has rounded them (it rounds them once for all rows). That
the best of them lies above by some margin follows from a point beyond: max_v w_v . h >= (sum_v q_v w_v) . h.
"""

from collections.abc import Iterator
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from .final_norm import FinalNorm, Vector

Rows = npt.NDArray[np.floating[Any]]

_AT_ONCE = 8192  # rows that are computed with in float64 at a time
_STEPS = 100  # of Frank-Wolfe
_REFINEMENTS = 2
_SLACK = 0.99  # for what the rounding of float32 leaves uncertain in a spread


class Hull:
    """The hull of `rows`, (tokens, width), which are kept, and looked at in float64 some at a time.

    Weights near given ones f_v (all positive, with the sum 1; uniform, if none are given) have a closed form: with the
    mean m and the covariance C of the rows under f, q_v = f_v (1 + (w_v - m)' C^-1 (p - m)) gives the point p, and is a
    proof of it where no q_v is negative.
    """

    def __init__(self, rows: Rows, near: Vector | None = None) -> None:
        self._rows = rows
        self._known: dict[bytes, Vector] = {}  # shares by the point
        self.count, width = rows.shape
        self._near = np.full(self.count, 1 / self.count) if near is None else np.asarray(near, np.float64) / near.sum()
        self.mean = self._combined(np.ones(self.count))
        covariance = np.zeros((width, width))
        for start, part in self._parts():
            centred = part - self.mean
            covariance += (centred.T * self._near[start : start + len(part)]) @ centred
        variances, axes = np.linalg.eigh(covariance)
        usable = variances > 1e-10 * variances.max(initial=0)
        self.is_solid = bool(usable.all()) and self.count > width  # else it is flat, and has no inside
        self._whitening = axes[:, usable] / np.sqrt(variances[usable])

    def contains(self, point: Vector) -> bool:
        """Whether the closed form shows the point inside; points that it does not reach may be inside too."""
        return self.is_solid and float(self._shares(point).min()) > 0

    def spread(self, point: Vector) -> float:
        """By how many standard deviations of the rows' logits the best of them is above the point's, at the least.

        For any activations at all. It is the radius of an ellipsoid around the point that lies in the hull; 0 where
        none was found.
        """
        if not self.contains(point):
            return 0.0
        whitening = self._whitening.astype(np.float32)
        distances = [
            np.linalg.norm((part - self.mean).astype(np.float32) @ whitening, axis=1) for _, part in self._parts()
        ]
        return _SLACK * float((self._shares(point) / np.concatenate(distances)).min())

    def gap(self, point: Vector, norm: FinalNorm) -> float:
        """A lower bound, over all inputs, of the best row's logit minus the point's, in exact arithmetic.

        For a point inside it is positive wherever the norm's outputs do not reach zero.
        """
        if not self.contains(point):
            return norm.least(self._approach(point, norm))
        shares, change = self._shares(point), self._deviations(norm.nearest())
        falling = change < 0
        step = float((shares[falling] / -change[falling]).min()) if falling.any() else 0.0
        weights = np.maximum(shares + step * change, 0)
        return norm.least(self._combined(weights) / float(weights @ self._near) - point)

    def _approach(self, point: Vector, norm: FinalNorm) -> Vector:
        """A point of the hull minus `point`, of a large least logit, by Frank and Wolfe's steps from the mean."""
        found: Vector = self.mean - point
        for _ in range(_STEPS):
            worst = norm.at_least(found)
            best = int((self._rows @ worst.astype(self._rows.dtype)).argmax())
            change = np.asarray(self._rows[best], np.float64) - point - found
            step = _line_search(found, change, norm)
            if step <= 0:
                break
            found = found + step * change
        return found

    def _shares(self, point: Vector) -> Vector:
        """How much more than `near` each row weighs, (tokens,), in a mean that gives the point."""
        if (known := self._known.get(point.tobytes())) is not None:
            return known
        shares = np.ones(self.count)
        for _ in range(_REFINEMENTS):
            shares += self._deviations(point - self._combined(shares))
        self._known[point.tobytes()] = shares
        return shares

    def _deviations(self, change: Vector) -> Vector:
        direction = self._whitening @ (self._whitening.T @ change)
        found = np.concatenate([part @ direction for _, part in self._parts()]) - self.mean @ direction
        return np.asarray(found, np.float64)

    def _combined(self, shares: Vector) -> Vector:
        weights = shares * self._near
        return np.asarray(sum(weights[start : start + len(part)] @ part for start, part in self._parts()), np.float64)

    def _parts(self) -> Iterator[tuple[int, Vector]]:
        """The first row's number, and rows."""
        for start in range(0, self.count, _AT_ONCE):
            yield start, np.asarray(self._rows[start : start + _AT_ONCE], np.float64)


def _line_search(row: Vector, change: Vector, norm: FinalNorm) -> float:
    """The step of 0 to 1 along `change` that makes the row's least logit the largest: a root of its derivative."""
    at_ends = [norm.weight * vector for vector in (row, change)]
    here, slope = (vector - vector.mean() for vector in at_ends)
    gain = float(change @ norm.bias) / norm.radius
    square, mixed = float(slope @ slope), float(here @ slope)
    if square <= gain * gain:  # it grows, or falls, all the way
        return 1.0 if gain > 0 else 0.0
    rest = max(float(here @ here) * square - mixed * mixed, 0.0)
    return min(max((gain * sqrt(rest / (square - gain * gain)) - mixed) / square, 0.0), 1.0)
