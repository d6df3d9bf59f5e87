"""Reads, writes and merges importance matrices (imatrix files), which weight quantization errors by column.

For each matrix they hold two sums over the tokens of a text: of the squares of its input, per column, which the
quantizers use as weights; and of the input itself, which llama.cpp's tools ignore. The format is llama.cpp's
(tools/imatrix/imatrix.cpp, pull request 9400): a GGUF file with `NAME.in_sum2`, `NAME.counts` and `NAME.in_sum`.
The text's tokens are stored too: the recipe `lean` computes from them statistics that are too large for a file.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.atomic_file import output_file
from dgpt2_quant.core.errors import GGUFError, UsageError
from dgpt2_quant.core.gguf_file import MAGIC, encode_header, padded, read_header, require_file
from dgpt2_quant.core.paths import user_path
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.core.read_at import read_at

Vector = npt.NDArray[np.float32]
_MAX_UINT32 = 2**32 - 1
_TOKENS = "dgpt2_quant.imatrix.tokens"
_SUFFIXES = {"in_sum2": "sum_squares", "in_sum": "sums", "counts": "count"}


@dataclass(frozen=True)
class Statistics:
    """Sums of x² and x (if collected) of a matrix's input x over `count` tokens, each of shape (columns,)."""

    sum_squares: Vector
    sums: Vector | None
    count: float

    @property
    def mean_squares(self) -> Vector:
        """E[x²] as in llama-quantize, in float32; ones without tokens."""
        if self.count <= 0:
            return np.ones_like(self.sum_squares)
        return self.sum_squares / np.float32(self.count)

    @property
    def mean(self) -> Vector | None:
        """E[x]; None for a file of llama-imatrix, which does not collect it."""
        return None if self.sums is None or self.count <= 0 else self.sums / np.float32(self.count)


@dataclass(frozen=True)
class ImportanceMatrix:
    """Statistics by matrix name, the names of the texts, and the number and size of the chunks.

    `tokens` has the tokens of all chunks in order; a file of llama-imatrix has none.
    """

    entries: Mapping[str, Statistics]
    datasets: Sequence[str]
    chunk_count: int
    chunk_size: int
    tokens: Sequence[int] = ()

    @property
    def chunks(self) -> list[Sequence[int]]:
        """The tokens of each chunk; empty without tokens."""
        return [self.tokens[at : at + self.chunk_size] for at in range(0, len(self.tokens), self.chunk_size or 1)]

    def encode(self) -> bytes:
        """The bytes of the file; equal statistics give equal bytes."""
        metadata: dict[str, Any] = {
            "general.type": "imatrix",
            "imatrix.datasets": list(self.datasets) or ["unknown"],
            "imatrix.chunk_count": self.chunk_count,
            "imatrix.chunk_size": self.chunk_size,
        }
        if self.tokens:
            metadata[_TOKENS] = list(self.tokens)
        arrays: dict[str, Vector] = {}
        for name in sorted(self.entries):
            entry = self.entries[name]
            arrays[f"{name}.in_sum2"] = entry.sum_squares
            if entry.sums is not None:
                arrays[f"{name}.in_sum"] = entry.sums
            arrays[f"{name}.counts"] = np.array([entry.count], np.float32)
        head = encode_header(metadata, {name: (data.shape, TensorType.F32) for name, data in arrays.items()})
        return head + b"".join(data.tobytes().ljust(padded(data.nbytes), b"\0") for data in arrays.values())

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """Writes the file. Raises `OutputError`."""
        with output_file(path, overwrite=overwrite) as file:
            file.write(self.encode())

    @cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file's bytes, which converted models state."""
        return hashlib.sha256(self.encode()).hexdigest()

    def metadata(self) -> dict[str, Any]:
        """The metadata of a model converted with this matrix."""
        return importance_metadata(self.sha256, self.datasets, len(self.entries), self.chunk_count)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raises `UsageError` if the matrix does not fit a model of these shapes."""
        for name in self.entries.keys() & shapes.keys():
            columns, found = shapes[name][-1], len(self.entries[name].sum_squares)
            if found != columns:
                raise UsageError(
                    f"the importance matrix has {found} columns for {name}, the model {columns}",
                    "It belongs to another model; collect one with `dgpt2-quant imatrix`.",
                )
        if not self.entries.keys() & shapes.keys():
            raise UsageError(
                f"the importance matrix has no entry for any matrix of the model, only {', '.join(self.entries)[:80]}",
                "It belongs to another architecture; collect one with `dgpt2-quant imatrix`.",
            )

    def check_text(self, vocabulary: int, context: int) -> None:
        """Raises `UsageError` if its tokens or chunks exceed the model's vocabulary or context."""
        if (largest := max(self.tokens, default=0)) >= vocabulary:
            why = f"contains the token {largest}, but the model has {vocabulary} tokens"
        elif self.tokens and self.chunk_size > context:
            why = f"has chunks of {self.chunk_size} tokens, but the model has {context} positions"
        else:
            return
        raise UsageError(
            f"the importance matrix {why}", "It belongs to another model; collect one with `dgpt2-quant imatrix`."
        )


def importance_metadata(sha256: str, datasets: Sequence[str], entries: int, chunks: int) -> dict[str, Any]:
    """The metadata of a model converted with an importance matrix."""
    return {
        "dgpt2_quant.imatrix.sha256": sha256,
        # llama-quantize's keys; without its path, which differs between machines
        "quantize.imatrix.dataset": ", ".join(datasets),
        "quantize.imatrix.entries_count": entries,
        "quantize.imatrix.chunks_count": chunks,
    }


