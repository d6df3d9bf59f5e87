"""Copies of valid GGUF files with one change, for tests of what is refused and of unusual models."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
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


def realign(source: Path, target: Path, alignment: int) -> Path:
    """Copies a file with another alignment, by gguf's writer."""
    header, data = read_header(source), source.read_bytes()
    writer = gguf.GGUFWriter(target, header.metadata["general.architecture"])
    writer.add_custom_alignment(alignment)
    for key, value in header.metadata.items():
        if key != "general.architecture":
            kind, item = struct.unpack_from("<II", header.encoded[key].ljust(8, b"\0"))
            is_array = kind == ValueType.ARRAY
            writer.add_key_value(key, value, gguf.GGUFValueType(kind), gguf.GGUFValueType(item) if is_array else None)
    for tensor in header.tensors.values():
        content = np.frombuffer(data, np.uint8, tensor.nbytes, tensor.start)
        rows = content.reshape(*tensor.shape[:-1], tensor.type.row_bytes(tensor.shape[-1]))
        writer.add_tensor(tensor.name, rows, raw_dtype=gguf.GGMLQuantizationType(tensor.type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target
