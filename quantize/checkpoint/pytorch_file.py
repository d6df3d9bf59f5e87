"""Reads a file of `torch.save` without PyTorch: where each tensor's bytes are, and the plain values next to them.

Both formats: the ZIP of PyTorch 1.6 and later, and the sequence of pickles before it. Nothing of the file is executed
(pickle_reader.py), and no tensor is read before its extent has been checked against the file.
Format: torch/serialization.py (`_save`, `_legacy_save`) and torch/_utils.py (`_rebuild_tensor_v2`).
"""

import io
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import CheckpointError

from .pickle_reader import LARGEST_PICKLE, MalformedPickleError, Name, RefusedPickleError, check_key, read_pickle, shown
from .safetensors_file import StoredTensor

_MAGIC = 0x1950A86A20F9469CFC6C
_DEEPEST = 50  # containers within one another
_MOST_AXES = 32
_STORAGES = {
    **{"FloatStorage": ("F32", 4), "HalfStorage": ("F16", 2), "BFloat16Storage": ("BF16", 2)},
    **{"DoubleStorage": ("F64", 8), "LongStorage": ("I64", 8), "IntStorage": ("I32", 4), "ShortStorage": ("I16", 2)},
    **{"CharStorage": ("I8", 1), "ByteStorage": ("U8", 1), "BoolStorage": ("BOOL", 1)},
}
_DTYPES = {f"torch.{name}" for name in ("float32", "float16", "bfloat16", "float64", "int64", "int32", "bool", "uint8")}
SAVE_STATE = "Save the weights alone: `torch.save(model.state_dict(), 'pytorch_model.bin')`, or as safetensors."


@dataclass(frozen=True)
class _Storage:
    """Numbers of one type, one after another; `start` is set when the file's layout is known."""

    key: str
    dtype: str
    item_bytes: int
    numel: int


@dataclass(frozen=True)
class _View:
    """A tensor as the pickle describes it: a part of a storage."""

    storage: _Storage
    offset: int  # in numbers, as the strides are
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class StridedTensor(StoredTensor):
    """A tensor whose numbers are not in the order of its shape, such as a transposed one."""

    strides: tuple[int, ...] = ()

    def read(self, first: int = 0, rows: int | None = None) -> npt.NDArray[np.floating[Any]]:
        span = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        flat = replace(self._plain(), shape=(span,)).read()
        strides = [stride * flat.itemsize for stride in self.strides]
        whole = np.lib.stride_tricks.as_strided(flat, self.shape, strides, writeable=False)
        return np.ascontiguousarray(whole if rows is None else whole[first : first + rows])

    def _plain(self) -> StoredTensor:
        return StoredTensor(self.name, self.dtype, self.shape, self.path, self.start, self.nbytes)


def is_pytorch_file(path: Path) -> bool:
    """Whether the file begins as `torch.save` writes it: a ZIP, or the pickle of its magic number."""
    with path.open("rb") as file:
        head = file.read(64)
    return head.startswith(b"PK\x03\x04") or _MAGIC.to_bytes(10, "little") in head