def merged(matrices: Iterable[ImportanceMatrix]) -> ImportanceMatrix:
    """Adds importance matrices. Raises `UsageError` if they belong to models of different shapes."""
    first, *others = matrices
    entries = dict(first.entries)
    for matrix in others:
        matrix.check({name: entry.sum_squares.shape for name, entry in entries.items()})
        for name, entry in matrix.entries.items():
            entries[name] = _add(entries[name], entry) if name in entries else entry
    for name, entry in entries.items():
        if not np.isfinite(entry.sum_squares).all() or (entry.sums is not None and not np.isfinite(entry.sums).all()):
            raise UsageError(f"the sum of the entries for {name} overflows float32", "Is one of the files damaged?")
    every = (first, *others)
    datasets = [name for matrix in every for name in matrix.datasets]
    size = first.chunk_size
    tokens = sum(matrix.chunk_count * matrix.chunk_size for matrix in every)
    chunk_count = min(tokens // size if size else 0, _MAX_UINT32)
    whole = all(matrix.tokens and matrix.chunk_size == size for matrix in every)
    text = [token for matrix in every for token in matrix.tokens] if whole else []
    return ImportanceMatrix(entries, datasets, chunk_count, size, text)


def read_importance(path: str | Path) -> ImportanceMatrix:
    """Reads a file of this tool or of llama-imatrix.

    Raises `ModelNotFoundError` if it does not exist, and `GGUFError` for a broken file, the old `.dat` format and other
    kinds of files.
    """
    path = require_file(user_path(path), "Create one with `dgpt2-quant imatrix`.")
    magic = bytearray(min(4, path.stat().st_size))
    read_at(path, 0, memoryview(magic))
    if magic != MAGIC:
        raise GGUFError(
            f"{path} is not a GGUF file; llama-imatrix's old .dat format is not supported",
            "Collect it again with `dgpt2-quant imatrix`, or convert it:"
            " `llama-imatrix -m MODEL.gguf --in-file OLD.dat -o NEW.gguf`.",
        )
    header = read_header(path)
    if (kind := header.metadata.get("general.type")) != "imatrix":
        raise GGUFError(
            f"{path} is not an importance matrix: its general.type is {kind!r}",
            "Use a file written by `dgpt2-quant imatrix`.",
        )
    parts: dict[str, dict[str, Any]] = {}
    for tensor in header.tensors.values():
        name, _, suffix = tensor.name.rpartition(".")
        if suffix not in _SUFFIXES:
            continue
        if tensor.type is not TensorType.F32:
            raise _broken(path, f"{tensor.name} is {tensor.type.name}, not F32")
        data = np.empty(tensor.nbytes // 4, np.float32)
        read_at(path, tensor.start, data.view(np.uint8).data)
        if not np.isfinite(data).all() or (suffix != "in_sum" and (data < 0).any()):
            raise _broken(path, f"{tensor.name} has a value that is negative or not finite")
        parts.setdefault(name, {})[_SUFFIXES[suffix]] = data
    if not parts:
        raise _broken(path, "it has no statistics")
    datasets = header.metadata.get("imatrix.datasets")
    count, size = (header.metadata.get(f"imatrix.chunk_{what}") for what in ("count", "size"))
    if not (isinstance(datasets, list) and all(isinstance(text, str) for text in datasets)):
        raise _broken(path, f"its imatrix.datasets are {datasets!r}")
    if not (type(count) is int and type(size) is int and 0 <= count <= _MAX_UINT32 and 0 <= size <= _MAX_UINT32):
        raise _broken(path, f"its imatrix.chunk_count and chunk_size are {count!r} and {size!r}")
    text = header.metadata.get(_TOKENS, [])
    if not (isinstance(text, list) and all(type(token) is int and 0 <= token < 1 << 31 for token in text)):
        raise _broken(path, f"its {_TOKENS} are not token ids")
    if text and len(text) != count * size:
        raise _broken(path, f"it has {len(text)} tokens for {count} chunks of {size}")
    entries = {name: _statistics(path, name, found) for name, found in parts.items()}
    return ImportanceMatrix(entries, datasets, count, size, text)


def _statistics(path: Path, name: str, found: dict[str, Vector]) -> Statistics:
    squares, sums, count = found.get("sum_squares"), found.get("sums"), found.get("count")
    if squares is None or count is None:
        raise _broken(path, f"{name} needs both in_sum2 and counts")
    if len(count) != 1:
        raise _broken(path, f"{name} has {len(count)} counts: a mixture of experts, not a GPT-2")
    if sums is not None and len(sums) != len(squares):
        raise _broken(path, f"{name} has {len(squares)} squares and {len(sums)} sums")
    return Statistics(squares, sums, float(round(float(count[0]))))


def _add(one: Statistics, other: Statistics) -> Statistics:
    with np.errstate(over="ignore"):  # `merged` refuses an overflow, with the matrix's name
        sums = None if one.sums is None or other.sums is None else one.sums + other.sums
        return Statistics(one.sum_squares + other.sum_squares, sums, one.count + other.count)


def _broken(path: Path, why: str) -> GGUFError:
    return GGUFError(f"{path} is not a valid importance matrix: {why}", "Collect it again with `dgpt2-quant imatrix`.")
