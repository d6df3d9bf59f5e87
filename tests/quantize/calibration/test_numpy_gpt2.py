"""NumPy and llama.cpp compute the same model, from checkpoint to logits."""

from math import erf, sqrt
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.quantize.calibration import numpy_gpt2 as reference
from dgpt2_quant.quantize.calibration.numpy_gpt2 import Reference, from_checkpoint, from_gguf
from dgpt2_quant.quantize.checkpoint.resolve import resolve
from dgpt2_quant.runtime import Model

from ...checkpoints import make_checkpoint

Logits = npt.NDArray[np.float64]
CHUNKS = 4


@pytest.fixture(scope="module")
def folder() -> Path:
    return resolve("storybook").folder


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Reference:
    return from_checkpoint(folder, np.float64)


@pytest.fixture(scope="module")
def chunks(folder: Path, storybook_files: dict[str, Path]) -> list[list[int]]:
    """The beginning of the bundled evaluation text, in full contexts."""
    with Model.load(storybook_files["F32"]) as model:
        tokens = model.tokenize((folder / "evaluation.txt").read_text("utf-8"))
    assert len(tokens) >= CHUNKS * 512
    return [tokens[512 * number : 512 * (number + 1)] for number in range(CHUNKS)]


@pytest.fixture(scope="module")
def expected(oracle: Reference, chunks: list[list[int]]) -> list[Logits]:
    return [oracle.logits(chunk) for chunk in chunks]


def log_softmax(logits: npt.NDArray[np.floating]) -> Logits:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def divergence(expected: Logits, logits: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """The KL divergence from the expected distribution at each position, in nats."""
    ours, theirs = log_softmax(expected), log_softmax(logits)
    result: npt.NDArray[np.float64] = (np.exp(ours) * (ours - theirs)).sum(-1)
    return result


def compare(path: Path, chunks: list[list[int]], expected: list[Logits]) -> tuple[float, float]:
    """A file's mean KL divergence in llama.cpp, and how often its top token agrees."""
    with Model.load(path) as model:
        pairs = [(wanted, model.logits(chunk).copy()) for wanted, chunk in zip(expected, chunks, strict=True)]
    divergences = [divergence(wanted, logits) for wanted, logits in pairs]
    same = [wanted.argmax(-1) == logits.argmax(-1) for wanted, logits in pairs]
    return float(np.mean(divergences)), float(np.mean(same))


def test_llama_cpp_agrees_with_numpy(
    storybook_files: dict[str, Path], chunks: list[list[int]], expected: list[Logits]
) -> None:
    kld, same_top = compare(storybook_files["F32"], chunks, expected)
    assert 0 <= kld <= 1e-4  # measured: 4e-7
    assert same_top >= 0.995


def test_loss_increases_as_bits_decrease(
    storybook_files: dict[str, Path], chunks: list[list[int]], expected: list[Logits]
) -> None:
    levels = ["F16", "Q8_0", "Q5_K_M", "Q4_K_M", "Q4_0"]
    found = [compare(storybook_files[level], chunks[:1], expected[:1]) for level in levels]
    losses = [kld for kld, _ in found]
    assert losses == sorted(losses)
    assert losses[1] < 2e-3
    assert losses[-1] < 0.2
    assert min(same for _, same in found) > 0.8


def test_model_predicts_the_text(expected: list[Logits], chunks: list[list[int]]) -> None:
    surprises = [
        -log_softmax(logits[:-1])[np.arange(511), chunk[1:]].mean()
        for logits, chunk in zip(expected, chunks, strict=True)
    ]
    assert np.exp(np.mean(surprises)) < 100  # of 8189 tokens; any error in the model gives far more


def test_float32_agrees_with_float64(folder: Path, chunks: list[list[int]], expected: list[Logits]) -> None:
    logits = from_checkpoint(folder).logits(chunks[0])
    assert logits.dtype == np.float32
    assert divergence(expected[0], logits).max() < 1e-6
    np.testing.assert_allclose(logits, expected[0], rtol=0, atol=1e-2)


def test_attention_is_causal(oracle: Reference, chunks: list[list[int]], expected: list[Logits]) -> None:
    np.testing.assert_allclose(oracle.logits(chunks[0][:20]), expected[0][:20], rtol=0, atol=1e-9)


def test_from_gguf_uses_dequantized_weights(
    storybook_files: dict[str, Path], oracle: Reference, chunks: list[list[int]]
) -> None:
    ours = from_gguf(storybook_files["Q8_0"], np.float64)
    reader = gguf.GGUFReader(storybook_files["Q8_0"])
    weights = {
        t.name: gguf.dequantize(t.data, t.tensor_type).reshape(oracle.weights[t.name].shape).astype(np.float64)
        for t in reader.tensors
    }
    assert ours.sizes.layers == 6
    np.testing.assert_array_equal(ours.logits(chunks[0][:64]), Reference(ours.sizes, weights).logits(chunks[0][:64]))
    lost = divergence(oracle.logits(chunks[0][:64]), ours.logits(chunks[0][:64])).mean()
    assert 1e-7 < lost < 2e-3


def test_untied_output_matrix_is_used(tmp_path: Path) -> None:
    model = from_checkpoint(make_checkpoint(tmp_path / "model", head="untied"), np.float64)
    np.testing.assert_allclose(model.logits([1, 2]), model.hidden([1, 2]) @ model.weights["output.weight"].T)


@pytest.mark.parametrize("count", [0, 65])
def test_too_many_tokens_are_refused(count: int, tmp_path: Path) -> None:
    model = from_checkpoint(make_checkpoint(tmp_path / "model"))
    assert model.logits([5] * 64).shape == (64, 262)
    with pytest.raises(ValueError, match=f"`tokens` must have 1 to 64 items, not {count}"):
        model.logits([5] * count)


def test_hyperparameters_from_the_file(storybook_files: dict[str, Path], oracle: Reference) -> None:
    sizes = from_gguf(storybook_files["Q4_0"]).sizes
    assert sizes == Hyperparameters(6, 256, 4, 1024, 512, 8189, np.float32(1e-5).item())
    assert oracle.sizes == Hyperparameters(6, 256, 4, 1024, 512, 8189, 1e-5)


def test_gelu_and_softmax() -> None:
    x = np.linspace(-6, 6, 25)
    # x * Phi(x) is what the tanh form approximates, to 5e-4
    exact = np.array([v * (1 + erf(v / sqrt(2))) / 2 for v in x])
    np.testing.assert_allclose(reference.gelu(x), exact, atol=5e-4)
    assert np.abs(reference.gelu(x) - exact).max() > 1e-4  # not the exact form
    np.testing.assert_allclose(reference.softmax(np.array([[1e4, 1e4, -np.inf]])), [[0.5, 0.5, 0]])
