"""The block quantizers give the bytes of one call of llama.cpp's function, however the rows are split."""

import ctypes
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.core.errors import CheckpointError, GGUFError
from dgpt2_quant.core.ggml import dequantize, library, quantize, validated
from dgpt2_quant.core.quant_types import TensorType

pytestmark = pytest.mark.tables

ROWS, COLUMNS = 75, 256
WEIGHTS = np.random.default_rng(0).normal(0, 0.1, (ROWS, COLUMNS))
IMPORTANCE = np.random.default_rng(1).gamma(2, 1, COLUMNS).astype(np.float32)

NEED_IMPORTANCE = [t for t in TensorType if library().ggml_quantize_requires_imatrix(t)]
FREE = [t for t in TensorType if t not in NEED_IMPORTANCE]
USUAL = [TensorType[name] for name in ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_0")]
UNKNOWN_TO_GGUF_PY = (TensorType.Q1_0, TensorType.Q2_0)

# the RMS error relative to the RMS of the weights: measured, plus a fifth
ERRORS = {"F32": 0.0, "F16": 2.5e-4, "BF16": 2.1e-3, "Q8_0": 7e-3, "Q6_K": 0.022, "Q5_K": 0.044, "Q5_1": 0.046}
ERRORS |= {"Q5_0": 0.051, "Q4_K": 0.086, "IQ4_NL": 0.093, "IQ4_XS": 0.094, "Q4_1": 0.095, "Q4_0": 0.105, "Q3_K": 0.19}
ERRORS |= {
    "IQ2_S": 9,
    "IQ1_M": 9,
    "MXFP4": 9,
    "NVFP4": 9,
    "Q1_0": 9,
    "Q2_0": 9,
    "IQ3_S": 0.21,
    "IQ3_XXS": 0.26,
    "Q2_K": 0.36,
    "TQ1_0": 0.98,
    "TQ2_0": 0.98,
}


def quantized(
    data: npt.NDArray[Any], tensor_type: TensorType, importance: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.uint8]:
    """Quantizes in several calls, the last one smaller, as a conversion does."""
    parts = [quantize("w", data[first : first + 32], [tensor_type], importance)[0] for first in (0, 32, 64)]
    return np.concatenate(parts)


def in_one_call(
    data: npt.NDArray[Any], tensor_type: TensorType, importance: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.uint8]:
    source = np.ascontiguousarray(data, np.float32)
    result = np.zeros((source.shape[0], tensor_type.row_bytes(source.shape[1])), np.uint8)
    weights = None if importance is None else importance.ctypes.data_as(ctypes.c_void_p)
    written = library().ggml_quantize_chunk(
        tensor_type, source.ctypes.data, result.ctypes.data, 0, *source.shape, weights
    )
    assert written == result.nbytes
    return result


@pytest.mark.parametrize(
    "tensor_type",
    [pytest.param(t, marks=pytest.mark.slow) if t.name in ("IQ1_M", "IQ2_S") else t for t in FREE],
    ids=lambda t: t.name,
)
def test_rows_in_parts_give_the_same_bytes(tensor_type: TensorType) -> None:
    ours = quantized(WEIGHTS.astype(np.float32), tensor_type)
    np.testing.assert_array_equal(ours, in_one_call(WEIGHTS, tensor_type))
    decoded = dequantize("w", ours, tensor_type, WEIGHTS.shape)
    if tensor_type not in UNKNOWN_TO_GGUF_PY:
        np.testing.assert_array_equal(decoded, gguf.dequantize(ours, gguf.GGMLQuantizationType(tensor_type)))
    error = np.sqrt(np.mean((decoded - WEIGHTS.astype(np.float32)) ** 2) / np.mean(WEIGHTS**2))
    assert error <= ERRORS[tensor_type.name]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("tensor_type", USUAL, ids=lambda t: t.name)
def test_dtype_and_transposed_view_do_not_change_bytes(tensor_type: TensorType, dtype: type) -> None:
    data = WEIGHTS.astype(dtype)
    view = np.asfortranarray(data)  # as for a Conv1D weight: stored (inputs, outputs)
    assert not view.flags.c_contiguous
    expected = in_one_call(data, tensor_type)
    for source in (data, view):
        np.testing.assert_array_equal(quantized(source, tensor_type), expected)


def test_several_types_in_one_call() -> None:
    together = quantize("w", WEIGHTS, USUAL)
    for tensor_type, ours in zip(USUAL, together, strict=True):
        np.testing.assert_array_equal(ours, in_one_call(WEIGHTS, tensor_type))


@pytest.mark.parametrize("tensor_type", [t for t in USUAL if t.is_quantized], ids=lambda t: t.name)
def test_importance_applies_to_every_row(tensor_type: TensorType) -> None:
    weighed = quantized(WEIGHTS, tensor_type, IMPORTANCE)
    np.testing.assert_array_equal(weighed, in_one_call(WEIGHTS, tensor_type, IMPORTANCE))
    if tensor_type is not TensorType.Q8_0:  # Q8_0 has no choice to make
        assert (weighed != in_one_call(WEIGHTS, tensor_type)).any()


def test_importance_of_any_dtype_and_stride() -> None:
    strided = np.repeat(IMPORTANCE.astype(np.float64), 2)[::2]
    (weighed,) = quantize("w", WEIGHTS, [TensorType.Q4_K], strided)  # type: ignore[arg-type]
    np.testing.assert_array_equal(weighed, in_one_call(WEIGHTS, TensorType.Q4_K, IMPORTANCE))


@pytest.mark.parametrize("tensor_type", NEED_IMPORTANCE, ids=lambda t: t.name)
def test_type_that_needs_importance_is_refused_without(tensor_type: TensorType) -> None:
    with pytest.raises(ValueError, match=f"{tensor_type.name} needs an importance matrix"):  # C would abort
        quantize("w", WEIGHTS, [tensor_type])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tensor_type", [TensorType.F32, TensorType.BF16, TensorType.Q4_K], ids=lambda t: t.name)
@pytest.mark.parametrize("place", [(0, 0), (ROWS - 1, COLUMNS - 1)])
def test_non_finite_value_is_refused(value: float, tensor_type: TensorType, place: tuple[int, int]) -> None:
    data = WEIGHTS.copy()
    data[place] = value
    with pytest.raises(CheckpointError, match=r"tensor blk.3.ffn_up.weight has a value that is not finite"):
        quantize("blk.3.ffn_up.weight", data, [tensor_type])


def test_float64_overflow_is_refused_without_a_warning() -> None:
    data = WEIGHTS.copy()
    data[5, 5] = 1e300
    with pytest.raises(CheckpointError, match="not finite"):
        quantize("w", data, [TensorType.F32])


@pytest.mark.parametrize("value", [1e5, -1e5])
def test_f16_overflow_is_refused(value: float) -> None:
    data = WEIGHTS.copy()
    data[ROWS // 2, 7] = value
    with pytest.raises(CheckpointError) as caught:
        quantize("token_embd.weight", data, [TensorType.F32, TensorType.F16])
    assert "tensor token_embd.weight has values up to 1e+05: a value overflows in F16" in caught.value.message
    assert "f32 or bf16" in caught.value.hint
    # blocks have scales, and a larger range
    exact, rounded, blocks = quantize("w", data, [TensorType.F32, TensorType.BF16, TensorType.Q8_0])
    assert exact.view(np.float32)[ROWS // 2, 7] == value
    for made, kind in ((rounded, "BF16"), (blocks, "Q8_0")):
        decoded = gguf.dequantize(made, gguf.GGMLQuantizationType[kind])
        assert decoded[ROWS // 2, 7] == pytest.approx(value, rel=2**-8)


@pytest.mark.parametrize("tensor_type", [TensorType.Q8_0, TensorType.Q4_0, TensorType.Q4_K], ids=lambda t: t.name)
def test_scale_overflow_is_refused(tensor_type: TensorType) -> None:
    data = WEIGHTS.copy()
    data[5, 5] = 1e9
    with pytest.raises(
        CheckpointError, match=f"tensor w has values up to 1e.09: a scale overflows in {tensor_type.name}"
    ):
        quantize("w", data, [tensor_type])


def test_largest_f16_is_accepted() -> None:
    data = WEIGHTS.copy()
    data[0, 0] = -65504
    (ours,) = quantize("w", data, [TensorType.F16])
    assert ours.view(np.float16)[0, 0] == -65504


def test_row_must_be_a_multiple_of_the_block() -> None:
    with pytest.raises(ValueError, match="a row of 48 is not a multiple of 32"):
        quantize("w", WEIGHTS[:, :48], [TensorType.Q8_0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_non_finite_scale_is_refused(value: float) -> None:
    (blocks,) = quantize("w", WEIGHTS, [TensorType.Q8_0])
    assert validated("w", blocks, TensorType.Q8_0) is blocks
    blocks[5, :2] = np.frombuffer(np.float16(value).tobytes(), np.uint8)  # the first block's scale
    for attempt in (validated, lambda *args: dequantize(*args, WEIGHTS.shape)):
        with pytest.raises(GGUFError, match=r"tensor blk.0.ffn_up.weight has a value or a scale that is not finite"):
            attempt("blk.0.ffn_up.weight", blocks, TensorType.Q8_0)
