"""Writes GGUF files: rows are read, quantized, hashed and written at the same time, in pieces.

The rows of a tensor are spread over threads in pieces that fit a core's cache, and are written in order. A tensor type
that several files share (the norms in F32, a tied embedding in Q6_K) is computed once. All files appear at the end, or
none.
"""

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.atomic_file import explain_errors, output_file
from dgpt2_quant.core.cores import threads_or_all
from dgpt2_quant.core.ggml import quantize, validated
from dgpt2_quant.core.gguf_file import padded
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.core.workers import Job, Workers
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix
from dgpt2_quant.quantize.checkpoint.source import ModelSource, ModelTensor
from dgpt2_quant.quantize.lean.padding import NO_PADDING, Padding
from dgpt2_quant.quantize.recipes.plan import Plan

from .converted_file import ConvertedFile

_PIECE_WEIGHTS = 1 << 17  # large against a call's cost, small against the second-level cache
_PIECES_AHEAD = 8  # for each thread: pieces in work while the oldest is awaited
# Pieces that may wait for the headers, which contain the hash of the source: 256 MB in F32, 38 MB in 4 bits.
_WRITES_AHEAD = 512
_FLUSH_BYTES = 32 << 20  # flushed early, so that the end does not wait for the disk

Blocks = dict[TensorType, npt.NDArray[np.uint8]]


@dataclass(frozen=True)
class Prepared:
    """Tensors that are ready to be written, the files that get them, and the callback of this stage."""

    paths: Sequence[Path]
    tensors: Sequence[ModelTensor]
    progress: Progress | None = None
    padding: Padding = NO_PADDING


def write_files(
    source: ModelSource,
    plans: Mapping[Path, Plan],
    prepared: Iterable[Prepared],
    importance: ImportanceMatrix | None = None,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    known_sha256: str | None = None,
) -> list[ConvertedFile]:
    """Writes a file for each plan. They appear when all are complete.

    The files are opened first; then `prepared`, which may compute, is iterated. `known_sha256` is the source's hash, if
    known; it saves a second read of the source. Raises `DgptQuantError`.
    """
    started, threads = time.monotonic(), threads_or_all(threads)
    with Workers(1) as aside, ExitStack() as stack:
        sha256 = aside.submit(lambda: known_sha256 or source.origin())
        files = {
            path: _OpenFile(path, stack.enter_context(output_file(path, overwrite=overwrite)), plan)
            for path, plan in plans.items()
        }
        stated = importance.metadata() if importance else {}
        padding: dict[Path, Mapping[str, Any]] = {}
        for ready in prepared:
            group = [files[path] for path in ready.paths]
            if ready.padding.count:
                padding |= dict.fromkeys(ready.paths, ready.padding.to_json())

            def headers(group: Sequence[_OpenFile] = group, padding: Padding = ready.padding) -> list[bytes]:
                twin, probability = padding.twin, padding.probability
                return [
                    file.plan.header(source, stated, sha256=sha256.result(), twin=twin, pad_probability=probability)
                    for file in group
                ]

            _stream(ready.tensors, group, headers, importance, threads, ready.progress)
    seconds = round(time.monotonic() - started, 3)
    return [
        ConvertedFile.of(source, file.plan, path, file.bytes, file.hash.hexdigest(), seconds, padding.get(path))
        for path, file in files.items()
    ]


class _OpenFile:
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
        """Writes everything to the disk: a full disk fails here, before any of the files appears."""
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


def _stream(
    tensors: Sequence[ModelTensor],
    files: Sequence[_OpenFile],
    headers: Callable[[], Sequence[bytes]],
    importance: ImportanceMatrix | None,
    threads: int,
    progress: Progress | None,
) -> None:
    """Writes the headers and all tensors to the files."""
    total = sum(prod(tensor.shape) for tensor in tensors)
    done = 0
    with (
        Workers(1) as writing,
        Workers(1) as hashing,
        Workers(1) as flushing,
        Workers(1) as reading,
        Workers(threads) as pool,
    ):
        output = _Output(files, writing, hashing, flushing)
        output.put_headers(headers)
        running: deque[tuple[_Piece, Job[Blocks]]] = deque()

        def finish_oldest() -> None:
            nonlocal done
            piece, blocks = running.popleft()
            output.put(piece, blocks.result())
            done += piece.weights
            if progress and piece.is_last:
                progress(done, total, piece.name)

        for piece in _pieces(tensors, files, importance, reading):
            running.append((piece, pool.submit(piece.compute)))
            if len(running) > threads * _PIECES_AHEAD:
                finish_oldest()
        while running:
            finish_oldest()
        output.finish()


