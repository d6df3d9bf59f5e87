"""Reads and replaces the integer codes in ggml's blocks, whose scales the C quantizers choose.

A block holds scales and one small code per weight: weight = `scale * level(code) + offset`. Only the places of the
codes are known here (ggml-common.h, ggml-quants.c). Scale and offset follow from decoding a block twice with the C
decoder, with the lowest and the highest code everywhere.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.ggml import dequantize
from dgpt2_quant.core.quant_types import TensorType

Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float32]
Codes = npt.NDArray[np.number[Any]]

# The lowest and highest code; for the non-linear types IQ4_NL and IQ4_XS the indices of the levels below
# (`kvalues_iq4nl` in ggml-common.h).
_RANGE = {
    TensorType.Q4_0: (0, 15),
    TensorType.Q4_1: (0, 15),
    TensorType.Q5_0: (0, 31),
    TensorType.Q5_1: (0, 31),
    TensorType.Q8_0: (-127, 127),
    TensorType.Q2_K: (0, 3),
    TensorType.Q3_K: (0, 7),
    TensorType.Q4_K: (0, 15),
    TensorType.Q5_K: (0, 31),
    TensorType.Q6_K: (0, 63),
    TensorType.IQ4_NL: (0, 15),
    TensorType.IQ4_XS: (0, 15),
}
_UNEVEN = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_UNEVENLY = (TensorType.IQ4_NL, TensorType.IQ4_XS)
_LEAST_SCALE = 1e-30
# the nearest non-linear level for each multiple of 0.5: midpoints between levels are such multiples
_HALVES = np.arange(2 * _UNEVEN[0], 2 * _UNEVEN[-1] + 1, dtype=np.float32) / 2
_NEAREST = _UNEVEN[np.searchsorted((_UNEVEN[1:] + _UNEVEN[:-1]) / 2, _HALVES, "right")]


class Grid:
    """The values that the weights of some rows can take, given their blocks' scales: `offset + scale * level`.

    `scale` and `offset` have shape (columns, rows), so that a column is contiguous. `inverse` is 1 / scale, or 0 where
    the scale is 0 and any level will do.
    """

    def __init__(self, tensor_type: TensorType, scale: Array, offset: Array) -> None:
        self.scale, self.offset = scale, offset
        self.is_uneven = tensor_type in _UNEVENLY
        ends = (_UNEVEN[0], _UNEVEN[-1]) if self.is_uneven else _RANGE[tensor_type]
        self.low, self.high = np.float32(ends[0]), np.float32(ends[1])
        usable = np.abs(scale) > _LEAST_SCALE
        self.inverse = np.divide(1, scale, out=np.zeros_like(scale), where=usable)

    def nearest(self, wanted: Array, out: Array) -> None:
        """Writes the nearest levels to `out`; `wanted`, in units of the scale, is overwritten, and may be `out`.

        Called for every column, so it uses as few operations as possible.
        """
        if not self.is_uneven:
            np.rint(wanted, out=wanted)
            np.maximum(wanted, self.low, out=wanted)
            np.minimum(wanted, self.high, out=out)
            return
        np.maximum(wanted, self.low, out=wanted)
        np.minimum(wanted, self.high, out=wanted)
        wanted -= self.low
        wanted += wanted
        np.take(_NEAREST, wanted.astype(np.intp), out=out, mode="clip")

    def codes(self, levels: Array) -> Codes:
        """The codes of these levels."""
        return np.searchsorted(_UNEVEN, levels) if self.is_uneven else levels


def read_grid(
    name: str, blocks: Bytes, tensor_type: TensorType, shape: tuple[int, int], order: npt.NDArray[np.intp]
) -> Grid:
    """The grid of a matrix of the given shape, from blocks of the C quantizer; columns in the given order.

    Raises as `ggml.dequantize`.
    """
    low, high = _RANGE[tensor_type]
    lowest, highest = (
        dequantize(name, with_codes(tensor_type, blocks, np.full(shape, code, np.int16)), tensor_type, shape)
        for code in (low, high)
    )
    if tensor_type in _UNEVENLY:
        low, high = _UNEVEN[low], _UNEVEN[high]
    highest -= lowest
    highest /= np.float32(high - low)
    scale = highest.T[order]
    if tensor_type in _UNEVENLY:
        return Grid(tensor_type, scale, np.zeros_like(scale))
    lowest -= highest * np.float32(low)
    return Grid(tensor_type, scale, lowest.T[order])


def with_codes(tensor_type: TensorType, blocks: Bytes, codes: Codes) -> Bytes:
    """The blocks, shape (rows, bytes of a row), with their codes replaced, shape (rows, columns)."""
    rows, columns = codes.shape
    count = columns // tensor_type.block
    packed = blocks.reshape(rows, count, tensor_type.block_bytes).copy()
    code = codes.reshape(rows, count, tensor_type.block)
    _PACKERS[tensor_type](packed, code if tensor_type is TensorType.Q8_0 else code.astype(np.uint8))
    return packed.reshape(rows, -1)


def _four_bits(at: int) -> Any:
    def pack(packed: Bytes, code: Bytes) -> None:
        """Codes i and i + 16 of a block of 32 share a byte."""
        packed[..., at:] = code[..., :16] | (code[..., 16:] << 4)

    return pack


def _five_bits(at: int) -> Any:
    def pack(packed: Bytes, code: Bytes) -> None:
        """The fifth bits of 32 codes in a word, then the low four bits."""
        packed[..., at : at + 4] = np.packbits(code >> 4, axis=-1, bitorder="little")
        _four_bits(at + 4)(packed, code & 15)

    return pack


def _q8_0(packed: Bytes, code: Codes) -> None:
    packed[..., 2:] = code.astype(np.int8).view(np.uint8)


def _iq4_xs(packed: Bytes, code: Bytes) -> None:
    halves = code.reshape(*code.shape[:2], 8, 2, 16)
    packed[..., 8:] = (halves[..., 0, :] | (halves[..., 1, :] << 4)).reshape(*code.shape[:2], 128)


def _q4_k(packed: Bytes, code: Bytes) -> None:
    """Codes i and i + 32 of each 64 share a byte."""
    halves = code.reshape(*code.shape[:2], 4, 2, 32) & 15
    packed[..., -128:] = (halves[..., 0, :] | (halves[..., 1, :] << 4)).reshape(*code.shape[:2], 128)


def _q5_k(packed: Bytes, code: Bytes) -> None:
    packed[..., 16:48] = _interleaved(code >> 4, 1)[..., 0, :]
    _q4_k(packed, code)


def _q6_k(packed: Bytes, code: Bytes) -> None:
    """Four quarters in each half of 128; 1 and 3 share bytes for the low nibbles, as do 2 and 4."""
    quarters = code.reshape(*code.shape[:2], 2, 4, 32)
    low = quarters & 15
    pairs = np.stack([low[..., 0, :] | (low[..., 2, :] << 4), low[..., 1, :] | (low[..., 3, :] << 4)], -2)
    packed[..., :128] = pairs.reshape(*code.shape[:2], 128)
    packed[..., 128:192] = _interleaved(code >> 4, 2).reshape(*code.shape[:2], 64)


def _q3_k(packed: Bytes, code: Bytes) -> None:
    packed[..., :32] = _interleaved(code >> 2, 1)[..., 0, :]
    packed[..., 32:96] = _interleaved(code & 3, 2).reshape(*code.shape[:2], 64)


def _q2_k(packed: Bytes, code: Bytes) -> None:
    packed[..., 16:80] = _interleaved(code, 2).reshape(*code.shape[:2], 64)


def _interleaved(code: npt.NDArray[np.integer[Any]], bits: int) -> Bytes:
    """Packs codes that are 32 apart into a byte, the first in the lowest bits; shape (..., parts, 32)."""
    each = 8 // bits
    parts = code.reshape(*code.shape[:2], -1, each, 32)
    packed = np.zeros((*parts.shape[:3], 32), np.uint8)
    for index in range(each):
        packed |= (parts[..., index, :] << (bits * index)).astype(np.uint8)
    return packed


_PACKERS = {
    TensorType.Q4_0: _four_bits(2),
    TensorType.IQ4_NL: _four_bits(2),
    TensorType.Q4_1: _four_bits(4),
    TensorType.Q5_0: _five_bits(2),
    TensorType.Q5_1: _five_bits(4),
    TensorType.Q8_0: _q8_0,
    TensorType.IQ4_XS: _iq4_xs,
    TensorType.Q4_K: _q4_k,
    TensorType.Q5_K: _q5_k,
    TensorType.Q6_K: _q6_k,
    TensorType.Q3_K: _q3_k,
    TensorType.Q2_K: _q2_k,
}
