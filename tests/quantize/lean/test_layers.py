"""Quantizing layer by layer: each step brings a matrix's outputs closer to the original model's."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.core.ggml import dequantize
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.calibration.numpy_gpt2 import Reference
from dgpt2_quant.quantize.lean import layers
from dgpt2_quant.quantize.lean.activation_rounding import round_activations
from dgpt2_quant.quantize.lean.layers import QuantizedTensor, quantize_layers, quantize_matrix
from dgpt2_quant.quantize.recipes.lean_steps import Steps, steps_without

from ..random_reference import random_reference

NAME, WIDTH, TOKENS = "blk.0.ffn_up", 64, 512
MODEL = random_reference(layers=2, width=WIDTH, heads=4, inner=32, context=16, vocabulary=30, dtype=np.float32)
RANDOM = np.random.default_rng(7)
MIXED = RANDOM.normal(size=(WIDTH, WIDTH)) * RANDOM.gamma(1, 1, WIDTH)
WANTED = (RANDOM.normal(size=(TOKENS, WIDTH)) @ MIXED / 8 + RANDOM.normal(size=WIDTH)).astype(np.float32)
# the quantized model's inputs: shrunk, shifted and noisy
FOUND = (0.95 * WANTED + 0.1 * RANDOM.normal(size=WANTED.shape) + 0.1).astype(np.float32)
Array = npt.NDArray[np.floating]
NONE = steps_without(["feedback", "compensation", "sweeps"])


def rounded(
    kind: TensorType, steps: Steps, wanted: Array = WANTED, found: Array = FOUND
) -> tuple[QuantizedTensor, Array, Array]:
    """The matrix, and its intended and actual outputs."""
    weights = MODEL.weights[f"{NAME}.weight"]
    met = round_activations(found, kind)
    matrix = quantize_matrix(NAME, weights, (wanted, met), kind, None, steps)
    return matrix, wanted @ weights.T, met @ matrix.values.T


def error(steps: Steps, kind: TensorType = TensorType.Q4_0) -> float:
    _, should, gives = rounded(kind, steps)
    return float(np.square(should - gives, dtype=np.float64).mean())


def test_values_are_the_decoded_blocks() -> None:
    matrix, _, _ = rounded(TensorType.Q5_0, Steps())
    values = dequantize("w", matrix.blocks, TensorType.Q5_0, matrix.values.shape)
    assert np.array_equal(matrix.values, values)


@pytest.mark.parametrize(("step", "by"), [("feedback", 0.95), ("compensation", 0.9)], ids=lambda value: str(value))
def test_each_step_lowers_the_output_error(step: str, by: float) -> None:
    needed = {"feedback": True, step: True}
    assert error(replace(NONE, **needed)) < by * error(replace(NONE, **{**needed, step: False}))


def test_compensation_is_near_least_squares() -> None:
    """With 8 bits, the remaining error is nearly what no linear map of the inputs can compensate."""
    met = round_activations(FOUND, TensorType.Q8_0).astype(np.float64)
    should = WANTED.astype(np.float64) @ MODEL.weights[f"{NAME}.weight"].T
    best = should - met @ np.linalg.lstsq(met, should, rcond=None)[0]
    assert error(Steps(), TensorType.Q8_0) < 1.4 * np.square(best).mean()
    assert error(Steps(), TensorType.Q8_0) < 0.6 * error(steps_without(["compensation"]), TensorType.Q8_0)


def test_constant_inputs() -> None:
    constant = np.tile(FOUND[:1], (TOKENS, 1))
    matrix, should, gives = rounded(TensorType.Q4_0, Steps(), constant, constant)
    _, _, nearest = rounded(TensorType.Q4_0, NONE, constant, constant)
    assert np.square(gives - should).mean() < 0.1 * np.square(nearest - should).mean()
    assert np.abs(matrix.values - MODEL.weights[f"{NAME}.weight"]).max() < 0.3


def test_streams_pass_all_blocks() -> None:
    """F16 loses almost nothing, so every matrix sees its original inputs and stays the same."""
    chunks = np.random.default_rng(1).integers(0, 30, (4, 16)).tolist()
    matrices = [f"blk.{n}.{part}" for n in (0, 1) for part in ("attn_qkv", "attn_output", "ffn_up", "ffn_down")]
    types = {f"{name}.weight": TensorType.F16 for name in matrices}
    shown: list[tuple[int, int, str]] = []
    made: dict[str, Any] = {}
    report = lambda *seen: shown.append(seen)  # noqa: E731
    quantize_layers(MODEL, lambda: MODEL.weights, chunks, types, {}, Steps(), made, report)
    assert made.keys() == {name for name in MODEL.weights if name.startswith("blk.")}  # with norms and biases
    assert shown == [(number + 1, 8, name) for number, name in enumerate(matrices)]
    shapes = {name: MODEL.weights[name].shape for name in types}
    values = {name: dequantize(name, made[name], TensorType.F16, shape) for name, shape in shapes.items()}
    weights = {**MODEL.weights, **values}
    for name, data in weights.items():
        np.testing.assert_allclose(data, MODEL.weights[name], atol=2e-2)
    for chunk in chunks:
        np.testing.assert_allclose(Reference(MODEL.sizes, weights).logits(chunk), MODEL.logits(chunk), atol=0.05)


def test_every_matrix_gets_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inputs of the original model are the reference's."""
    chunks = np.random.default_rng(2).integers(0, 30, (3, 16)).tolist()
    expected: dict[str, list[Array]] = {}
    for chunk in chunks:
        MODEL.hidden(chunk, observe=lambda name, x: expected.setdefault(name, []).append(x))
    met: dict[str, Any] = {}

    def watched(name: str, weights: Any, streams: Any, *others: Any) -> Any:
        met[name] = streams
        return quantize_matrix(name, weights, streams, *others)

    monkeypatch.setattr(layers, "quantize_matrix", watched)
    types = dict.fromkeys((name for name in expected if name != MODEL.head), TensorType.F32)
    quantize_layers(MODEL, lambda: MODEL.weights, chunks, types, {}, Steps(), {})
    assert met.keys() == types.keys()
    for name, (wanted, found) in met.items():
        np.testing.assert_allclose(wanted, np.concatenate(expected[name]), atol=1e-4)
        np.testing.assert_allclose(found, wanted, atol=1e-3)  # nothing is rounded in F32
