"""Pad rows for an output matrix: tokens that fill its vocabulary up, and that can not win in any runtime.

llama.cpp has faster kernels for matrices whose rows come in eights, and no GPT-2 has such a vocabulary. Our runtime
leaves pad tokens out; others do not know what they are, so that their logits must never be the largest. There are
three ways, and the first that can be is taken:

- far below: a row against the one direction in which all outputs of the final norm lie (final_norm.py), so long that
  its largest logit is below anything else. The direction's margin is thin, and few blocks hold it: F16 does, or any
  type where the norm's bias is large; four bits do not.
- inside: a point within the hull of the real rows (hull.py), which can not beat all of them for any activations,
  rounded in whatever way. With rows that are centred it is zero, and its logit 0 in every runtime.
- a copy of a real row, which is never above its twin; of equal ones llama.cpp's greedy sampler takes the first.
"""

from dataclasses import dataclass
from math import ceil, inf, log2
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .errors import UsageError
from .final_norm import Array, FinalNorm, Vector
from .ggml import dequantize, quantize
from .hull import Hull
from .quant_types import TensorType

PAD_MULTIPLE = 8  # rows that llama.cpp's repacked kernels take at a time
HEADROOM = 32.0  # logits by which a pad that is far below stays below: e^-32 of the best token's probability
_LARGEST = 32768.0  # of a weight and of all partial sums: half of what F16 holds, in which some kernels add up

_RARE = 0.01  # of all weight, for tokens that a text has not shown

Method = Literal["far below", "inside", "copy"]
Blocks = npt.NDArray[np.uint8]

_IN_WORDS = {
    "far below": "scaled against the norm's one-sided direction: below every real token for every input",
    "inside": "within the hull of the real rows: no activations make it the largest",
    "copy": "a copy of a real row: never above its twin, which comes first",
}


@dataclass(frozen=True)
class PadRows:
    """Pad rows, all alike, and what is known of their logits; bounds are over every input that the model can get.

    `blocks` are (count, bytes of a row), `rows` their values, (count, width). `bound` is the largest logit in exact
    arithmetic, `rounded_bound` with what llama.cpp's CPU kernels can add by rounding activations and sums.
    `least_best` is a lower bound of the best real token's logit, and `gap` of the best real one minus the pad's for
    the same input, both in exact arithmetic. `spread`: by how many standard deviations of the real logits the best one
    is above the pad's at the least, for any activations, however rounded (0: not known). `margin` is the smallest best
    logit seen on a text minus `rounded_bound`; None where the caller has not seen any.
    """

    tensor_type: TensorType
    blocks: Blocks
    rows: npt.NDArray[np.float32]
    bound: float
    rounded_bound: float
    least_best: float
    gap: float
    spread: float
    margin: float | None
    method: Method

    @property
    def always_loses(self) -> bool:
        """Whether it is proven that a real token is above the pads for every input; else one is at least as high.

        But for activations that are all zero, where all logits are: with a bias, the norm has none such.
        """
        return self.method != "copy"

    @property
    def in_words(self) -> str:
        return _IN_WORDS[self.method]

    def to_json(self) -> dict[str, Any]:
        names = ("method", "bound", "rounded_bound", "least_best", "gap", "spread", "margin", "always_loses")
        return {"count": len(self.rows), **{name: getattr(self, name) for name in names}}


def pad_count(vocabulary: int, multiple: int = PAD_MULTIPLE) -> int:
    """How many rows fill the vocabulary up to a multiple: 3 for 8,189."""
    return -vocabulary % multiple


