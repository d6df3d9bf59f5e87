"""Writes files as `torch.save` does, in both formats, without PyTorch.

Python's own pickler does it: the names that a file refers to stand in modules called `torch` while it runs.
"""

import io
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy.typing as npt

_KINDS = {
    "<f4": "FloatStorage",
    "<f2": "HalfStorage",
    "<f8": "DoubleStorage",
    "<i8": "LongStorage",
    "|u1": "ByteStorage",
}
_KINDS |= {"|b1": "BoolStorage", "<u2": "BFloat16Storage"}


class _StorageClass:
    """Stands for a class such as `torch.FloatStorage`: pickled by its name."""


class Storage:
    """A storage in a persistent id."""

    def __init__(self, kind: str, key: str, data: npt.NDArray[Any]) -> None:
        self.kind, self.key, self.data = kind, key, data


class Tensor:
    """A view of an array, which may be shared with other tensors. Uint16 stands for BF16."""

    def __init__(self, base: npt.NDArray[Any], view: npt.NDArray[Any] | None = None, parameter: bool = False) -> None:
        self.base, self.view, self.parameter = base, base if view is None else view, parameter


@contextmanager
def torch_modules() -> Iterator[dict[str, ModuleType]]:
    """Modules with the names that files of PyTorch refer to."""
    modules = {name: ModuleType(name) for name in ("torch", "torch._utils")}
    for module, name in [("torch._utils", "_rebuild_tensor_v2"), ("torch._utils", "_rebuild_parameter")]:
        function = _named_function(module, name)
        setattr(modules[module], name, function)
    for kind in _KINDS.values():
        setattr(modules["torch"], kind, type(kind, (_StorageClass,), {"__module__": "torch", "__qualname__": kind}))
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield modules
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def save_zip(path: Path, saved: Any, *, compress: bool = False, byteorder: str = "little") -> Path:
    """The format of PyTorch 1.6 and later."""
    pickled, storages = _pickled(saved, legacy=False)
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", byteorder)
        for storage in storages:
            archive.writestr(f"archive/data/{storage.key}", storage.data.tobytes())
        archive.writestr("archive/version", "3\n")
    return path


def save_legacy(path: Path, saved: Any) -> Path:
    """The format before PyTorch 1.6."""
    pickled, storages = _pickled(saved, legacy=True)
    machine = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2), pickle.dumps(machine, 2), pickled]
    parts.append(pickle.dumps([storage.key for storage in storages], 2))
    for storage in storages:
        parts += [struct.pack("<q", storage.data.size), storage.data.tobytes()]
    path.write_bytes(b"".join(parts))
    return path


def _named_function(module: str, name: str) -> Callable[..., Any]:
    def function(*arguments: Any) -> None: ...

    function.__module__, function.__qualname__, function.__name__ = module, name, name
    return function


def _pickled(saved: Any, legacy: bool) -> tuple[bytes, list[Storage]]:
    storages: dict[int, Storage] = {}
    file = io.BytesIO()
    with torch_modules() as modules:
        torch, utils = modules["torch"], modules["torch._utils"]

        class Pickler(pickle.Pickler):
            def reducer_override(self, what: Any) -> Any:
                if not isinstance(what, Tensor):
                    return NotImplemented
                base, view = what.base, what.view
                storage = storages.setdefault(
                    id(base), Storage(_KINDS[base.dtype.str], str(len(storages)), base.reshape(-1))
                )
                offset = (view.__array_interface__["data"][0] - base.__array_interface__["data"][0]) // base.itemsize
                strides = tuple(stride // base.itemsize for stride in view.strides)
                call = (storage, offset, view.shape, strides, False, {})
                if what.parameter:
                    return utils._rebuild_parameter, (Tensor(base, view), True, {})
                return utils._rebuild_tensor_v2, call

            def persistent_id(self, what: Any) -> Any:
                if not isinstance(what, Storage):
                    return None
                found = ("storage", getattr(torch, what.kind), what.key, "cpu", what.data.size)
                return (*found, None) if legacy else found

        Pickler(file, 2).dump(saved)
    return file.getvalue(), list(storages.values())
