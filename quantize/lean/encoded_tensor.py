"""Tensors of the recipe `lean` as a file takes them: blocks that are quantized already, pad tokens included."""

from dataclasses import dataclass

import numpy as np
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.core.scratch import Store
from dgpt2_quant.quantize.checkpoint.rows import BlockReader, RowReader, from_bfloat16

from .block_codes import Bytes
from .layerwise import Array
from .padding import Padding


@dataclass(frozen=True)
class EncodedTensor:
    """A `ModelTensor` whose bytes are in `store` under its name, without the pad rows, which `shape` counts."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    store: Store
    padding: Padding

    @property
    def label(self) -> str:
        return self.name

    @property
    def stored(self) -> TensorType | None:
        return self.type if self.type.is_quantized else None

    def read(self) -> Array:
        data = self._bytes()
        match self.type:
            case TensorType.F16:
                return data.view(np.float16)
            case TensorType.BF16:  # every value is exact in float32
                return from_bfloat16(data.view(np.uint16))
        return data.view(np.float32)

    def reader(self) -> RowReader:
        rows = self.read().reshape(-1, self.shape[-1])
        return lambda first, count: rows[first : first + count]

    def block_reader(self) -> BlockReader:
        if self.stored is None:
            raise TypeError(f"{self.name} is not stored in blocks")
        rows = self._bytes()
        return lambda first, count: rows[first : first + count]

    def _bytes(self) -> Bytes:
        data = self.store[self.name]
        if self.padding.count and self.name in ("token_embd.weight", "output.weight"):
            return self.padding.append_pads(data)
        return data