def choose_pads(
    name: str,
    blocks: Blocks,
    tensor_type: TensorType,
    count: int,
    norm_weight: Array,
    norm_bias: Array,
    *,
    least_top: float | None = None,
    importance: npt.NDArray[np.float32] | None = None,
    frequencies: Vector | None = None,
) -> PadRows:
    """Pad rows for the matrix `name`, of the same type as its real rows.

    `blocks` are the real rows as they go to the file, (tokens, bytes of a row), and `norm_weight` and `norm_bias` those
    of `output_norm` there, (width,). `least_top` is the smallest best logit that a text has shown; `importance` weighs
    the columns, as for the real rows; `frequencies`, (tokens,), are those of the tokens, where the rows are centred by
    them. Raises `UsageError` for less than one pad, and `DgptQuantError` for blocks that
    are broken.
    """
    if count < 1:
        raise UsageError(f"{count} pad rows were asked for; at least 1 makes sense")
    norm = FinalNorm(norm_weight, norm_bias)
    real = dequantize(name, blocks, tensor_type, (len(blocks), len(norm.bias)))
    hull = Hull(real, None if frequencies is None else frequencies / frequencies.sum() + _RARE / len(real))
    zero = np.zeros_like(norm.bias)
    least_best = hull.gap(zero, norm)
    coder = _Coder(name, tensor_type, importance, norm)
    method: Method = "far below"
    found = _far_below(coder, min(least_best, inf if least_top is None else least_top))
    if found is None:
        method, found = "inside", _inside(coder, hull)
    if found is None:
        method, found = "copy", blocks[_tamest(real, hull, norm)][None]
    row = dequantize(name, found, tensor_type, (1, len(zero)))
    point = np.asarray(row[0], np.float64)
    bound = float(norm.largest(row)[0])
    rounded_bound = bound + float(norm.rounding(row, found, tensor_type)[0])
    gap = hull.gap(point, norm) if method == "inside" else 0.0 if method == "copy" else least_best - bound
    return PadRows(
        tensor_type=tensor_type,
        blocks=np.repeat(found, count, axis=0),
        rows=np.repeat(row, count, axis=0),
        bound=bound,
        rounded_bound=rounded_bound,
        least_best=least_best + 0.0,
        gap=gap + 0.0,  # no -0.0
        spread=hull.spread(point),
        margin=None if least_top is None else least_top - rounded_bound,
        method=method,
    )


@dataclass(frozen=True)
class _Coder:
    """Rows as the matrix stores them."""

    name: str
    tensor_type: TensorType
    importance: npt.NDArray[np.float32] | None
    norm: FinalNorm

    def encode(self, row: Vector) -> Blocks:
        return quantize(self.name, row[None], [self.tensor_type], self.importance)[0].view(np.uint8).reshape(1, -1)

    def decode(self, blocks: Blocks) -> npt.NDArray[np.float32]:
        return dequantize(self.name, blocks, self.tensor_type, (1, len(self.norm.bias)))

    def rounded_bound(self, blocks: Blocks) -> float:
        rows = self.decode(blocks)
        return float((self.norm.largest(rows) + self.norm.rounding(rows, blocks, self.tensor_type))[0])


def _far_below(coder: _Coder, level: float) -> Blocks | None:
    """A row whose largest logit is `HEADROOM` below a level, and below -`HEADROOM`; None where there is none.

    The bound grows with the row's length, so that a row with a negative one only has to be made longer: by a power of
    two, which leaves its blocks' numbers as they are.
    """
    nearest = coder.norm.nearest()
    if not nearest.any():
        return None
    row = -nearest / np.abs(nearest).max()
    bound = coder.rounded_bound(coder.encode(row))
    if bound > -HEADROOM / _LARGEST:  # no length that F16 holds would do
        return None
    row = row * 2.0 ** ceil(log2((HEADROOM - min(level, 0.0)) / -bound))
    if max(float(np.abs(row).max()), float(coder.norm.reach(row[None])[0])) > _LARGEST:
        return None
    found = coder.encode(row)
    return found if coder.rounded_bound(found) <= min(level, 0.0) - 0.9 * HEADROOM else None


def _inside(coder: _Coder, hull: Hull) -> Blocks | None:
    """Zero where it lies within the hull, else the rows' mean where its blocks do."""
    for point in (np.zeros_like(hull.mean), hull.mean):
        found = coder.encode(point)
        if hull.contains(np.asarray(coder.decode(found)[0], np.float64)):
            return found
    return None


def _tamest(real: npt.NDArray[np.float32], hull: Hull, norm: FinalNorm) -> int:
    """The real row that can rise the least above the average one."""
    mean = hull.mean.astype(np.float32)
    parts = [norm.largest(real[start : start + 8192] - mean) for start in range(0, len(real), 8192)]
    return int(np.concatenate(parts).argmin())
