"""Equalizing: the model computes the same, and its inputs and rows have the intended statistics."""

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix, Statistics
from dgpt2_quant.quantize.calibration.numpy_gpt2 import Reference
from dgpt2_quant.quantize.lean.equalize import center_embedding, equalize_inputs

from ..random_reference import random_reference

TEXT = np.random.default_rng(1).integers(0, 20, (6, 12)).tolist()
MADE_OF_NORMS = ("attn_qkv", "ffn_up", "attn_output")
both_heads = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
parts = pytest.mark.parametrize(("centre", "scale"), [(True, False), (False, True), (True, True)])
Array = npt.NDArray[np.floating]


def seen(reference: Reference) -> dict[str, Array]:
    """The input of each matrix over the text, in float64."""
    found = defaultdict(list)
    for chunk in TEXT:
        reference.hidden(chunk, observe=lambda name, x: found[name].append(x))
    return {name: np.concatenate(inputs) for name, inputs in found.items()}


def importance(reference: Reference, sums: bool = True) -> ImportanceMatrix:
    entries = {
        name: Statistics(np.square(x).sum(0).astype(np.float32), x.sum(0).astype(np.float32) if sums else None, len(x))
        for name, x in seen(reference).items()
    }
    return ImportanceMatrix(entries, ["text"], 6, 12)


def rewritten(reference: Reference, weights: Any) -> Reference:
    return Reference(reference.sizes, {name: data.astype(np.float64) for name, data in weights.items()})


def logits(reference: Reference) -> Array:
    return np.stack([reference.logits(chunk) for chunk in TEXT])


@both_heads
@parts
def test_equalized_inputs_keep_the_logits(centre: bool, scale: bool, tied: bool) -> None:
    model = random_reference(tied=tied)
    before = {name: data.copy() for name, data in model.weights.items()}
    weights = equalize_inputs(model.weights, importance(model), centre=centre, scale=scale)
    assert {data.dtype for data in weights.values()} == {np.dtype(np.float32)}
    np.testing.assert_allclose(logits(rewritten(model, weights)), logits(model), atol=2e-5)
    changed = {name for name in weights if not np.allclose(weights[name], model.weights[name], atol=1e-6)}
    assert "blk.1.attn_qkv.bias" in changed
    assert ("blk.1.attn_qkv.weight" in changed) is scale
    assert not changed & {"token_embd.weight", "position_embd.weight", "output.weight", "output_norm.bias"}
    assert all(np.array_equal(data, model.weights[name]) for name, data in before.items())


def test_centered_inputs_have_mean_0() -> None:
    model = random_reference()
    weights = equalize_inputs(model.weights, importance(model), centre=True, scale=False)
    for name, x in seen(rewritten(model, weights)).items():
        before = seen(model)[name]
        if any(part in name for part in MADE_OF_NORMS):
            assert np.abs(before.mean(0)).max() > 0.1
            np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
            np.testing.assert_allclose(x, before - before.mean(0), atol=1e-5)
        else:
            np.testing.assert_allclose(x, before, atol=1e-5)


def test_scaling_evens_inputs_and_columns() -> None:
    model = random_reference()
    model.weights["blk.0.ffn_norm.weight"][3] *= 50  # type: ignore[index]
    weights = equalize_inputs(model.weights, importance(model), centre=True, scale=True)
    x = seen(rewritten(model, weights))["blk.0.ffn_up.weight"]
    sizes, columns = x.std(0), np.sqrt(np.square(weights["blk.0.ffn_up.weight"]).mean(0))
    np.testing.assert_allclose(sizes / sizes[0], columns / columns[0], rtol=1e-3)  # each takes half of the difference
    before = seen(model)["blk.0.ffn_up.weight"].std(0)
    assert np.ptp(np.log(sizes)) < 0.7 * np.ptp(np.log(before))
    ratio = columns / np.sqrt(np.square(model.weights["blk.0.ffn_up.weight"]).mean(0))
    assert np.log(ratio).mean() == pytest.approx(0, abs=1e-5)


def test_unused_columns() -> None:
    model = random_reference()
    weights: Any = model.weights
    weights["blk.0.attn_norm.weight"][2] = 0  # a constant input
    weights["blk.0.ffn_up.weight"][:, 5] = 0  # unused weights
    weights["blk.1.ffn_norm.weight"][:] = 0
    with np.errstate(all="raise"):
        found = equalize_inputs(weights, importance(model), centre=True, scale=True)
    assert all(np.isfinite(data).all() for data in found.values())
    np.testing.assert_allclose(logits(rewritten(model, found)), logits(model), atol=2e-5)


def test_scaling_needs_no_sums() -> None:
    model = random_reference()
    weights = equalize_inputs(model.weights, importance(model, sums=False), centre=False, scale=True)
    np.testing.assert_allclose(logits(rewritten(model, weights)), logits(model), atol=2e-5)


@both_heads
def test_centered_embedding_shifts_all_logits_equally(tied: bool) -> None:
    model = random_reference(tied=tied)
    frequencies = np.bincount(np.concatenate(TEXT), minlength=20).astype(np.float64)
    found = rewritten(model, center_embedding(model.weights, frequencies))
    assert (found.head == "token_embd.weight") is tied
    moved = logits(found) - logits(model)
    assert np.abs(moved).max() > 0.01
    np.testing.assert_allclose(np.ptp(moved, axis=-1), 0, atol=1e-5)
    assert np.abs(frequencies @ model.weights[model.head]).max() > 1
    for name in {"token_embd.weight", found.head}:
        np.testing.assert_allclose(frequencies @ found.weights[name] / frequencies.sum(), 0, atol=1e-6)
    tokens = TEXT[0]
    looked_up = [m.weights["token_embd.weight"][tokens] + m.weights["position_embd.weight"] for m in (model, found)]
    np.testing.assert_allclose(looked_up[1], looked_up[0], atol=1e-6)
