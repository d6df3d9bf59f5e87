"""llama.cpp's quantizer, called in this process, for comparison."""

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.gguf_file import GGUFHeader, read_header
from dgpt2_quant.core.quant_types import QUANT_TYPES, TensorType
from dgpt2_quant.runtime.native.bindings import bindings

Contents = dict[str, tuple[str, tuple[int, ...], npt.NDArray[np.uint8]]]


def llama_quantize(
    source: Path,
    level: str,
    target: Path,
    *,
    importance: Mapping[str, npt.NDArray[np.float32]] | None = None,
    overrides: Sequence[tuple[str, TensorType]] = (),
    allow_requantize: bool = False,
) -> bool:
    """Returns whether it wrote the file. `importance` has mean squares by matrix name."""
    llama_cpp = bindings()  # its log goes to a logger that nobody listens to
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = QUANT_TYPES[level].file_type
    params.nthread = 2
    params.allow_requantize = allow_requantize
    floats = ctypes.POINTER(ctypes.c_float)
    if importance:
        entries = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()  # the last one ends the list
        for entry, (name, values) in zip(entries, importance.items(), strict=False):
            entry.name, entry.data, entry.size = name.encode(), values.ctypes.data_as(floats), len(values)
        params.imatrix = entries
    if overrides:
        patterns = (llama_cpp.llama_model_tensor_override * (len(overrides) + 1))()
        for pattern, (expression, tensor_type) in zip(patterns, overrides, strict=False):
            pattern.pattern, pattern.type = expression.encode(), tensor_type
        params.tt_overrides = patterns
    return bool(llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) == 0)


def contents(path: Path) -> Contents:
    """The type's name, shape and bytes of each tensor."""
    return _contents(read_header(path))


def _contents(header: GGUFHeader) -> Contents:
    data = np.fromfile(header.path, np.uint8)
    tensors = header.tensors.values()
    return {t.name: (t.type.name, t.shape, data[t.start : t.start + t.nbytes]) for t in tensors}


def assert_same_tensors(ours: Path, theirs: Path) -> dict[str, str]:
    """Asserts equal tensors, types, shapes, bytes and `general.file_type`; returns the types by name."""
    headers = read_header(ours), read_header(theirs)
    one, other = map(_contents, headers)
    assert {name: kind for name, (kind, _, _) in one.items()} == {name: kind for name, (kind, _, _) in other.items()}
    for name, (_, shape, data) in other.items():
        assert one[name][1] == shape
        assert np.array_equal(one[name][2], data), f"{name} has other bytes"
    assert headers[0].metadata["general.file_type"] == headers[1].metadata["general.file_type"]
    return {name: kind for name, (kind, _, _) in one.items()}
