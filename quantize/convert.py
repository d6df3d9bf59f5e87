"""A checkpoint to GGUF files, in one pass.

The source is read once, a tensor at a time, whatever the number of types asked for; a tensor type that several of
the files share (the norms in F32, a tied embedding in Q6_K) is computed once. While two tensors are quantized on all
threads, the next is read, those before are written, and the source is hashed. No intermediate file, and never more than
a few tensors in memory.
"""

import hashlib
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from .checkpoint import open_checkpoint, source_sha256
from .cores import usable_cores
from .errors import UsageError
from .ggml import Quantization, quantize
from .gguf_file import encode_header, padded, tensor_bytes
from .gpt2 import ModelTensor, model_tensors, read_hyperparameters
from .metadata import level_metadata, model_metadata, tokenizer_metadata
from .output_file import explain_errors, output_file, refuse_existing
from .progress import Progress
from .quant_types import QuantType, TensorType, find_types
from .recipe import tensor_types
from .resolve import DEFAULT_MODEL, Source, is_gguf_name, resolve
from .tokenizer import read_tokenizer

# Tensors that may wait to be written. Enough for the embedding to be quantized while the source is still being
# hashed, on which the heads wait.
_WRITES_AHEAD = 4


@dataclass(frozen=True)
class ConvertedFile:
    """One entry of `convert --json`. `seconds` is of the whole call, `tensors` counts them by tensor type."""

    model: str
    type: str
    recipe: str
    path: str
    bytes: int
    bits_per_weight: float
    parameters: int
    sha256: str
    seconds: float
    tensors: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def convert(
    model: str = DEFAULT_MODEL,
    *,
    type: str | QuantType | Sequence[str | QuantType],
    output: str | Path | None = None,
    recipe: str = "stock",
    revision: str | None = None,
    offline: bool = False,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> list[ConvertedFile]:
    """Writes a GGUF file for each quant type and returns what was written, in that order.

    `model` is `storybook`, a Hub name or a folder; `output` a folder (default: here), or with one type also a file
    name that ends in `.gguf`; `threads` defaults to the cores that this process may use.

    Raises `DgptQuantError`: nothing half-written is left behind then.
    """
    quant_types = find_types(type)
    if not quant_types:
        raise UsageError("no quantization type was asked for", "For example `--type q4_k`; see `dgpt2-quant types`.")
    source = resolve(model, revision=revision, offline=offline)
    return convert_source(
        source,
        _targets(source, quant_types, Path(output or ".")),
        recipe=recipe,
        threads=threads,
        overwrite=overwrite,
        progress=progress,
    )


def convert_source(
    source: Source,
    targets: Mapping[QuantType, Path],
    *,
    recipe: str = "stock",
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    known_sha256: str | None = None,
) -> list[ConvertedFile]:
    """`convert` for a checkpoint that is here already, to files of any name.

    `known_sha256` saves hashing the source once more, for a caller who just did.
    """
    started = time.monotonic()
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads were asked for; at least 1 is needed")
    for path in targets.values():
        refuse_existing(path, overwrite)
    checkpoint = open_checkpoint(source.folder)
    sizes = read_hyperparameters(checkpoint.config)
    tensors = model_tensors(checkpoint, sizes)
    shapes = {tensor.name: tensor.shape for tensor in tensors}
    parameters = sum(map(prod, shapes.values()))
    plans = {quant_type: tensor_types(shapes, quant_type, recipe) for quant_type in targets}
    with ThreadPoolExecutor(1) as aside, ExitStack() as stack:
        hashing = aside.submit(lambda: known_sha256 or source_sha256(source.folder))
        tokens = tokenizer_metadata(read_tokenizer(source.folder, checkpoint.config, sizes.vocabulary))
        writers = {
            quant_type: _Writer(path, stack.enter_context(output_file(path, overwrite=overwrite)), plans[quant_type])
            for quant_type, path in targets.items()
        }

        def write_heads() -> None:
            common = model_metadata(source, hashing.result(), checkpoint.license(), sizes, parameters)
            for quant_type, writer in writers.items():
                metadata = {**common, **level_metadata(quant_type, recipe), **tokens}
                plan = plans[quant_type]
                writer.write(encode_header(metadata, {name: (shape, plan[name]) for name, shape in shapes.items()}))

        _stream(tensors, list(writers.values()), write_heads, threads or usable_cores(), parameters, progress)
        for writer in writers.values():
            writer.sync()
    seconds = round(time.monotonic() - started, 3)
    return [
        ConvertedFile(
            model=source.name,
            type=quant_type.name,
            recipe=recipe,
            path=str(path),
            bytes=writer.bytes,
            bits_per_weight=round(8 * _data_bytes(shapes, plans[quant_type]) / parameters, 3),
            parameters=parameters,
            sha256=writer.hash.hexdigest(),
            seconds=seconds,
            tensors=dict(Counter(t.name for t in plans[quant_type].values()).most_common()),
        )
        for (quant_type, path), writer in zip(targets.items(), writers.values(), strict=True)
    ]


class _Writer:
    """Writes one file from front to back, and hashes it on the way."""

    def __init__(self, path: Path, file: BinaryIO, plan: Mapping[str, TensorType]) -> None:
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


def _stream(
    tensors: Sequence[ModelTensor],
    writers: Sequence[_Writer],
    write_heads: Callable[[], None],
    threads: int,
    parameters: int,
    progress: Progress | None,
) -> None:
    """Reads, quantizes and writes the tensors, these three at once, in their order."""

    def write(name: str, blocks: dict[TensorType, npt.NDArray[np.uint8]]) -> None:
        for writer in writers:
            writer.write_tensor(blocks[writer.plan[name]])

    with (
        ThreadPoolExecutor(1) as reading,
        ThreadPoolExecutor(1) as writing,
        ThreadPoolExecutor(threads) as pool,
    ):
        done = 0
        writes = deque([writing.submit(write_heads)])
        running: deque[tuple[ModelTensor, list[TensorType], Quantization]] = deque()

        def finish_oldest() -> None:
            nonlocal done
            tensor, wanted, quantization = running.popleft()
            blocks = dict(zip(wanted, quantization.result(), strict=True))
            writes.append(writing.submit(write, tensor.name, blocks))
            if len(writes) > _WRITES_AHEAD:
                writes.popleft().result()
            done += prod(tensor.shape)
            if progress:
                progress(done, parameters, tensor.name)

        upcoming = reading.submit(tensors[0].read)
        for tensor, following in zip(tensors, [*tensors[1:], None], strict=True):
            data = upcoming.result()
            if following is not None:
                upcoming = reading.submit(following.read)
            wanted = list(dict.fromkeys(writer.plan[tensor.name] for writer in writers))
            running.append((tensor, wanted, quantize(tensor.name, data, wanted, pool)))
            if len(running) > 1:  # two at a time: the threads need not wait for the last rows of one
                finish_oldest()
        while running:
            finish_oldest()
        for write_task in writes:
            write_task.result()


def _targets(source: Source, quant_types: Sequence[QuantType], output: Path) -> dict[QuantType, Path]:
    if is_gguf_name(output.name):
        if len(quant_types) > 1:
            raise UsageError(f"{output} is one file, but {len(quant_types)} types were asked for", "Name a folder.")
        return {quant_types[0]: output}
    return {quant_type: output / quant_type.file_name(source.name) for quant_type in quant_types}


def _data_bytes(shapes: Mapping[str, tuple[int, ...]], plan: Mapping[str, TensorType]) -> int:
    return sum(tensor_bytes(shapes[name], tensor_type) for name, tensor_type in plan.items())
