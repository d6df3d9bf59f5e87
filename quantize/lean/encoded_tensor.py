"""Tensors of the recipe `lean` as a file takes them: blocks that are quantized already, pad tokens included."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.checkpoint.rows import BlockReader, RowReader, from_bfloat16

from .layers import QuantizedTensor
from .layerwise import Array
from .padding import Padding


@dataclass(frozen=True)
class EncodedTensor:
    """A `ModelTensor` in memory: blocks of the type `stored`, or numbers where that is None."""

    name: str
    shape: tuple[int, ...]
    stored: TensorType | None
    data: npt.NDArray[Any]

    @property
    def label(self) -> str:
        return self.name

    def read(self) -> Array:
        return self.data

    def reader(self) -> RowReader:
        rows = self.data.reshape(-1, self.shape[-1])
        return lambda first, count: rows[first : first + count]

    def block_reader(self) -> BlockReader:
        if self.stored is None:
            raise TypeError(f"{self.name} is not stored in blocks")
        return lambda first, count: self.data[first : first + count]


def encode_tensor(
    name: str, tensor: QuantizedTensor | Array, shape: tuple[int, ...], padding: Padding
) -> EncodedTensor:
    """The tensor with its pad rows, which `shape` counts."""
    if not isinstance(tensor, QuantizedTensor):
        return EncodedTensor(name, shape, None, tensor)
    blocks = tensor.blocks
    if padding.count and name in ("token_embd.weight", "output.weight"):
        blocks = padding.append_pads(blocks)
    match tensor.tensor_type:
        case TensorType.F32:
            return EncodedTensor(name, shape, None, blocks.view(np.float32))
        case TensorType.F16:
            return EncodedTensor(name, shape, None, blocks.view(np.float16))
        case TensorType.BF16:  # every value is exact in float32
            return EncodedTensor(name, shape, None, from_bfloat16(blocks.view(np.uint16)))
    return EncodedTensor(name, shape, tensor.tensor_type, blocks)
