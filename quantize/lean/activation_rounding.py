"""Rounds activations as llama.cpp does on a CPU before it multiplies a quantized matrix.

From 5 bits up this costs more than the rounding of the weights: a block of 256 numbers shares one scale, so one large
activation reduces the precision of all others (ggml-quants.c: `quantize_row_q8_K_ref`, `quantize_row_q8_0_ref`; the
type for each tensor type: `type_traits_cpu` in ggml-cpu.c).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.quant_types import TensorType

Array = npt.NDArray[np.floating[Any]]


def round_activations(x: Array, tensor_type: TensorType) -> npt.NDArray[np.float32]:
    """Rounds activations, shape (tokens, columns), for a matrix of the given type."""
    values = np.ascontiguousarray(x, np.float32)
    if tensor_type is TensorType.F32:
        return values
    if tensor_type is TensorType.F16:
        return values.astype(np.float16).astype(np.float32)
    if tensor_type is TensorType.BF16:
        bits = values.view(np.uint32)
        to_even = np.uint32(0x7FFF) + ((bits >> 16) & 1)  # ggml_compute_fp32_to_bf16 in ggml-impl.h
        return ((bits + to_even) & np.uint32(0xFFFF0000)).view(np.float32)
    if tensor_type.block == 256:
        return _eight_bits_of_256(values.reshape(-1, 256)).reshape(values.shape)
    return _eight_bits_of_32(values.reshape(-1, 32)).reshape(values.shape)


def _eight_bits_of_32(blocks: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Q8_0; and Q8_1, which has the same scale."""
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    codes = np.rint(blocks * _inverse(scale))
    kept: npt.NDArray[np.float32] = codes * scale.astype(np.float16).astype(np.float32)
    return kept


def _eight_bits_of_256(blocks: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Q8_K: the scale is a float32, and the value of largest magnitude becomes -127."""
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)
    scale = largest / np.float32(-127)
    codes = np.minimum(np.rint(blocks * _inverse(scale)), 127)
    kept: npt.NDArray[np.float32] = codes * scale
    return kept


def _inverse(scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """1 / scale; 0 for a scale of 0."""
    with np.errstate(divide="ignore"):
        return np.where(scale == 0, np.float32(0), 1 / scale)
