"""ggml's block quantizers and decoders, called through ctypes: `quantize` and `dequantize` on rows of a tensor.

The functions are found through libllama, whose symbol lookup reaches the ggml libraries that it is linked with, so the
process has one copy of their tables. ctypes releases the GIL: callers may distribute rows over threads.
"""

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .cores import bounded_spin
from .errors import CheckpointError, DgptQuantError, GGUFError
from .quant_types import TensorType
from .versions import check_layout, check_version

_FLOAT32_MAX = 3.4e38

FloatArray = npt.NDArray[np.floating[Any]]


@cache
def library() -> ctypes.CDLL:
    """libllama with the prototypes of the ggml functions used here. Raises `DgptQuantError` if it is not installed."""
    check_version()
    spec = find_spec("llama_cpp")
    folder = Path(spec.origin).parent / "lib" if spec and spec.origin else Path()
    for name in ("libllama.so", "libllama.dylib"):
        if (folder / name).is_file():
            with bounded_spin():
                lib = ctypes.CDLL(str(folder / name))
            break
    else:
        raise DgptQuantError(
            f"llama.cpp's library is not in {folder}",
            "Reinstall it: `pip install --force-reinstall llama-cpp-python`.",
        )
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    lib.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]
    lib.ggml_quantize_chunk.restype = ctypes.c_size_t
    lib.ggml_quantize_requires_imatrix.argtypes = [ctypes.c_int]
    lib.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    lib.ggml_row_size.argtypes = [ctypes.c_int, size]
    lib.ggml_row_size.restype = ctypes.c_size_t
    lib.ggml_validate_row_data.argtypes = [ctypes.c_int, pointer, ctypes.c_size_t]
    lib.ggml_validate_row_data.restype = ctypes.c_bool
    lib.ggml_get_type_traits.argtypes = [ctypes.c_int]
    lib.ggml_get_type_traits.restype = ctypes.POINTER(_TypeTraits)
    q4_0 = lib.ggml_get_type_traits(TensorType.Q4_0).contents
    found = q4_0.type_name, q4_0.blck_size, q4_0.type_size, q4_0.is_quantized
    check_layout("ggml_type_traits of Q4_0", found, (b"q4_0", 32, 18, True))
    return lib


class _TypeTraits(ctypes.Structure):
    """The beginning of `struct ggml_type_traits` in ggml.h."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("blck_size", ctypes.c_int64),
        ("blck_size_interleave", ctypes.c_int64),
        ("type_size", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


def quantize(
    name: str,
    rows: FloatArray,
    tensor_types: Sequence[TensorType],
    importance: npt.NDArray[np.float32] | None = None,
) -> list[npt.NDArray[np.uint8]]:
    """Quantizes rows of a tensor to each of the types; returns for each the bytes, shape (rows, bytes of a row).

    `rows` has shape (rows, columns) and dtype float16, float32 or float64, and may be a strided view. `importance`
    weights the columns, shape (columns,). The bytes are those of ggml_quantize_chunk (ggml.c) on the whole tensor in
    float32, however the tensor is split into calls.

    Raises `CheckpointError` with `name` for values that are not finite, or too large for the type.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # a float64 too large for float32 becomes infinity
        data = np.ascontiguousarray(rows, np.float32)
        total = float(data.sum())  # one fast pass; finite unless a value is not
    if not isfinite(total) and not np.isfinite(data).all():
        raise CheckpointError(
            f"tensor {name} has a value that is not finite (NaN or infinity)",
            "The checkpoint is damaged.",
        )
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    if weights is not None and any(tensor_type.is_quantized for tensor_type in tensor_types):
        _check_importance(name, weights, data)
    return [_quantize(name, data, tensor_type, weights) for tensor_type in tensor_types]


def _quantize(
    name: str, data: npt.NDArray[np.float32], tensor_type: TensorType, weights: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.uint8]:
    if tensor_type is TensorType.F32:
        return data.view(np.uint8)
    columns = data.shape[1]
    if columns % tensor_type.block:
        raise ValueError(f"{name}: a row of {columns} is not a multiple of {tensor_type.block}")
    if weights is None and library().ggml_quantize_requires_imatrix(tensor_type):
        raise ValueError(f"{name}: {tensor_type.name} needs an importance matrix")
    blocks = np.empty((data.shape[0], tensor_type.row_bytes(columns)), np.uint8)
    weighing = None if weights is None else weights.ctypes.data
    library().ggml_quantize_chunk(tensor_type, data.ctypes.data, blocks.ctypes.data, 0, *data.shape, weighing)
    if tensor_type is TensorType.F16:  # the C function would also print to stderr
        what, is_finite = "value", (blocks.view(np.uint16) & 0x7FFF).max() < 0x7C00
    else:
        what, is_finite = "scale", library().ggml_validate_row_data(tensor_type, blocks.ctypes.data, blocks.nbytes)
    if not is_finite:
        raise CheckpointError(
            f"tensor {name} has values up to {np.abs(data).max():.4g}: a {what} overflows in {tensor_type.name}",
            "Convert it to f32 or bf16." if weights is None else "Try without the importance matrix: is it damaged?",
        )
    return blocks


def dequantize(
    name: str, blocks: npt.NDArray[np.uint8], tensor_type: TensorType, shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    """Decodes blocks to weights with the C library; `blocks` holds exactly the given shape.

    Raises `GGUFError` as `validated`, except for F32, which is returned unchecked.
    """
    if tensor_type is TensorType.F32:  # the C library has no function for it; `quantize` checks its values
        return blocks.reshape(-1).view(np.float32).reshape(shape)
    validated(name, blocks, tensor_type)
    values = np.empty(shape, np.float32)
    library().ggml_get_type_traits(tensor_type).contents.to_float(blocks.ctypes.data, values.ctypes.data, values.size)
    return values


def validated(name: str, blocks: npt.NDArray[np.uint8], tensor_type: TensorType) -> npt.NDArray[np.uint8]:
    """Returns the blocks. Raises `GGUFError` with the tensor's name if a value or scale is not finite."""
    if not library().ggml_validate_row_data(tensor_type, blocks.ctypes.data, blocks.nbytes):
        raise GGUFError(
            f"tensor {name} has a value or a scale that is not finite (NaN or infinity)", "The file is damaged."
        )
    return blocks


def _check_importance(name: str, weights: npt.NDArray[np.float32], data: npt.NDArray[np.float32]) -> None:
    """Rejects values that would overflow in a block's sums, where some of the C functions abort the process.

    They square the sum, over up to 256 weights, of importance x weight^2 x code (up to 127).
    """
    largest = max(float(data.max()), -float(data.min()))
    if (256 * 127 * float(weights.max()) * max(largest, 1e-6) ** 2) ** 2 > _FLOAT32_MAX:
        raise CheckpointError(
            f"tensor {name}: an importance of {weights.max():.4g} and weights up to {largest:.4g} overflow float32",
            "The importance matrix is damaged; collect it again with `dgpt2-quant imatrix`.",
        )
