"""Copies of valid GGUF files with one change, for tests of what is refused and of unusual models."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dgpt2_quant.core.gguf_file import ValueType, encode_header, padded, read_header
from dgpt2_quant.core.quant_types import TensorType

Tensor = tuple[tuple[int, ...], TensorType, bytes]


def rewrite(
    source: Path,
    target: Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor | None] | None = None,
) -> Path:
    """Copies a file with these keys and tensors (shape, type, data) added or replaced; None removes one."""
    header, data = read_header(source), source.read_bytes()
    keys = {**header.metadata, **(metadata or {})}
    parts: dict[str, Tensor | None] = {
        tensor.name: (tensor.shape, tensor.type, data[tensor.start : tensor.start + tensor.nbytes])
        for tensor in header.tensors.values()
    }
    kept = {name: tensor for name, tensor in {**parts, **(tensors or {})}.items() if tensor is not None}
    head = encode_header(
        {key: value for key, value in keys.items() if value is not None},
        {name: (shape, tensor_type) for name, (shape, tensor_type, _) in kept.items()},
    )
    target.write_bytes(head + b"".join(body.ljust(padded(len(body)), b"\0") for _, _, body in kept.values()))
    return target


def retype(source: Path, target: Path, key: str, value_type: ValueType, layout: str, value: float) -> Path:
    """Copies a file with a value of four bytes replaced by one of another type."""
    data = bytearray(source.read_bytes())
    name = struct.pack("<Q", len(key)) + key.encode()
    at = data.index(name) + len(name)
    data[at : at + 8] = struct.pack("<I", value_type) + struct.pack(layout, value)
    target.write_bytes(data)
    return target
