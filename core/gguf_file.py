"""The GGUF container: writing and reading the header (metadata and tensor entries), with every field checked.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, version 3, little-endian. The header has the magic
number, the counts, the metadata (typed key-values) and one entry per tensor (name, shape, type, offset); the aligned
tensor data follow. gguf-py also reads and writes GGUF, and the tests compare with it. This module exists because a
writer that streams several files at once needs the header as bytes, and because gguf-py's reader is slow on GPT-2's
100,000 token and merge strings, does not check what it reads, and takes long to import.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import prod
from pathlib import Path
from typing import Any

from .errors import GGUFError, ModelNotFoundError, UsageError
from .file_kinds import HEAD_BYTES, other_kind
from .paths import user_path
from .quant_types import TensorType, name_of_file_type

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32  # of files that this project writes; others state theirs as `general.alignment`
_MAX_DIMENSIONS = 4
_MAX_NAME_BYTES = 63  # ggml's GGML_MAX_NAME includes the final zero
_USUAL_HEAD, _LARGEST_HEAD = 4 << 20, 64 << 20  # bytes
_MAX_KEYS, _MAX_TENSORS = 1 << 12, 1 << 16  # GPT-2 XL has 580 tensors and about 30 keys
_MAX_ITEMS = 1 << 23  # of all arrays together; Python objects take many times the size in the file,
_MAX_STRINGS = 1 << 21  # strings most of all


class ValueType(IntEnum):
    """`enum gguf_type` in llama.cpp's gguf.h."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


_FORMATS = {
    ValueType.UINT8: "<B",
    ValueType.INT8: "<b",
    ValueType.UINT16: "<H",
    ValueType.INT16: "<h",
    ValueType.UINT32: "<I",
    ValueType.INT32: "<i",
    ValueType.FLOAT32: "<f",
    ValueType.BOOL: "<?",
    ValueType.UINT64: "<Q",
    ValueType.INT64: "<q",
    ValueType.FLOAT64: "<d",
}


class EncodedValue(bytes):
    """An encoded metadata value, for one that several files share (the token tables)."""


