"""A model with pad tokens at the end of its vocabulary and tensors that are quantized already: ready to be written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.checkpoint.metadata import with_pad_tokens
from dgpt2_quant.quantize.checkpoint.rows import BlockReader, RowReader, from_bfloat16
from dgpt2_quant.quantize.checkpoint.source import ModelSource, ModelTensor
from dgpt2_quant.quantize.checkpoint.tokenizer import Tokenizer, padded_tokenizer

from .layers import QuantizedTensor
from .layerwise import Array
from .padding import Padding


class PaddedSource:
    """A source with pad tokens after its own."""

    def __init__(self, source: ModelSource, padding: Padding, tensors: Sequence[ModelTensor]) -> None:
        self.name, self.sizes = source.name, source.sizes.padded(padding.count)
        self.padding, self.tensors = padding, tensors
        self._source = source

    def sha256(self) -> str:
        return self._source.sha256()

    def origin(self) -> str:
        return self._source.origin()

    def metadata(self, sha256: str, type_metadata: dict[str, Any]) -> dict[str, Any]:
        count, twin = self.padding.count, self.padding.twin
        if not count:
            return self._source.metadata(sha256, type_metadata)
        type_metadata = {**type_metadata, "dgpt2_quant.padding": count, "dgpt2_quant.padding.twin": twin}
        return with_pad_tokens(self._source.metadata(sha256, type_metadata), count)

    def tokenizer(self) -> Tokenizer:
        return padded_tokenizer(self._source.tokenizer(), self.padding.count)


def padded_source(source: ModelSource, count: int) -> PaddedSource:
    """A source with pad tokens, without tensors: enough to plan a file."""
    return PaddedSource(source, Padding(count, 0), ())


@dataclass(frozen=True)
class ReadyTensor:
    """A tensor that is ready: blocks where it is quantized, else numbers."""

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


def ready_tensor(name: str, tensor: QuantizedTensor | Array, shape: tuple[int, ...], padding: Padding) -> ReadyTensor:
    """A tensor of the shape, which counts the pad rows."""
    if not isinstance(tensor, QuantizedTensor):
        return ReadyTensor(name, shape, None, tensor)
    blocks = tensor.blocks
    if padding.count and name in ("token_embd.weight", "output.weight"):
        blocks = padding.append_pads(blocks)
    match tensor.tensor_type:
        case TensorType.F32:
            return ReadyTensor(name, shape, None, blocks.view(np.float32))
        case TensorType.F16:
            return ReadyTensor(name, shape, None, blocks.view(np.float16))
        case TensorType.BF16:  # every value is one of float32
            return ReadyTensor(name, shape, None, from_bfloat16(blocks.view(np.uint16)))
    return ReadyTensor(name, shape, tensor.tensor_type, blocks)
