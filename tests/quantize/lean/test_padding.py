"""Pad tokens: copies of an unlikely token, in files computed by an unmodified llama.cpp."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.hyperparameters import pad_count
from dgpt2_quant.core.text import load_text
from dgpt2_quant.quantize.calibration.collect import imatrix
from dgpt2_quant.quantize.calibration.imatrix_file import read_importance
from dgpt2_quant.quantize.calibration.numpy_gpt2 import softmax
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.converted_file import ConvertedFile
from dgpt2_quant.quantize.lean.padding import Padding, least_likely
from dgpt2_quant.runtime import Model
from dgpt2_quant.runtime.native.model import NativeModel
from dgpt2_quant.runtime.native.sampler import NativeSampler

from ...checkpoints import TOKENS, make_checkpoint

REAL, PADS = 8189, 3
LEVELS = ["Q4_0", "IQ4_NL", "Q4_K_M"]  # with --prefer speed, kernels for 8 rows at a time


def test_pad_count() -> None:
    assert [pad_count(n) for n in (8189, 50257, 8192)] == [3, 7, 0]
    assert pad_count(50257, 64) == 47


def test_least_likely_token() -> None:
    random = np.random.default_rng(1)
    rows, hidden = random.normal(size=(50, 16)), random.normal(0.5, 1, (30, 16))
    expected = np.log(softmax(hidden @ rows.T)).mean(axis=0).argmin()
    assert least_likely(rows, hidden.mean(axis=0)) == expected


def test_append_pads() -> None:
    rows = np.arange(6, dtype=np.uint8).reshape(3, 2)
    assert Padding(2, 1).append_pads(rows).tolist() == [[0, 1], [2, 3], [4, 5], [2, 3], [2, 3]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ConvertedFile]:
    """Storybook without the slow steps that do not affect pads."""
    without = ["feedback", "gradients", "compensation", "sweeps"]
    folder = tmp_path_factory.mktemp("lean")
    calibrate = folder / "text.txt"
    calibrate.write_text(load_text("calibration").text[:6000], "utf-8")
    made = convert(
        "storybook", type=LEVELS, recipe="lean", prefer="speed", without=without, calibrate=calibrate, output=folder
    )
    return {file.type: file for file in made}


def test_files_without_such_kernels_have_no_pads(tmp_path: Path) -> None:
    without = ["feedback", "gradients", "compensation", "sweeps"]
    types = ["Q4_0", "Q6_K", "Q8_0"]
    made = convert("storybook", type=types, recipe="lean", without=without, output=tmp_path, dry_run=True)
    assert [file.plan.pads for file in made] == [0, 0, 0]
    overridden = convert(
        "storybook", type="q6_k", recipe="lean", tensor_type=["token_embd=q4_0"], output=tmp_path, dry_run=True
    )
    assert overridden[0].plan.pads == PADS


def twin_of(file: ConvertedFile) -> int:
    assert file.padding is not None
    return int(file.padding["twin"])


@pytest.mark.parametrize("level", LEVELS)
def test_pads_have_the_logit_of_their_twin(level: str, files: dict[str, ConvertedFile]) -> None:
    file = files[level]
    twin = twin_of(file)
    assert file.padding is not None
    assert file.padding["count"] == PADS
    assert 0 <= twin < REAL
    metadata = read_header(Path(file.path)).metadata
    assert metadata["dgpt2_quant.padding.twin"] == twin
    assert metadata["dgpt2_quant.padding.probability"] == np.float32(file.padding["probability"])
    assert 0 < file.padding["probability"] < 2e-5
    with Model.load(file.path, threads=2) as model:
        assert (model.vocabulary, model.real_vocabulary) == (REAL + PADS, REAL)
        texts = [model.tokenize(load_text("evaluation").text)[:400], [twin] * 20, [REAL, REAL + 1, REAL + 2] * 5]
        rows = np.concatenate([model.logits(text) for text in texts])
        assert np.array_equal(model.logits([5, REAL]), model.logits([5, twin]))  # also as inputs
    assert np.array_equal(rows[:, REAL:], np.repeat(rows[:, [twin]], PADS, axis=1))
    share = softmax(rows[:400].astype(np.float64))[:, REAL:].sum(axis=1)
    assert share.mean() < 1e-5
    assert share.max() < 5e-3


def test_greedy_sampler_never_chooses_a_pad(files: dict[str, ConvertedFile]) -> None:
    """Even if the twin has the highest logit: the first of equals is chosen."""
    file = files["Q4_0"]
    native = NativeModel(Path(file.path))
    try:
        sampler = NativeSampler(native, [("greedy",)])
        row = np.zeros(native.vocabulary, np.float32)
        row[[twin_of(file), *range(REAL, REAL + PADS)]] = 9
        index = sampler.apply(np.arange(native.vocabulary), row)
        assert sampler.ids[index] == twin_of(file)
        sampler.close()
    finally:
        native.close()


def like_llama_imatrix(model: Path, path: Path) -> None:
    """A matrix as from llama-imatrix: without tokens and sums of inputs."""
    imatrix(str(model), text="sampled", chunks=2, output=path)
    own = read_importance(path)
    entries = {name: replace(entry, sums=None) for name, entry in own.entries.items()}
    replace(own, tokens=(), entries=entries).write(path, overwrite=True)


@pytest.mark.parametrize("kind", ["Q4_0", "IQ4_NL"])
def test_untied_matrices_are_both_padded(kind: str, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", layers=1, width=64, inner=64, context=32, head="untied")
    types = [f"{name}={kind}" for name in ("token_embd", "output[.]weight")]
    imatrix = tmp_path / "theirs.gguf"
    like_llama_imatrix(model, imatrix)
    (file,) = convert(
        str(model), type="q4_0", recipe="lean", imatrix=imatrix, tensor_type=types, output=tmp_path, overwrite=True
    )
    tensors = read_header(Path(file.path)).tensors
    for name in ("token_embd.weight", "output.weight"):
        tensor = tensors[name]
        assert tensor.type.name == kind
        rows = np.fromfile(file.path, np.uint8, tensor.nbytes, offset=tensor.start).reshape(tensor.shape[0], -1)
        assert (rows[len(TOKENS) :] == rows[twin_of(file)]).all()
