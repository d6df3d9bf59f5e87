"""The weights of a model in float32, read a block at a time: a large model is never in memory as a whole."""

from collections.abc import Callable, Iterator, Mapping
from math import prod
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.hyperparameters import block_of
from dgpt2_quant.quantize.checkpoint.source import ModelSource

Array = npt.NDArray[np.floating[Any]]
KEPT_BYTES = 512 << 20
"""The blocks that are kept: all of DistilGPT2, four blocks of GPT-2 XL."""


class BlockWeights(Mapping[str, Array]):
    """A model's weights by name. A block is read, with all its tensors, when the first of them is used.

    The last used blocks are kept, up to `kept_bytes` (at least one). The tensors outside the blocks count as a block.
    `rewrite` changes the tensors of each block after they are read; it must not depend on the order of reading.
    """

    def __init__(
        self,
        source: ModelSource,
        rewrite: Callable[[dict[str, Array]], dict[str, Array]] | None = None,
        kept_bytes: float = KEPT_BYTES,
    ) -> None:
        self._tensors = {tensor.name: tensor for tensor in source.tensors}
        self._rewrite, self._kept_bytes = rewrite, kept_bytes
        self._blocks: dict[int | None, dict[str, Array]] = {}  # the last used one is last
        self._lock = Lock()  # threads that work on the same block read it once

    def __getitem__(self, name: str) -> Array:
        number = block_of(name)
        with self._lock:
            block = self._blocks.pop(number, None) or self._read(number)
            self._blocks[number] = block
        return block[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def fit(self) -> bool:
        """Whether all weights are kept once they are read."""
        return sum(map(self._bytes, self._tensors)) <= self._kept_bytes

    def _bytes(self, name: str) -> int:
        return 4 * prod(self._tensors[name].shape)

    def _read(self, number: int | None) -> dict[str, Array]:
        names = [name for name in self._tensors if block_of(name) == number]
        left = self._kept_bytes - sum(map(self._bytes, names))
        while self._blocks and sum(self._bytes(name) for block in self._blocks.values() for name in block) > left:
            self._blocks.pop(next(iter(self._blocks)))
        block = {name: np.ascontiguousarray(self._tensors[name].read(), np.float32) for name in names}
        return self._rewrite(block) if self._rewrite else block
