"""What logits a row of the output matrix can have at all, over every input that a model can be given.

The final norm's output is h = g * z + b, where z has zero mean and at most the length sqrt(width): whatever the text,
h stays in an ellipsoid. So the largest logit of a row w has a closed form, sqrt(width) * |P(g * w)| + w . b, where P
takes off the mean; and so has the direction in which all of the ellipsoid lies on one side of zero.
"""

from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from .quant_types import TensorType

Array = npt.NDArray[np.floating[Any]]
Vector = npt.NDArray[np.float64]

# How llama.cpp's CPU kernels round activations before they meet a matrix (`vec_dot_type` in ggml-cpu.c, and
# quantize_row_q8_0, _q8_1 and _q8_K): relative to each value for these types,
_RELATIVE = {TensorType.F32: 0.0, TensorType.F16: 2.0**-11, TensorType.BF16: 2.0**-8}
# for these in blocks of 256, for all others in blocks of 32 with a scale in F16
_IN_256 = {TensorType[f"Q{bits}_K"] for bits in range(2, 7)} | {TensorType.TQ1_0, TensorType.TQ2_0}
_IN_256 |= {kind for kind in TensorType if kind.name.startswith("IQ") and kind is not TensorType.IQ4_NL}
_WITH_MINIMUM = (TensorType.Q4_1, TensorType.Q5_1)  # multiplied with a sum of the activations, in F16 too
_HALF_STEP = 0.50002 / 127  # of a block's largest value; the rest is what the product before the rounding is off by
_HALF = 2.0**-11  # what F16 is off by, relatively, and the largest part of a scale below its normal numbers
_TINY = 127 * 2.0**-25


class FinalNorm:
    """`weight` g and `bias` b of `output_norm`, each (width,). Rows are (rows, width), their results (rows,)."""

    def __init__(self, weight: Array, bias: Array) -> None:
        self.weight = np.asarray(weight, np.float64)
        self.bias = np.asarray(bias, np.float64)
        self.radius = sqrt(len(self.weight))

    def largest(self, rows: Array) -> Vector:
        """The largest logit of each row over all inputs, in exact arithmetic."""
        spread = self._spread(rows)
        return np.asarray(rows @ self.bias + self.radius * np.linalg.norm(spread, axis=-1), np.float64)

    def least(self, row: Vector) -> float:
        """The least logit of one row over all inputs."""
        return -float(self.largest(-row[None])[0])

    def at_least(self, row: Vector) -> Vector:
        """The output h, of those that can be, at which the row's logit is the least."""
        spread = self._spread(row)
        length = float(np.linalg.norm(spread))
        return self.bias - (self.radius / length * self.weight * spread if length else 0.0)

    def nearest(self) -> Vector:
        """The point of the ellipsoid that is nearest to zero; zero itself where that is one of its points.

        A row against its direction has the least bound of its length. It minimises |g * z + b| over the z of zero
        mean and bounded length: (g^2 + t) z = -(g * b + m), where m makes the mean zero, and t >= 0 the length.
        """
        low, high = 0.0, 1.0
        z = self._nearest(0.0)
        if np.linalg.norm(z) > self.radius:
            while np.linalg.norm(self._nearest(high)) > self.radius:
                low, high = high, 4 * high
            for _ in range(200):
                middle = (low + high) / 2
                low, high = (middle, high) if np.linalg.norm(self._nearest(middle)) > self.radius else (low, middle)
            z = self._nearest(high)
        found = self.weight * z + self.bias
        rounding = 1e-12 * (np.linalg.norm(self.bias) + 1e-300)
        return found if np.linalg.norm(found) > rounding else np.zeros_like(found)

    def _nearest(self, multiplier: float) -> Vector:
        inverse = 1 / np.maximum(self.weight**2 + multiplier, 1e-300)
        product = self.weight * self.bias
        return np.asarray(-inverse * (product - (inverse @ product) / inverse.sum()), np.float64)

    def reach(self, rows: Array) -> Vector:
        """A bound of the sum of |w_i * h_i| over all inputs: no partial sum is larger."""
        magnitudes = np.abs(np.asarray(rows, np.float64))
        found = self.radius * np.linalg.norm(magnitudes * self.weight, axis=-1) + magnitudes @ np.abs(self.bias)
        return np.asarray(found, np.float64)

    def rounding(self, rows: Array, blocks: npt.NDArray[np.uint8], tensor_type: TensorType) -> Vector:
        """What llama.cpp's CPU kernels can add to each row's logit, at the most, by what they round.

        `rows` are the blocks' values. Activations are rounded to half a step of their block's largest value, which is
        at most |b| + |g| times the length of z there; these lengths share the length of z (Cauchy-Schwarz). Sums in
        F32 are taken at their worst, as if each addition rounded against us, while the mean of the residual stream is
        no larger than its spread.
        """
        width = rows.shape[-1]
        magnitudes = np.abs(np.asarray(rows, np.float64))
        reach = self.reach(rows)
        in_sums = 4 * (width + 8) * 2.0**-24 * reach
        if tensor_type in _RELATIVE:
            found = in_sums + _RELATIVE[tensor_type] * reach + 2.0**-25 * magnitudes.sum(axis=-1)
            return np.asarray(found, np.float64)
        size = 256 if tensor_type in _IN_256 else 32
        step = _HALF_STEP if size == 256 else _HALF_STEP + _HALF
        weights = step * magnitudes.reshape(len(rows), -1, size).sum(axis=-1)
        if tensor_type in _WITH_MINIMUM:  # the F16 behind the scale
            minima = np.ascontiguousarray(blocks.reshape(len(rows), -1, tensor_type.block_bytes)[:, :, 2:4])
            weights += 2 * size * _HALF * np.abs(minima.view(np.float16)[:, :, 0].astype(np.float64))
        largest_weight = np.abs(self.weight).reshape(-1, size).max(axis=1)
        largest_bias = np.abs(self.bias).reshape(-1, size).max(axis=1)
        in_blocks = weights @ largest_bias + self.radius * np.linalg.norm(weights * largest_weight, axis=1)
        below_normal = 0.0 if size == 256 else _TINY / step * weights.sum(axis=1)
        return np.asarray(in_sums + in_blocks + below_normal, np.float64)

    def _spread(self, rows: Array) -> Vector:
        scaled = np.asarray(rows, np.float64) * self.weight
        return np.asarray(scaled - scaled.mean(axis=-1, keepdims=True), np.float64)
