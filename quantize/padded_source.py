"""A model whose vocabulary is filled up with pad tokens, and whose tensors are blocks already: ready to be written."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .lean_body import Made
from .metadata import with_pad_tokens
from .model_source import ModelSource, ModelTensor
from .padding import PadRows
from .passage import Array
from .quant_types import TensorType
from .rows import BlockReader, RowReader
from .tokenizer import Tokenizer, padded_tokenizer


class PaddedSource:
    """A source with `count` more tokens; `pads` tells what is known of their logits, where they are chosen already."""

    def __init__(
        self, source: ModelSource, count: int, tensors: Sequence[ModelTensor], pads: PadRows | None = None
    ) -> None:
        self.name, self.sizes, self.tensors, self.pads = source.name, source.sizes.padded(count), tensors, pads
        self._source, self._count = source, count

    def sha256(self) -> str:
        return self._source.sha256()

    def origin(self) -> str:
        return self._source.origin()

    def metadata(self, sha256: str, level: dict[str, Any]) -> dict[str, Any]:
        if not self._count:
            return self._source.metadata(sha256, level)
        about = {
            "dgpt2_quant.padding": self._count,
            "dgpt2_quant.padding.bound": self.pads.rounded_bound if self.pads else 0.0,
        }
        return with_pad_tokens(self._source.metadata(sha256, {**level, **about}), self._count)

    def tokenizer(self) -> Tokenizer:
        return padded_tokenizer(self._source.tokenizer(), self._count)


def padded_source(source: ModelSource, count: int) -> PaddedSource:
    """To plan with: there are no tensors yet."""
    return PaddedSource(source, count, ())


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


def ready_tensor(name: str, tensor: Made | Array, shape: tuple[int, ...]) -> ReadyTensor:
    """A tensor of the shape, pad rows counted."""
    if not isinstance(tensor, Made):
        return ReadyTensor(name, shape, None, tensor)
    if tensor.tensor_type.is_quantized:
        return ReadyTensor(name, shape, tensor.tensor_type, tensor.blocks)
    numbers = {TensorType.F32: np.float32, TensorType.F16: np.float16}.get(tensor.tensor_type)
    if numbers is None:  # BF16: every value is one of float32
        missing = np.zeros((shape[0] - len(tensor.values), shape[1]), np.float32)
        return ReadyTensor(name, shape, None, np.concatenate([tensor.values, missing]))
    return ReadyTensor(name, shape, None, tensor.blocks.view(numbers))