def read_pytorch_file(path: Path) -> Any:
    """The saved object, with a `StoredTensor` for each tensor.

    Raises `CheckpointError` for a file that is broken, or whose pickle asks for anything but containers, numbers, texts
    and tensors: by the name of what it asks for.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                return _read_zip(path, file)
            file.seek(0)
            return _read_legacy(path, file)
    except RefusedPickleError as error:
        raise CheckpointError(
            f"{path} asks for {error.message}, which no tensor needs; nothing was executed", SAVE_STATE
        ) from error
    except MalformedPickleError as error:
        raise _broken(path, error.message) from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _read_zip(path: Path, file: BinaryIO) -> Any:
    """`NAME/data.pkl`, `NAME/data/KEY` for each storage, uncompressed."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = {entry.filename.partition("/")[2]: entry for entry in archive.infolist()}
            if len(entries) != len(archive.infolist()):
                raise _broken(path, "two entries of its ZIP have the same name")
            pickled = entries.get("data.pkl")
            if pickled is None:
                raise CheckpointError(f"{path} is a ZIP without data.pkl: torch.save did not write it", SAVE_STATE)
            if compressed := [name for name, entry in entries.items() if entry.compress_type != zipfile.ZIP_STORED]:
                raise _broken(path, f"{compressed[0]} is compressed, which torch.save does not do")
            if pickled.file_size > LARGEST_PICKLE:
                raise _broken(path, f"data.pkl has {pickled.file_size} bytes")
            if (order := entries.get("byteorder")) and order.file_size < 64 and archive.read(order) != b"little":
                raise CheckpointError(f"{path} has big-endian numbers", "Save it on a little-endian machine.")
            found = _unpickle(io.BytesIO(archive.read(pickled)))
    except (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, OverflowError, struct.error) as error:
        raise _broken(path, str(error)) from error
    size = path.stat().st_size
    extents: dict[str, tuple[int, int]] = {}

    def start_of(storage: _Storage) -> int:
        entry = entries.get(f"data/{storage.key}")
        if entry is None:
            raise _broken(path, f"it has no entry data/{storage.key}")
        if entry.file_size != storage.numel * storage.item_bytes:
            raise _broken(path, f"data/{storage.key} has {entry.file_size} bytes, which is not what its tensors need")
        if not 0 <= entry.header_offset < size:
            raise _broken(path, f"data/{storage.key} begins after the file")
        file.seek(entry.header_offset)
        local = file.read(30)
        if len(local) < 30 or not local.startswith(b"PK\x03\x04"):
            raise _broken(path, f"data/{storage.key} has no header")
        start: int = entry.header_offset + 30 + sum(struct.unpack("<HH", local[26:30]))
        end = start + entry.file_size
        if end > size:
            raise _broken(path, f"data/{storage.key} ends after the file")
        extents[storage.key] = (start, end)
        return start

    located = _Locator(path, start_of).locate(found)
    for (_, end), (start, _) in pairwise(sorted(extents.values())):
        if start < end:
            raise _broken(path, f"two storages overlap at byte {start}")
    return located


