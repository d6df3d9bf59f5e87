"""The pipeline of a conversion: tensors are read, quantized and written, these three at once.

A tensor type that several of the files share (the norms in F32, a tied embedding in Q6_K) is computed once, and never
more than a few tensors are in memory.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from .ggml import FloatArray, Quantization, quantize, validated
from .gguf_file import padded
from .model_source import ModelTensor
from .output_file import explain_errors
from .plan import Plan
from .progress import Progress
from .quant_types import TensorType

# Tensors that may wait to be written. Enough for the embedding to be quantized while the source is still being
# hashed, on which the heads wait.
_WRITES_AHEAD = 4


class FileWriter:
    """Writes one file from front to back, and hashes it on the way."""

    def __init__(self, path: Path, file: BinaryIO, plan: Plan) -> None:
        self.path = path
        self.file = file
        self.plan = plan
        self.hash = hashlib.sha256()
        self.bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        with explain_errors(self.path):
            self.file.write(data)
        self.hash.update(data)
        self.bytes += len(data)

    def sync(self) -> None:
        """Brings everything to the disk: a full one shows here, before any of the files takes its place."""
        with explain_errors(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())

    def write_tensor(self, data: npt.NDArray[np.uint8]) -> None:
        self.write(data.reshape(-1).data)
        self.write(bytes(padded(data.size) - data.size))


@dataclass(frozen=True)
class _Loaded:
    """A tensor that was read: `weights` for those `types` that have to be computed, `blocks` where it has the type."""

    tensor: ModelTensor
    types: list[TensorType]
    weights: FloatArray | None
    blocks: dict[TensorType, npt.NDArray[np.uint8]]


def _load(tensor: ModelTensor, types: Sequence[TensorType]) -> _Loaded:
    copied = [t for t in types if t is tensor.stored and t.is_quantized]  # computed again, they could differ
    computed = [t for t in types if t not in copied]
    blocks = {tensor_type: validated(tensor.label, tensor.blocks(), tensor_type) for tensor_type in copied}
    return _Loaded(tensor, computed, tensor.read() if computed else None, blocks)


def stream(
    tensors: Sequence[ModelTensor],
    writers: Sequence[FileWriter],
    write_heads: Callable[[], None],
    threads: int,
    progress: Progress | None,
) -> None:
    """Reads, quantizes and writes the tensors, these three at once, in their order."""
    parameters = sum(prod(tensor.shape) for tensor in tensors)
    importance = writers[0].plan.importance  # the same for all: so are the blocks of one type

    def write(name: str, blocks: dict[TensorType, npt.NDArray[np.uint8]]) -> None:
        for writer in writers:
            writer.write_tensor(blocks[writer.plan.types[name]])

    def load(tensor: ModelTensor) -> _Loaded:
        return _load(tensor, list(dict.fromkeys(writer.plan.types[tensor.name] for writer in writers)))

    with (
        ThreadPoolExecutor(1) as reading,
        ThreadPoolExecutor(1) as writing,
        ThreadPoolExecutor(threads) as pool,
    ):
        done = 0
        writes = deque([writing.submit(write_heads)])
        running: deque[tuple[_Loaded, Quantization]] = deque()

        def begin(loaded: _Loaded) -> None:
            quantization = Quantization([], [])
            if loaded.weights is not None:
                entry = importance.entries.get(loaded.tensor.name) if importance else None
                weighing = entry.mean_squares if entry else None
                quantization = quantize(loaded.tensor.label, loaded.weights, loaded.types, pool, weighing)
            running.append((loaded, quantization))

        def finish_oldest() -> None:
            nonlocal done
            loaded, quantization = running.popleft()
            blocks = loaded.blocks | dict(zip(loaded.types, quantization.result(), strict=True))
            writes.append(writing.submit(write, loaded.tensor.name, blocks))
            if len(writes) > _WRITES_AHEAD:
                writes.popleft().result()
            done += prod(loaded.tensor.shape)
            if progress:
                progress(done, parameters, loaded.tensor.name)

        upcoming = reading.submit(load, tensors[0])
        for following in [*tensors[1:], None]:
            loaded = upcoming.result()
            if following is not None:
                upcoming = reading.submit(load, following)
            begin(loaded)
            if len(running) > 1:  # two at a time: the threads need not wait for the last rows of one
                finish_oldest()
        while running:
            finish_oldest()
        for write_task in writes:
            write_task.result()
