"""Rewrites the model into an equivalent one that is easier to quantize: centers and scales inputs of matrices.

Each rewriting is exact before rounding, except that all logits of a position may change by the same number:

- **Centering inputs.** A norm's bias and a value's bias are part of a matrix's inputs. They are moved into the matrix's
  own bias, so that its inputs have mean 0 on the calibration text: rounding errors of the weights then have no constant
  input, and activations fit their 8 bits better. (A value's bias passes through attention unchanged, because attention
  probabilities add up to 1.) For activations with outliers: Wei et al. 2023, arXiv:2304.09145.
- **Scaling inputs.** The norm's gain, or the rows of the value matrix, absorb a factor for each column. The factors are
  between those of AWQ (Lin et al. 2023, arXiv:2306.00978) and SmoothQuant (Xiao et al. 2022, arXiv:2211.10438).
- **Centering the embedding.** A vector is subtracted from all rows of the embedding and added to all rows of the
  position table. Their sum stays the same, and the probabilities too.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.hyperparameters import block_of
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix

Array = npt.NDArray[np.floating[Any]]
Weights = dict[str, Array]
_LEAST = 1e-9  # minimum size of a column to be scaled


def equalize_inputs(
    weights: Mapping[str, Array], importance: ImportanceMatrix, *, centre: bool, scale: bool
) -> Weights:
    """Centers and scales the inputs of QKV, attention output and `ffn_up`, as requested.

    `weights` has one or more whole blocks; each is changed independently of the others. `importance` must have an entry
    for each of their matrices, with the sums of inputs if `centre` is set.
    """
    changed: Weights = {name: np.array(data, np.float64) for name, data in weights.items() if name.startswith("blk.")}
    for name, gain, bias in _inputs(changed):
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


def center_embedding(weights: Mapping[str, Array], frequencies: Array) -> Weights:
    """Moves the mean of the embedding's rows, weighted by token frequency, to the position table."""
    changed = {name: np.asarray(data, np.float32) for name, data in weights.items()}
    share = (frequencies / frequencies.sum()).astype(np.float32)
    centre = share @ changed["token_embd.weight"]
    changed["token_embd.weight"] = changed["token_embd.weight"] - centre
    changed["position_embd.weight"] = changed["position_embd.weight"] + centre
    if "output.weight" in changed:
        head = changed["output.weight"]
        changed["output.weight"] = head - share @ head
    return changed


def _inputs(weights: Weights) -> Iterator[tuple[str, Array, Array]]:
    """Each matrix whose inputs can be changed: its name, and views of the gain and bias that produce the inputs.

    The values are rows of the fused QKV matrix: they are changed after its columns.
    """
    for block in dict.fromkeys(map(block_of, weights)):
        for matrix, norm in (("attn_qkv", "attn_norm"), ("ffn_up", "ffn_norm")):
            yield f"blk.{block}.{matrix}", weights[f"blk.{block}.{norm}.weight"], weights[f"blk.{block}.{norm}.bias"]
        fused = weights[f"blk.{block}.attn_qkv.weight"], weights[f"blk.{block}.attn_qkv.bias"]
        values = slice(2 * len(fused[1]) // 3, None)
        yield f"blk.{block}.attn_output", fused[0][values], fused[1][values]


def _factors(spread: Array, matrix: Array) -> Array:
    """The factor of each column: √(size of its inputs / size of its weights), with geometric mean 1."""
    size = np.sqrt(np.square(matrix).mean(axis=0))
    used = (spread > _LEAST) & (size > _LEAST)
    factor = np.ones_like(spread)
    if used.any():
        factor[used] = np.sqrt(spread[used] / size[used])
        factor[used] /= np.exp(np.log(factor[used]).mean())
    return factor
