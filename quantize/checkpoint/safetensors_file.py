"""Reads safetensors files, one tensor at a time.

The header is not trusted: every length, offset, dtype and shape is checked against the file before data are read.
Format: https://github.com/huggingface/safetensors (8 bytes of header length, a JSON object, the data).
"""

import json
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.core.read_at import read_at

from .rows import from_bfloat16

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}
# other dtypes: such tensors (mask buffers are U8 or BOOL) are listed, but cannot be read as weights
_OTHER_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8}
_OTHER_BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1}


@dataclass(frozen=True)
class StoredTensor:
    """The location of a tensor: `start` and `nbytes` are bytes of the file `path`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    nbytes: int

    def read(self, first: int = 0, rows: int | None = None) -> npt.NDArray[np.floating[Any]]:
        """Reads the tensor, or `rows` rows of its first axis from `first` on.

        The result is float64, float32 or float16 as stored; BF16 becomes float32. Raises `CheckpointError` for a dtype
        that is not a weight's, or if the file is too short.
        """
        if self.dtype not in _DTYPES:
            raise CheckpointError(
                f"{self.path}: tensor {self.name!r} is {self.dtype}; weights are {', '.join(_DTYPES)}",
                "Save the checkpoint in one of these dtypes.",
            )
        shape = self.shape if rows is None else (rows, *self.shape[1:])
        data = np.empty(shape, _DTYPES[self.dtype])
        row_bytes = self.nbytes // self.shape[0] if first else 0
        read_at(self.path, self.start + first * row_bytes, data.reshape(-1).view(np.uint8).data)
        if self.dtype == "BF16":
            return from_bfloat16(data)
        return data


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of the file by name, in the order of their data. Raises `CheckpointError` if the header is wrong."""
    size = path.stat().st_size
    if size < 8:
        raise _broken(path, f"{size} bytes are too short for a header")
    prefix = bytearray(8)
    read_at(path, 0, memoryview(prefix))
    length = int.from_bytes(prefix, "little")
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise _broken(path, f"its header claims {length} bytes, the file has {size}")
    text = bytearray(length)
    read_at(path, 8, memoryview(text))
    try:
        entries = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its header is not valid JSON ({error})") from error
    if not isinstance(entries, dict):
        raise _broken(path, "its header is not a JSON object")
    entries.pop("__metadata__", None)
    tensors = [_tensor(path, name, entry, 8 + length, size) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.start, tensor.nbytes))
    end = 8 + length
    for tensor in tensors:
        if tensor.start < end:
            raise _broken(path, f"tensor {tensor.name!r} overlaps another tensor")
        end = tensor.start + tensor.nbytes
    return {tensor.name: tensor for tensor in tensors}


def _tensor(path: Path, name: str, entry: Any, data_start: int, file_size: int) -> StoredTensor:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]}:
            pass
        case _:
            raise _broken(path, f"tensor {name!r} has no valid dtype, shape and data_offsets")
    # NumPy's limits; an empty tensor can claim a huge shape
    if not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 32 or prod(n or 1 for n in shape) > 1 << 48:
        raise _broken(path, f"tensor {name!r} has the invalid shape {shape}")
    if dtype in _DTYPES:
        item_bytes = np.dtype(_DTYPES[dtype]).itemsize
    elif dtype in _OTHER_BYTES:
        item_bytes = _OTHER_BYTES[dtype]
    else:
        raise _broken(path, f"tensor {name!r} has the unknown dtype {dtype!r}")
    if max(abs(begin), abs(end)) > 1 << 62:  # too many digits for a message
        raise _broken(path, f"tensor {name!r} has offsets beyond the size of any file")
    nbytes = prod(shape) * item_bytes
    if not 0 <= begin <= end or end - begin != nbytes:
        raise _broken(path, f"tensor {name!r} of shape {shape} needs {nbytes} bytes, its offsets say {begin}:{end}")
    if data_start + end > file_size:
        raise _broken(path, f"tensor {name!r} ends at byte {data_start + end}, the file at byte {file_size}")
    return StoredTensor(name, dtype, tuple(shape), path, data_start + begin, nbytes)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) != len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"{name!r} occurs twice")
    return keys


def _broken(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a valid safetensors file: {why}",
        "Download or save the checkpoint again; it may be truncated.",
    )
