"""Gradients compared with finite differences, Fisher information with the sum over the vocabulary."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.quantize.calibration.numpy_gpt2 import Reference, softmax
from dgpt2_quant.quantize.calibration.sample_text import draw
from dgpt2_quant.quantize.lean.fisher import LOOKUP, fisher, gradients

from ..random_reference import random_reference

TOKENS = [3, 1, 3, 7, 0, 12]
SEED, STEP = 4, 1e-5
MATRICES = [f"blk.{n}.{name}.weight" for n in (0, 1) for name in ("attn_output", "attn_qkv", "ffn_down")]
Array = npt.NDArray[np.float64]


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
def found(model: Reference) -> tuple[dict[str, Any], Any]:
    return gradients(model, TOKENS, np.random.default_rng(SEED))


def test_gradients_for_every_matrix(model: Reference, found: Any) -> None:
    assert found[0].keys() == {*MATRICES, LOOKUP}
    for name in MATRICES:
        assert found[0][name].shape == (len(TOKENS), len(model.weights[name]))
    np.testing.assert_allclose(found[1], model.hidden(TOKENS), rtol=1e-9)


def test_gradient_by_the_embedding_sum(model: Reference, found: Any, drawn: Any) -> None:
    random = np.random.default_rng(5)
    for position in range(len(TOKENS)):
        direction = np.zeros_like(model.weights["position_embd.weight"])
        direction[position] = random.normal(size=direction.shape[1])
        expected = slope(model, "position_embd.weight", direction, drawn)
        assert float(found[0][LOOKUP][position] @ direction[position]) == pytest.approx(expected, rel=1e-5, abs=1e-8)
        assert abs(expected) > 1e-4


@pytest.mark.parametrize("name", MATRICES)
def test_gradient_by_matrix_outputs(name: str, model: Reference, found: Any, drawn: Any) -> None:
    """By the bias: the sum over positions; by the weights: each position times its input."""
    inputs = {}
    model.hidden(TOKENS, observe=lambda matrix, x: inputs.update({matrix: x}))
    random, gradient = np.random.default_rng(6), found[0][name]
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
    exact, found = exact_fisher(tiny, tokens), fisher(tiny, [tokens] * 1500)
    assert np.linalg.norm(found.lookup - exact) < 0.11 * np.linalg.norm(exact)
    hidden = tiny.hidden(tokens)
    np.testing.assert_allclose(found.hidden, hidden.T @ hidden / 3, rtol=1e-6)


def test_mean_over_tokens_is_deterministic(tiny: Reference) -> None:
    shown: list[tuple[int, int, str]] = []
    chunks = [[1, 2], [3, 4], [5, 6]]
    one = fisher(tiny, iter(chunks), lambda *seen: shown.append(seen))
    other = fisher(tiny, chunks)
    assert one.grams.keys() == other.grams.keys() == {LOOKUP, *(n for n in MATRICES if n.startswith("blk.0"))}
    for name, gram in one.grams.items():
        assert np.array_equal(gram, other.grams[name])
        assert np.array_equal(gram, gram.T)
    assert [seen[:2] for seen in shown] == [(1, 2), (2, 2)]  # several chunks per task
    # reproducible files depend on the seeds
    each = [gradients(tiny, chunk, np.random.default_rng([1, number]))[0] for number, chunk in enumerate(chunks)]
    rows = np.concatenate([found[LOOKUP] for found in each])
    np.testing.assert_allclose(one.lookup, rows.T @ rows / 6, rtol=1e-9)


def test_float32_is_accurate_enough(model: Reference, found: Any) -> None:
    single = replace(model, weights={name: data.astype(np.float32) for name, data in model.weights.items()})
    for name, gradient in gradients(single, TOKENS, np.random.default_rng(SEED))[0].items():
        assert gradient.dtype == np.float32
        np.testing.assert_allclose(gradient, found[0][name], atol=1e-4 * np.abs(found[0][name]).max())
