"""Gradients compared with finite differences, Fisher information with the sum over the vocabulary."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.core import scratch
from dgpt2_quant.quantize.calibration.numpy_gpt2 import Reference, softmax
from dgpt2_quant.quantize.calibration.sample_text import draw
from dgpt2_quant.quantize.lean import fisher
from dgpt2_quant.quantize.lean.fisher import Fisher, backward_half, by_final, forward_half
from dgpt2_quant.quantize.lean.gptq import factor

from ..random_reference import random_reference

TOKENS = [3, 1, 3, 7, 0, 12]
SEED, STEP = 4, 1e-5
MATRICES = [f"blk.{n}.{name}.weight" for n in (0, 1) for name in ("attn_output", "attn_qkv", "ffn_down")]
LOOKUP = "lookup"
Array = npt.NDArray[np.float64]


def gradients(reference: Reference, tokens: list[int], seed: Any) -> dict[str, Any]:
    """Gradients by each matrix's outputs and by the embedding sum, (tokens, outputs)."""
    states = [reference.embed(tokens)]
    for half in range(2 * reference.sizes.layers):
        states.append(forward_half(reference, half, states[-1]))
    g = by_final(reference, states.pop(), np.random.default_rng(seed))
    found: dict[str, Any] = {}
    for half in reversed(range(len(states))):
        g, own = backward_half(reference, half, states[half], g)
        found |= own
    return {**found, LOOKUP: g}


def changed(reference: Reference, name: str, change: Any) -> Reference:
    return replace(reference, weights={**reference.weights, name: reference.weights[name] + change})


def likelihood(reference: Reference, drawn: Any) -> float:
    """The log-likelihood of the first tokens minus that of the second, over √2, summed over all positions."""
    each = np.log(softmax(reference.logits(TOKENS)))[np.arange(len(TOKENS)), drawn]
    return float((each[0] - each[1]).sum() / np.sqrt(2))


def slope(reference: Reference, name: str, direction: Array, drawn: Any) -> float:
    ends = [likelihood(changed(reference, name, sign * STEP * direction), drawn) for sign in (1, -1)]
    return (ends[0] - ends[1]) / (2 * STEP)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request: Any) -> Reference:
    return random_reference(tied=request.param)


@pytest.fixture(scope="module")
def drawn(model: Reference) -> Any:
    """The tokens drawn with the seed, two for each position."""
    random, probabilities = np.random.default_rng(SEED), softmax(model.logits(TOKENS))
    return np.stack([draw(probabilities, random) for _ in range(2)])


@pytest.fixture(scope="module")
def found(model: Reference) -> dict[str, Any]:
    return gradients(model, TOKENS, SEED)


def test_gradients_for_every_matrix(model: Reference, found: Any) -> None:
    assert found.keys() == {*MATRICES, LOOKUP}
    for name in MATRICES:
        assert found[name].shape == (len(TOKENS), len(model.weights[name]))


def test_gradient_by_the_embedding_sum(model: Reference, found: Any, drawn: Any) -> None:
    random = np.random.default_rng(5)
    for position in range(len(TOKENS)):
        direction = np.zeros_like(model.weights["position_embd.weight"])
        direction[position] = random.normal(size=direction.shape[1])
        expected = slope(model, "position_embd.weight", direction, drawn)
        assert float(found[LOOKUP][position] @ direction[position]) == pytest.approx(expected, rel=1e-5, abs=1e-8)
        assert abs(expected) > 1e-4


@pytest.mark.parametrize("name", MATRICES)
def test_gradient_by_matrix_outputs(name: str, model: Reference, found: Any, drawn: Any) -> None:
    """By the bias: the sum over positions; by the weights: each position times its input."""
    inputs = {}
    model.hidden(TOKENS, observe=lambda matrix, x: inputs.update({matrix: x}))
    random, gradient = np.random.default_rng(6), found[name]
    bias = name.replace(".weight", ".bias")
    for index in random.choice(gradient.shape[1], 4, replace=False):
        direction = np.eye(gradient.shape[1])[index]
        expected = slope(model, bias, direction, drawn)
        assert float(gradient.sum(0)[index]) == pytest.approx(expected, rel=1e-5, abs=1e-8)
    direction = random.normal(size=model.weights[name].shape)
    expected = slope(model, name, direction, drawn)
    assert float(((inputs[name] @ direction.T) * gradient).sum()) == pytest.approx(expected, rel=1e-5)