@dataclass(frozen=True)
class TensorInfo:
    """A tensor entry: `shape` in NumPy's order (rows, columns), `start` and `nbytes` in bytes of the file."""

    name: str
    shape: tuple[int, ...]
    type: TensorType
    start: int
    nbytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """The header of a file; `encoded` has the metadata as stored, to be copied with their types."""

    path: Path
    file_bytes: int
    metadata: dict[str, Any]
    encoded: dict[str, EncodedValue]
    tensors: dict[str, TensorInfo]

    @property
    def parameters(self) -> int:
        return sum(prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def quant_type(self) -> str | None:
        """The quant type's name, if the file states a known one."""
        own = self.metadata.get("dgpt2_quant.type")
        return own if isinstance(own, str) else name_of_file_type(self.metadata.get("general.file_type"))

    @property
    def bits_per_weight(self) -> float:
        """Over all tensor data, without the metadata (as llama.cpp counts it)."""
        return 8 * sum(tensor.nbytes for tensor in self.tensors.values()) / self.parameters


def require_file(path: Path, hint: str = "Create one with `dgpt2-quant convert`.") -> Path:
    """The path with `~` expanded. Raises `ModelNotFoundError` if it is not a file or cannot be accessed."""
    if str(path) == "-":
        raise UsageError("this file cannot be read from stdin", "Name a file.")
    path, why = user_path(path), ""
    try:
        if path.is_file():
            return path
        if path.exists():
            why = " (it is a folder)" if path.is_dir() else " (it is a pipe or a device)"
    except (OSError, ValueError) as error:  # permission denied, name too long, NUL byte
        why = f" ({getattr(error, 'strerror', None) or error})"
    raise ModelNotFoundError(f"there is no file {path}{why}", hint)


def padded(nbytes: int, alignment: int = ALIGNMENT) -> int:
    """Rounds up to the alignment of tensor data (32 bytes in files that this project writes)."""
    return -(-nbytes // alignment) * alignment


def tensor_bytes(shape: Sequence[int], tensor_type: TensorType) -> int:
    """The number of bytes of a tensor's data, without padding."""
    return prod(shape[:-1]) * tensor_type.row_bytes(shape[-1])


def encode_header(metadata: Mapping[str, Any], tensors: Mapping[str, tuple[tuple[int, ...], TensorType]]) -> bytes:
    """Encodes the header of a file, padded to where the first tensor's data begin.

    `metadata` values are str, bool, int (UINT32, or UINT64 if larger), float (FLOAT32), lists of str, int (INT32) or
    float (FLOAT32), or results of `encode_value`. `tensors` maps names to (shape, type), in the order of their data,
    each padded.
    """
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_encode_string(key), encode_value(value)]
    offset = 0
    for name, (shape, tensor_type) in tensors.items():
        parts.append(_encode_string(name))
        parts.append(struct.pack("<I", len(shape)))
        parts.append(struct.pack(f"<{len(shape)}Q", *reversed(shape)))
        parts.append(struct.pack("<IQ", tensor_type, offset))
        offset += padded(tensor_bytes(shape, tensor_type))
    head = b"".join(parts)
    return head.ljust(padded(len(head)), b"\0")


def encode_value(value: Any) -> EncodedValue:
    """Encodes type and value as in a file. Raises `TypeError` for a value without a GGUF type."""
    return value if isinstance(value, EncodedValue) else EncodedValue(_encode(value))


def decode_value(encoded: EncodedValue) -> Any:
    """Decodes a value encoded by `encode_value` or read from a file. Raises `GGUFError` for other bytes."""
    return _Reader(Path("the value"), encoded, len(encoded), arrays=True).value()


def read_header(path: Path, *, arrays: bool = True) -> GGUFHeader:
    """Reads metadata and tensor entries, and checks all of them against the file's size.

    With `arrays=False` the arrays (the token tables) are skipped, and each value is the array's length.
    Raises `GGUFError` that states what is wrong, such as a big-endian file or an older version.
    """
    try:
        file_bytes = path.stat().st_size
        with path.open("rb") as file:
            # a GPT-2's header has 2 MB, nearly all of it tokens and merges; other files may need more
            data = file.read(_USUAL_HEAD)
            try:
                return _Reader(path, data, file_bytes, arrays).read()
            except GGUFError:
                if len(data) == file_bytes:
                    raise
            data += file.read(_LARGEST_HEAD - len(data))
            return _Reader(path, data, file_bytes, arrays).read()
    except OSError as error:
        raise GGUFError(f"cannot read {path}: {error.strerror}", "Check the path.") from error
    except MemoryError as error:
        raise GGUFError(f"not enough memory for the header of {path}", "Is it the right file?") from error


class _Reader:
    def __init__(self, path: Path, data: bytes, file_bytes: int, arrays: bool) -> None:
        self.path = path
        self.data = data
        self.file_bytes = file_bytes
        self.arrays = arrays
        self.at = 0
        self.items = self.strings = 0

    def read(self) -> GGUFHeader:
        if self.data[:4] != MAGIC:
            if found := other_kind(self.data[:HEAD_BYTES]):
                raise GGUFError(f"{self.path} is {found[0]}", found[1])
            raise self._broken(f"it begins with {self.data[:4]!r}, not {MAGIC!r}")
        self.at = 4
        version = self._number("<I")
        if version == VERSION << 24:
            raise GGUFError(f"{self.path} is big-endian", "Convert the original checkpoint on this machine.")
        if version != VERSION:
            raise GGUFError(
                f"{self.path} cannot be read: its version is {version}, not {VERSION}",
                "A version below 3 is of a llama.cpp from before October 2023: convert the original checkpoint again.",
            )
        tensor_count, key_count = self._number("<Q"), self._number("<Q")
        if tensor_count > _MAX_TENSORS or key_count > _MAX_KEYS:
            raise self._broken(f"it claims {tensor_count} tensors and {key_count} keys")
        metadata: dict[str, Any] = {}
        encoded: dict[str, EncodedValue] = {}
        for _ in range(key_count):
            key = self._string()
            if not key or "\0" in key:  # C ends a key at the NUL, and could find another key than the checked one
                raise self._broken(f"the key {key[:80]!r} is not valid")
            if key in metadata:
                raise self._broken(f"the key {key!r} occurs twice")
            begin = self.at
            metadata[key] = self.value()
            encoded[key] = EncodedValue(self.data[begin : self.at])
        alignment = self._alignment(encoded.get("general.alignment"))
        entries = [self._tensor_entry() for _ in range(tensor_count)]
        data_start = padded(self.at, alignment)
        tensors: dict[str, TensorInfo] = {}
        end = data_start
        for name, shape, tensor_type, offset in entries:
            if name in tensors:
                raise self._broken(f"the tensor {name!r} occurs twice")
            start, nbytes = data_start + offset, tensor_bytes(shape, tensor_type)
            if start != (expected := padded(end, alignment)):
                raise self._broken(
                    f"tensor {name!r} begins at byte {start}, not at {expected} after the previous tensor"
                )
            end = start + nbytes
            if end > self.file_bytes:
                raise self._broken(f"tensor {name!r} ends at byte {end}, the file at byte {self.file_bytes}")
            tensors[name] = TensorInfo(name, shape, tensor_type, start, nbytes)
        return GGUFHeader(self.path, self.file_bytes, metadata, encoded, tensors)

    def value(self) -> Any:
        """Reads a type and its value."""
        value_type = self._value_type()
        if value_type is ValueType.STRING:
            return self._string()
        if value_type is ValueType.ARRAY:
            return self._array()
        return self._number(_FORMATS[value_type])

    def _alignment(self, encoded: EncodedValue | None) -> int:
        """The alignment of tensor data. llama.cpp aborts the process if its type is not UINT32."""
        if encoded is None:
            return ALIGNMENT
        alignment = decode_value(encoded)
        is_power_of_2 = type(alignment) is int and alignment >= 8 and not alignment & (alignment - 1)
        if not is_power_of_2 or encoded[:4] != struct.pack("<I", ValueType.UINT32):
            raise self._broken(f"its alignment is {alignment!r}, not a power of 2 from 8 up (UINT32)")
        return int(alignment)

    def _tensor_entry(self) -> tuple[str, tuple[int, ...], TensorType, int]:
        name = self._string()
        if not 0 < len(name.encode()) <= _MAX_NAME_BYTES:
            raise self._broken(f"the tensor name {name[:80]!r} must have 1 to {_MAX_NAME_BYTES} bytes")
        dimensions = self._number("<I")
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self._broken(f"tensor {name!r} has {dimensions} dimensions, not 1 to {_MAX_DIMENSIONS}")
        shape = tuple(reversed([self._number("<Q") for _ in range(dimensions)]))
        number, offset = self._number("<I"), self._number("<Q")
        try:
            tensor_type = TensorType(number)
        except ValueError:
            raise self._broken(f"tensor {name!r} has the unknown type {number}") from None
        if min(shape) < 1 or prod(shape) > 1 << 40 or shape[-1] % tensor_type.block:
            raise self._broken(f"tensor {name!r} cannot have the shape {list(shape)} in {tensor_type.name}")
        return name, shape, tensor_type, offset

    def _value_type(self) -> ValueType:
        number = self._number("<I")
        try:
            return ValueType(number)
        except ValueError:
            raise self._broken(f"the value at byte {self.at} has the unknown type {number}") from None

    def _array(self) -> Any:
        item_type, count = self._value_type(), self._number("<Q")
        if item_type is ValueType.ARRAY:
            raise self._broken("it contains an array of arrays")
        smallest = 8 if item_type is ValueType.STRING else struct.calcsize(_FORMATS[item_type])
        self.items += count
        self.strings += count if item_type is ValueType.STRING else 0
        if count * smallest > len(self.data) - self.at or self.items > _MAX_ITEMS or self.strings > _MAX_STRINGS:
            raise self._broken(f"the array at byte {self.at} claims {count} values")
        if item_type is ValueType.STRING:
            return self._strings(count)
        begin, self.at = self.at, self.at + count * smallest
        if not self.arrays:
            return count
        return list(struct.unpack_from(f"<{count}{_FORMATS[item_type][1]}", self.data, begin))

    def _strings(self, count: int) -> Any:
        # hot loop: 100,000 strings in a GPT-2 file
        data, at, unpack = self.data, self.at, struct.Struct("<Q").unpack_from
        ends = []
        try:
            for _ in range(count):
                at += 8 + unpack(data, at)[0]
                ends.append(at)
        except (struct.error, OverflowError):  # OverflowError: a length beyond C's integers
            at = len(data) + 1
        if at > len(data):
            raise self._broken("an array of strings ends after the end of the header")
        begins = [self.at, *ends]
        self.at = at
        if not self.arrays:
            return count
        return [self._decode(data[begin + 8 : end]) for begin, end in zip(begins, ends, strict=False)]

    def _string(self) -> str:
        length = self._number("<Q")
        if length > len(self.data) - self.at:
            raise self._broken(f"the string at byte {self.at} claims {length} bytes")
        self.at += length
        return self._decode(self.data[self.at - length : self.at])

    def _decode(self, text: bytes) -> str:
        try:
            return text.decode("utf-8")
        except UnicodeDecodeError:
            raise self._broken(f"the string {text[:40]!r} is not UTF-8") from None

    def _number(self, layout: str) -> Any:
        try:
            (value,) = struct.unpack_from(layout, self.data, self.at)
        except struct.error:
            raise self._broken(f"it ends at byte {len(self.data)}, inside the header") from None
        self.at += struct.calcsize(layout)
        return value

    def _broken(self, why: str) -> GGUFError:
        return GGUFError(
            f"{self.path} is not a valid GGUF file: {why}",
            "Create it again, for example with `dgpt2-quant convert`.",
        )


def _encode_string(text: str) -> bytes:
    data = text.encode("utf-8", "replace")  # a folder's name can contain invalid Unicode
    return struct.pack("<Q", len(data)) + data


def _encode(value: Any) -> bytes:
    match value:
        case str():
            return struct.pack("<I", ValueType.STRING) + _encode_string(value)
        case bool():
            return struct.pack("<I?", ValueType.BOOL, value)
        case int():
            wide = value > 0xFFFFFFFF
            return struct.pack("<IQ" if wide else "<II", ValueType.UINT64 if wide else ValueType.UINT32, value)
        case float():
            return struct.pack("<If", ValueType.FLOAT32, value)
        case [str(), *_]:
            return struct.pack("<IIQ", ValueType.ARRAY, ValueType.STRING, len(value)) + b"".join(
                map(_encode_string, value)
            )
        case [int(), *_]:
            return struct.pack(f"<IIQ{len(value)}i", ValueType.ARRAY, ValueType.INT32, len(value), *value)
        case [float(), *_]:
            return struct.pack(f"<IIQ{len(value)}f", ValueType.ARRAY, ValueType.FLOAT32, len(value), *value)
    raise TypeError(f"no GGUF type for {value!r}")
