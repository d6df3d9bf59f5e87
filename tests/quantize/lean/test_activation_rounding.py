"""Rounding of activations, compared with llama.cpp's kernels."""

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.core.ggml import dequantize
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.lean.activation_rounding import round_activations
from dgpt2_quant.runtime.native.bindings import bindings

Array = npt.NDArray[np.float32]
WIDTH = 512
RANDOM = np.random.default_rng(0)
X = np.concatenate([RANDOM.standard_normal((8, WIDTH)), RANDOM.standard_cauchy((8, WIDTH))]).astype(np.float32)
Q8_1, Q8_K = 9, 15  # of `enum ggml_type`: for activations only

each_type = pytest.mark.parametrize("kind", TensorType, ids=lambda kind: kind.name)


class _CpuTraits(ctypes.Structure):
    """The beginning of `struct ggml_type_traits_cpu` in ggml-cpu.h."""

    _fields_ = (
        ("from_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
    )


@pytest.fixture(scope="module")
def kernels() -> Any:
    """llama.cpp's table of CPU type traits, by ggml's type number."""
    bindings()
    folder = Path(llama_cpp.__file__).parent / "lib"
    (path,) = (path for end in ("so", "dylib") if (path := folder / f"libggml-cpu.{end}").is_file())
    lib = ctypes.CDLL(str(path))
    lib.ggml_cpu_init()
    lib.ggml_get_type_traits_cpu.restype = ctypes.POINTER(_CpuTraits)
    return lambda number: lib.ggml_get_type_traits_cpu(number).contents


def by_c(kernels: Any, kind: TensorType, x: Array) -> Array:
    """Rounded by the kernels, and decoded as ggml-common.h describes the formats."""
    number = kernels(int(kind)).vec_dot_type
    if number == TensorType.F32:
        return x
    data = np.zeros((len(x), 8 * x.shape[1]), np.uint8)
    for row, rounded in zip(np.ascontiguousarray(x), data, strict=True):
        kernels(number).from_float(row.ctypes.data, rounded.ctypes.data, len(row))
    if number not in (Q8_1, Q8_K):
        rounded_to = TensorType(number)
        blocks = np.ascontiguousarray(data[:, : rounded_to.row_bytes(x.shape[1])])
        return dequantize("x", blocks, rounded_to, x.shape)
    size, before, stride = (32, 4, 36) if number == Q8_1 else (256, 4, 4 + 256 + 32)
    blocks = data[:, : x.shape[1] // size * stride].reshape(len(x), -1, stride)
    scale = np.ascontiguousarray(blocks[..., : 2 if number == Q8_1 else 4])
    scale = scale.view(np.float16 if number == Q8_1 else np.float32).astype(np.float32)
    codes = np.ascontiguousarray(blocks[..., before : before + size]).view(np.int8)
    return (scale * codes).reshape(x.shape)


@each_type
def test_rounding_equals_the_kernels(kernels: Any, kind: TensorType) -> None:
    found, expected = round_activations(X, kind), by_c(kernels, kind, X)
    assert found.dtype == np.float32
    # ties may differ, because one divides where the other multiplies; all else is equal
    same = np.isclose(found, expected, rtol=1e-6, atol=0)
    assert same.mean() > 0.999
    size = 256 if kernels(int(kind)).vec_dot_type == Q8_K else 32
    steps = np.repeat(np.abs(X).reshape(-1, size).max(axis=1) / 127, size).reshape(X.shape)
    assert (np.abs(found - expected)[~same] <= 1.01 * steps[~same]).all()
    if kind is not TensorType.F32:
        assert not np.array_equal(found, X)


@each_type
def test_zero_blocks_stay_zero(kernels: Any, kind: TensorType) -> None:
    x = X[:2].copy()
    x[0], x[1, 256:] = 0, 0
    with np.errstate(invalid="raise", over="raise"):
        found = round_activations(x, kind)
    assert not found[0].any()
    assert not found[1, 256:].any()
    np.testing.assert_allclose(found[1], by_c(kernels, kind, x)[1], rtol=1e-6, atol=np.abs(x).max() / 100)


@each_type
def test_outlier_affects_only_its_block(kind: TensorType) -> None:
    x = np.full((1, WIDTH), 0.001, np.float32)
    x[0, 0] = 100
    found = round_activations(x, kind)
    size = 1 if not kind.is_quantized else 256 if kind.block == 256 else 32
    assert (found[0, 1:size] == 0).all()
    np.testing.assert_allclose(found[0, size:], 0.001, rtol=0.01)


def test_bfloat16_rounds_ties_to_even(kernels: Any) -> None:
    x = np.array([[1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8, 3.0]], np.float32)
    expected = [[1, 1 + 2.0**-6, -1, 3]]
    assert by_c(kernels, TensorType.BF16, x).tolist() == expected
    assert round_activations(x, TensorType.BF16).tolist() == expected


def test_any_dtype_and_layout() -> None:
    turned = np.asarray(X, np.float64, order="F")
    assert np.array_equal(round_activations(turned, TensorType.Q4_K), round_activations(X, TensorType.Q4_K))