def _read_legacy(path: Path, file: BinaryIO) -> Any:
    """Pickles of a magic number, a version, the machine, the object and the storages' keys; then the storages."""
    if _plain(file) != _MAGIC:
        raise CheckpointError(f"{path} is a pickle that torch.save did not write", SAVE_STATE)
    version, machine = _plain(file), _plain(file)
    if version != 1001 or not isinstance(machine, dict):
        raise _broken(path, "its protocol version is not 1001")
    if machine.get("little_endian") is not True:
        raise CheckpointError(f"{path} has big-endian numbers", "Save it on a little-endian machine.")
    storages: dict[str, _Storage] = {}
    found = _unpickle(file, storages)
    keys = _plain(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or {*storages} != {*keys}:
        raise _broken(path, "its list of storages is not that of its tensors")
    starts: dict[str, int] = {}
    at, size = file.tell(), path.stat().st_size
    for key in keys:
        file.seek(at)
        numel = int.from_bytes(file.read(8), "little", signed=True)
        storage = storages[key]
        starts[key], at = at + 8, at + 8 + numel * storage.item_bytes
        if numel != storage.numel or at > size:
            raise _broken(path, f"storage {key} has {numel} numbers, its tensors need {storage.numel}")
    return _Locator(path, lambda storage: starts[storage.key]).locate(found)


def _plain(file: BinaryIO) -> Any:
    def refuse(reference: Any) -> Any:
        raise RefusedPickleError("a storage before its object")

    return read_pickle(file, {}, lambda name: False, refuse)


def _unpickle(file: BinaryIO, storages: dict[str, _Storage] | None = None) -> Any:
    """The object, with a `_View` for each tensor. The storages that it refers to are added to `storages`."""
    there = storages if storages is not None else {}

    def persistent(reference: Any) -> _Storage:
        match reference:
            case ("storage", Name("torch", kind), str(key), str(), int(numel), *view) if kind in _STORAGES:
                if view not in ([], [None]):
                    raise MalformedPickleError(f"storage {key} is a view of another one")
                if not 0 <= numel <= 1 << 48:
                    raise MalformedPickleError(f"storage {key} has {numel} numbers")
                storage = _Storage(key, *_STORAGES[kind], numel)
                if there.setdefault(key, storage) != storage:
                    raise MalformedPickleError(f"storage {key} is described in two ways")
                return storage
            case (str(kind), *_):
                raise RefusedPickleError(f"a {kind[:40]!r}, which is not a storage of numbers")
        raise MalformedPickleError("a persistent id that is not a storage")

    def is_value(name: str) -> bool:
        return (
            name in _DTYPES
            or name in ("torch.Tensor", "torch.nn.parameter.Parameter")
            or (name.startswith("torch.") and name.removeprefix("torch.") in _STORAGES)
        )

    return read_pickle(file, _FUNCTIONS, is_value, persistent)


def _view(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _View:
    """`torch._utils._rebuild_tensor_v2`: what follows is about gradients."""
    sizes = (*shape, *strides) if isinstance(shape, tuple) and isinstance(strides, tuple) else (None,)
    if not isinstance(storage, _Storage) or not all(type(n) is int and 0 <= n <= 1 << 48 for n in (offset, *sizes)):
        raise MalformedPickleError("a tensor without sound shape and strides")
    if len(shape) != len(strides) or len(shape) > _MOST_AXES:
        raise MalformedPickleError(f"a tensor of {len(shape)} axes with {len(strides)} strides")
    if 0 not in shape:
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if last >= storage.numel or prod(shape) > storage.numel:
            raise MalformedPickleError(f"a tensor of shape {list(shape)} in a storage of {storage.numel} numbers")
    return _View(storage, offset, shape, strides)


def _first(tensor: Any, *rest: Any) -> Any:
    return tensor


def _ordered(pairs: Any = None) -> dict[Any, Any]:
    """`collections.OrderedDict`, which Python 2 calls with a list of pairs."""
    found = {check_key(key): value for key, value in pairs or ()}
    if pairs:
        pairs.clear()  # a pickle that copies a list again and again would take unbounded memory
    return found


def _size(sizes: Any) -> tuple[Any, ...]:
    """`torch.Size`."""
    if not isinstance(sizes, list | tuple) or len(sizes) > _MOST_AXES:
        raise MalformedPickleError("an invalid shape")
    return tuple(sizes)


def _subclass(function: Any, kind: Any, arguments: Any, *state: Any) -> Any:
    """`torch._tensor._rebuild_from_type_v2`: a tensor with attributes."""
    if not isinstance(function, Name) or str(function) not in _FUNCTIONS or not isinstance(arguments, tuple):
        raise RefusedPickleError(shown(function))
    return _FUNCTIONS[str(function)](*arguments)


_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _view,
    "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _subclass,
}


class _Locator:
    """Replaces each view by a `StoredTensor`. An object that occurs twice is read once."""

    def __init__(self, path: Path, start_of: Callable[[_Storage], int]) -> None:
        self._path, self._start_of = path, start_of
        self._done: dict[int, Any] = {}

    def locate(self, found: Any, name: str = "", depth: int = 0) -> Any:
        """`name` is the key that leads to it."""
        if isinstance(found, _View):
            return self._tensor(found, name)
        if not isinstance(found, dict | list | tuple):
            return found
        if depth > _DEEPEST:
            raise _broken(self._path, "its containers are nested too deeply")
        if (known := self._done.get(id(found))) is not None:
            return known
        if isinstance(found, dict):
            items = found.items()
            located: Any = {k: self.locate(v, k if isinstance(k, str) else name, depth + 1) for k, v in items}
        else:
            located = [self.locate(value, name, depth + 1) for value in found]
        self._done[id(found)] = located
        return located

    def _tensor(self, view: _View, name: str) -> StoredTensor:
        storage, shape = view.storage, view.shape
        start = self._start_of(storage) + view.offset * storage.item_bytes
        nbytes = prod(shape) * storage.item_bytes
        in_order = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
        if any(n > 1 and stride != usual for n, stride, usual in zip(shape, view.strides, in_order, strict=True)):
            return StridedTensor(name, storage.dtype, shape, self._path, start, nbytes, view.strides)
        return StoredTensor(name, storage.dtype, shape, self._path, start, nbytes)


def _broken(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a sound PyTorch file: {why}", "Fetch or save the checkpoint again; it may be truncated."
    )
