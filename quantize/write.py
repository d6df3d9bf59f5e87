"""The pipeline of a conversion: rows are read, quantized, hashed and written, all at once, a few at a time.

The rows of a tensor are spread over threads in pieces that stay in a core's cache, and go to the files in their order
as they get ready. A tensor type that several of the files share (the norms in F32, a tied embedding in Q6_K) is
computed once.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.atomic_file import explain_errors
from dgpt2_quant.core.ggml import quantize, validated
from dgpt2_quant.core.gguf_file import padded
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.core.workers import Job, Workers
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix
from dgpt2_quant.quantize.checkpoint.source import ModelTensor
from dgpt2_quant.quantize.recipes.plan import Plan

_PIECE_WEIGHTS = 1 << 17  # large against a call's cost, small against the second-level cache
_PIECES_AHEAD = 8  # for each thread: what is being quantized when the oldest is waited for
# Pieces that may wait to be written: they do while the source is still being hashed, on which the heads wait. In F32
# they have 256 MB, in 4 bits 38.
_WRITES_AHEAD = 512
_FLUSH_BYTES = 32 << 20  # what is brought to the disk early, so that the end need not wait for it

Blocks = dict[TensorType, npt.NDArray[np.uint8]]


class FileWriter:
    """One file, written from front to back, and its hash."""

    def __init__(self, path: Path, file: BinaryIO, plan: Plan) -> None:
        self.path = path
        self.file = file
        self.plan = plan
        self.hash = hashlib.sha256()
        self.bytes = 0
        self.flushed = 0

    def write(self, data: bytes | memoryview) -> None:
        with explain_errors(self.path):
            self.file.write(data)
        self.bytes += len(data)

    def flush(self) -> None:
        """Brings everything to the disk: a full one shows here, before any of the files takes its place."""
        with explain_errors(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())


@dataclass(frozen=True)
class _Piece:
    """Some rows of a tensor."""

    name: str
    weights: int
    compute: Callable[[], Blocks]
    is_last: bool


def stream(
    tensors: Sequence[ModelTensor],
    writers: Sequence[FileWriter],
    heads: Callable[[], Sequence[bytes]],
    threads: int,
    progress: Progress | None,
) -> None:
    """Writes the heads and all tensors. The plans of the files have the same importance matrix, or none."""
    total = sum(prod(tensor.shape) for tensor in tensors)
    done = 0
    with (
        Workers(1) as writing,
        Workers(1) as hashing,
        Workers(1) as flushing,
        Workers(1) as reading,
        Workers(threads) as pool,
    ):
        output = _Output(writers, writing, hashing, flushing)
        output.put_heads(heads)
        running: deque[tuple[_Piece, Job[Blocks]]] = deque()

        def finish_oldest() -> None:
            nonlocal done
            piece, blocks = running.popleft()
            output.put(piece, blocks.result())
            done += piece.weights
            if progress and piece.is_last:
                progress(done, total, piece.name)

        for piece in _pieces(tensors, writers, reading):
            running.append((piece, pool.submit(piece.compute)))
            if len(running) > threads * _PIECES_AHEAD:
                finish_oldest()
        while running:
            finish_oldest()
        output.finish()


def _pieces(tensors: Sequence[ModelTensor], writers: Sequence[FileWriter], reading: Workers) -> Iterator[_Piece]:
    """All tensors in pieces; while one tensor's are taken, what must be read of the next as a whole is being read."""
    importance = writers[0].plan.importance

    def begin(tensor: ModelTensor) -> Job[Callable[[int, int], Blocks]]:
        types = list(dict.fromkeys(writer.plan.types[tensor.name] for writer in writers))
        return reading.submit(_row_quantizer, tensor, types, importance)

    upcoming = begin(tensors[0])
    for tensor, following in zip(tensors, [*tensors[1:], None], strict=True):
        quantize_rows = upcoming.result()
        if following is not None:
            upcoming = begin(following)
        columns, rows = tensor.shape[-1], prod(tensor.shape[:-1])
        step = max(1, _PIECE_WEIGHTS // columns)
        for first in range(0, rows, step):
            count = min(step, rows - first)
            compute = partial(quantize_rows, first, count)
            yield _Piece(tensor.name, count * columns, compute, first + count == rows)


def _row_quantizer(
    tensor: ModelTensor, types: Sequence[TensorType], importance: ImportanceMatrix | None
) -> Callable[[int, int], Blocks]:
    """What makes blocks of (first row, number of rows), of each type: copied where it is stored in the type already."""
    copied = [t for t in types if t is tensor.stored and t.is_quantized]  # computed again, they could differ
    computed = [t for t in types if t not in copied]
    entry = importance.entries.get(tensor.name) if importance else None
    weighing = entry.mean_squares if entry else None
    read_rows = tensor.reader() if computed else None
    read_blocks = tensor.block_reader() if copied else None

    def quantize_rows(first: int, count: int) -> Blocks:
        made: Blocks = {}
        if read_blocks:
            made[copied[0]] = validated(tensor.label, read_blocks(first, count), copied[0])
        if read_rows:
            blocks = quantize(tensor.label, read_rows(first, count), computed, weighing)
            made |= dict(zip(computed, blocks, strict=True))
        return made

    return quantize_rows


class _Output:
    """Writes and hashes what is handed over, in its order, each on a thread of its own."""

    def __init__(self, writers: Sequence[FileWriter], writing: Workers, hashing: Workers, flushing: Workers) -> None:
        self.writers = writers
        self._writing, self._hashing, self._flushing = writing, hashing, flushing
        self._waiting: deque[Job[None]] = deque()
        self._flushes: list[Job[None]] = []  # all of them count: a file tells of an error only once

    def put_heads(self, heads: Callable[[], Sequence[bytes]]) -> None:
        """The first: what comes after them waits for them."""
        made = self._writing.submit(heads)
        self._waiting.append(self._writing.submit(lambda: self._write([[head] for head in made.result()])))
        self._waiting.append(self._hashing.submit(lambda: self._hash([[head] for head in made.result()])))

    def put(self, piece: _Piece, blocks: Blocks) -> None:
        """A piece for each file, the last of a tensor with what fills up to the alignment."""
        parts: list[list[bytes | memoryview]] = []
        for writer in self.writers:
            parts.append([blocks[writer.plan.types[piece.name]].reshape(-1).data])
            if piece.is_last:
                nbytes = writer.plan.tensor_bytes(piece.name)
                parts[-1].append(bytes(padded(nbytes) - nbytes))
        self._waiting.append(self._writing.submit(self._write, parts))
        self._waiting.append(self._hashing.submit(self._hash, parts))
        while len(self._waiting) > 2 * _WRITES_AHEAD:
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Waits until everything is on the disk."""
        while self._waiting:
            self._waiting.popleft().result()
        self._flushes += [self._flushing.submit(writer.flush) for writer in self.writers]
        for flush in self._flushes:
            flush.result()

    def _write(self, parts: Sequence[Sequence[bytes | memoryview]]) -> None:
        for writer, own in zip(self.writers, parts, strict=True):
            for part in own:
                writer.write(part)
            if writer.bytes - writer.flushed >= _FLUSH_BYTES:
                writer.flushed = writer.bytes
                self._flushes.append(self._flushing.submit(writer.flush))

    def _hash(self, parts: Sequence[Sequence[bytes | memoryview]]) -> None:
        for writer, own in zip(self.writers, parts, strict=True):
            for part in own:
                writer.hash.update(part)