def _pieces(
    tensors: Sequence[ModelTensor],
    files: Sequence[_OpenFile],
    importance: ImportanceMatrix | None,
    reading: Workers,
) -> Iterator[_Piece]:
    """Yields all tensors in pieces. During one tensor the next is read, if it must be read as a whole."""

    def begin(tensor: ModelTensor) -> Job[Callable[[int, int], Blocks]]:
        types = list(dict.fromkeys(file.plan.types[tensor.name] for file in files))
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
    """A function (first row, number of rows) -> blocks by type: copied for a type in which the tensor is stored."""
    copied = [t for t in types if t is tensor.stored and t.is_quantized]  # quantized again, they could differ
    computed = [t for t in types if t not in copied]
    entry = importance.entries.get(tensor.name) if importance else None
    weighing = entry.mean_squares if entry else None
    read_rows = tensor.reader() if computed else None
    read_blocks = tensor.block_reader() if copied else None

    def quantize_rows(first: int, count: int) -> Blocks:
        found: Blocks = {}
        if read_blocks:
            found[copied[0]] = validated(tensor.label, read_blocks(first, count), copied[0])
        if read_rows:
            blocks = quantize(tensor.label, read_rows(first, count), computed, weighing)
            found |= dict(zip(computed, blocks, strict=True))
        return found

    return quantize_rows


class _Output:
    """Writes and hashes pieces in order, on one thread each."""

    def __init__(self, files: Sequence[_OpenFile], writing: Workers, hashing: Workers, flushing: Workers) -> None:
        self.files = files
        self._writing, self._hashing, self._flushing = writing, hashing, flushing
        self._waiting: deque[Job[None]] = deque()
        self._flushes: list[Job[None]] = []  # each is awaited: the system reports an error only once

    def put_headers(self, headers: Callable[[], Sequence[bytes]]) -> None:
        """Must be the first call: all later writes wait for it."""
        encoded = self._writing.submit(headers)
        self._waiting.append(self._writing.submit(lambda: self._write([[header] for header in encoded.result()])))
        self._waiting.append(self._hashing.submit(lambda: self._hash([[header] for header in encoded.result()])))

    def put(self, piece: _Piece, blocks: Blocks) -> None:
        """Queues a piece for each file; the last of a tensor is padded to the alignment."""
        parts: list[list[bytes | memoryview]] = []
        for file in self.files:
            parts.append([blocks[file.plan.types[piece.name]].reshape(-1).data])
            if piece.is_last:
                nbytes = file.plan.tensor_bytes(piece.name)
                parts[-1].append(bytes(padded(nbytes) - nbytes))
        self._waiting.append(self._writing.submit(self._write, parts))
        self._waiting.append(self._hashing.submit(self._hash, parts))
        while len(self._waiting) > 2 * _WRITES_AHEAD:
            self._waiting.popleft().result()

    def finish(self) -> None:
        """Waits until everything is on the disk."""
        while self._waiting:
            self._waiting.popleft().result()
        self._flushes += [self._flushing.submit(file.flush) for file in self.files]
        for flush in self._flushes:
            flush.result()

    def _write(self, parts: Sequence[Sequence[bytes | memoryview]]) -> None:
        for file, own in zip(self.files, parts, strict=True):
            for part in own:
                file.write(part)
            if file.bytes - file.flushed >= _FLUSH_BYTES:
                file.flushed = file.bytes
                self._flushes.append(self._flushing.submit(file.flush))

    def _hash(self, parts: Sequence[Sequence[bytes | memoryview]]) -> None:
        for file, own in zip(self.files, parts, strict=True):
            for part in own:
                file.hash.update(part)
