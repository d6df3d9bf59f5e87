"""The same model in numbers that are easier to quantize: nothing that it computes changes but its logits' common level.

Each of the rewritings is exact, before rounding:

- **Centring the inputs.** A norm's bias and a value's bias are added to what a matrix is multiplied with. They are
  moved into the matrix's own bias so that its inputs have the mean 0 on calibration text: rounding errors of the
  weights then have nothing constant to act on, and the activations fit into their eight bits better. (A value's bias
  passes through attention unchanged, as shares add up to 1.) For activations with outliers: Wei et al. 2023,
  arXiv:2304.09145.
- **Scaling the inputs.** The norm's gain, or the rows that make a value, take over a factor of each column. Factors
  between those of AWQ (Lin et al. 2023, arXiv:2306.00978) and SmoothQuant (Xiao et al. 2022, arXiv:2211.10438).
- **Centring the embedding.** A vector taken from all rows of the embedding and added to all rows of the position table
  leaves what is looked up as it was, and moves all logits of a position by the same number, which no probability sees.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix

Array = npt.NDArray[np.floating[Any]]
Weights = dict[str, Array]
_LEAST = 1e-9  # of a column's size: one that is never used is left as it is


def with_even_inputs(
    weights: Mapping[str, Array], sizes: Hyperparameters, importance: ImportanceMatrix, *, centre: bool, scale: bool
) -> Weights:
    """The model with the inputs of QKV, attention output and `ffn_up` centred and scaled, as far as asked for.

    The statistics are those of the `importance` matrix, which has to hold an entry for each matrix of the blocks, and
    the sums of its inputs to centre them.
    """
    changed: Weights = {name: np.array(data, np.float64) for name, data in weights.items() if name.startswith("blk.")}
    for name, gain, bias in _inputs(changed, sizes):
        entry = importance.entries[f"{name}.weight"]
        mean = np.asarray(entry.mean, np.float64) if centre else np.zeros(len(entry.sum_squares))
        spread = np.sqrt(np.maximum(np.asarray(entry.mean_squares, np.float64) - mean**2, 0))
        matrix = changed[f"{name}.weight"]
        factor = _factors(spread, matrix) if scale else np.ones_like(mean)
        changed[f"{name}.bias"] = changed[f"{name}.bias"] + matrix @ mean
        changed[f"{name}.weight"] = matrix * factor
        gain /= factor[:, None] if gain.ndim == 2 else factor
        bias -= mean
        bias /= factor
    return {name: np.asarray(changed.get(name, data), np.float32) for name, data in weights.items()}


def with_centred_embedding(weights: Mapping[str, Array], frequencies: Array) -> Weights:
    """The model with the mean of the embedding's rows, weighed by how frequent tokens are, in the position table."""
    changed = {name: np.asarray(data, np.float32) for name, data in weights.items()}
    share = (frequencies / frequencies.sum()).astype(np.float32)
    centre = share @ changed["token_embd.weight"]
    changed["token_embd.weight"] = changed["token_embd.weight"] - centre
    changed["position_embd.weight"] = changed["position_embd.weight"] + centre
    if "output.weight" in changed:
        head = changed["output.weight"]
        changed["output.weight"] = head - share @ head
    return changed


def _inputs(weights: Weights, sizes: Hyperparameters) -> Iterator[tuple[str, Array, Array]]:
    """Each matrix whose inputs can be changed: its name, and views of what makes its inputs, a gain and a bias.

    The values are rows of the fused matrix: they are changed after its columns.
    """
    width = sizes.width
    for block in range(sizes.layers):
        for matrix, norm in (("attn_qkv", "attn_norm"), ("ffn_up", "ffn_norm")):
            yield f"blk.{block}.{matrix}", weights[f"blk.{block}.{norm}.weight"], weights[f"blk.{block}.{norm}.bias"]
        fused = weights[f"blk.{block}.attn_qkv.weight"], weights[f"blk.{block}.attn_qkv.bias"]
        yield f"blk.{block}.attn_output", fused[0][2 * width :], fused[1][2 * width :]


def _factors(spread: Array, matrix: Array) -> Array:
    """Of each column: the square root of its inputs' size over its weights' size, with the geometric mean 1."""
    size = np.sqrt(np.square(matrix).mean(axis=0))
    used = (spread > _LEAST) & (size > _LEAST)
    factor = np.ones_like(spread)
    if used.any():
        factor[used] = np.sqrt(spread[used] / size[used])
        factor[used] /= np.exp(np.log(factor[used]).mean())
    return factor