def exact_fisher(model: Reference, tokens: list[int]) -> Array:
    """For the embedding sum: over positions s and tokens v, J_s' (diag p_s - p_s p_s') J_s, by finite differences."""
    width = model.sizes.width
    total = np.zeros((width, width))
    p = softmax(model.logits(tokens))
    for position in range(len(tokens)):
        jacobian = np.empty((len(tokens), model.sizes.vocabulary, width))
        for column in range(width):
            change = np.zeros_like(model.weights["position_embd.weight"])
            change[position, column] = STEP
            ends = [changed(model, "position_embd.weight", sign * change).logits(tokens) for sign in (1, -1)]
            jacobian[..., column] = (ends[0] - ends[1]) / (2 * STEP)
        for row, j in zip(p, jacobian, strict=True):
            total += j.T @ (np.diag(row) - np.outer(row, row)) @ j
    return total / len(tokens)


@pytest.fixture(scope="module")
def tiny() -> Reference:
    return random_reference(layers=1, width=6, inner=8, context=4, vocabulary=9, spread=0.6)


def test_fisher_of_the_model_distribution(tiny: Reference) -> None:
    tokens = [2, 5, 5]
    exact, found = exact_fisher(tiny, tokens), Fisher(tiny, [tokens] * 1500, {})
    assert np.linalg.norm(found.lookup - exact) < 0.11 * np.linalg.norm(exact)
    hidden = tiny.hidden(tokens)
    np.testing.assert_allclose(found.hidden, hidden.T @ hidden / 3, rtol=1e-6)


def test_means_and_factors_over_all_chunks(tiny: Reference) -> None:
    shown: list[tuple[int, int, str]] = []
    chunks = [[1, 2], [3, 4], [5, 6]]
    found = Fisher(tiny, chunks, {}, lambda *seen: shown.append(seen))
    # reproducible files depend on the seeds
    each = [gradients(tiny, chunk, [1, number]) for number, chunk in enumerate(chunks)]
    rows = {name: np.concatenate([of_chunk[name] for of_chunk in each]) for name in each[0]}
    np.testing.assert_allclose(found.lookup, rows[LOOKUP].T @ rows[LOOKUP] / 6, rtol=1e-9)
    assert found.outputs.keys() == {n for n in MATRICES if n.startswith("blk.0")}
    for name, side in found.outputs.items():
        expected = factor(rows[name].T @ rows[name] / 6)
        assert np.array_equal(side.order, expected.order)
        np.testing.assert_allclose(side.upper, expected.upper, rtol=1e-4, atol=1e-6)
    assert [seen[:2] for seen in shown] == [(1, 4), (2, 4), (3, 4), (4, 4)]  # two halves forwards and backwards


@pytest.mark.parametrize("stop", range(1, 9))
def test_an_interrupted_computation_continues(
    stop: int, model: Reference, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From states on disk, as for a large model, and without computing a step again."""
    monkeypatch.setattr(fisher, "KEPT_BYTES", 0)
    monkeypatch.setattr(scratch, "SAVE_EVERY", 0)
    chunks = [[1, 2], [3, 4], [5, 6]]
    whole = Fisher(model, chunks, {})

    def interrupt(done: int, total: int, what: str) -> None:
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _ = Fisher(model, chunks, scratch.Files(tmp_path, "it"), interrupt).outputs
    shown: list[int] = []
    found = Fisher(model, chunks, scratch.Files(tmp_path, "it"), lambda done, *_: shown.append(done))
    assert np.array_equal(found.lookup, whole.lookup)
    assert np.array_equal(found.hidden, whole.hidden)
    for name, side in whole.outputs.items():
        assert np.array_equal(found.outputs[name].upper, side.upper)
    begun = stop + 1 if stop < 4 else max(stop, 5)  # a state is saved before the step is reported, a gradient after
    assert shown == list(range(begun, 9))
    assert not [name for name in scratch.Files(tmp_path, "it") if name.startswith(("state", "gradient"))]


def test_float32_is_accurate_enough(model: Reference, found: Any) -> None:
    single = replace(model, weights={name: data.astype(np.float32) for name, data in model.weights.items()})
    for name, gradient in gradients(single, TOKENS, SEED).items():
        assert gradient.dtype == np.float32
        np.testing.assert_allclose(gradient, found[name], atol=1e-4 * np.abs(found[name]).max())
