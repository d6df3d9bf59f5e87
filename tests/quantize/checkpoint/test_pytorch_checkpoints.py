"""Checkpoints in files of torch.save: the converted files are those of the same weights in safetensors."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.quantize.calibration.numpy_gpt2 import from_gguf
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.store.converted_models import model_file
from safetensors.numpy import load_file

from ...checkpoints import bfloat16, make_checkpoint, write_json, write_weights
from ..forward import forward
from ..pytorch_writer import Tensor, save_legacy, save_zip
from .test_layouts import TEXT, relative

State = dict[str, npt.NDArray[Any]]
NANOGPT = {"n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 64, "vocab_size": 262, "bias": False, "dropout": 0.0}


def taken(folder: Path) -> State:
    """Removes the weights from the folder and returns them."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    return state


def tensors(state: State) -> dict[str, Tensor]:
    return {name: Tensor(data) for name, data in state.items()}


def written(model: Path, output: Path, **options: Any) -> list[Path]:
    files = convert(str(model), type=["F32", "Q4_K_M"], name="same", output=output, threads=1, **options)
    return [Path(file.path) for file in files]


def data_of(path: Path) -> dict[str, bytes]:
    """The bytes of each tensor."""
    header, content = read_header(path), path.read_bytes()
    return {name: content[t.start : t.start + t.nbytes] for name, t in header.tensors.items()}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("kind", ["zip", "legacy", "shards", "shared head"])
def test_the_same_weights_give_the_same_file(kind: str, dtype: Any, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", dtype=dtype, head="tied", masks=True)
    expected = [data_of(path) for path in written(folder, tmp_path / "expected")]
    if dtype == "BF16":  # NumPy lacks it
        (folder / "model.safetensors").unlink()
        twin = make_checkpoint(tmp_path / "twin", head="tied", masks=True)
        state = {name: bfloat16(data) for name, data in load_file(twin / "model.safetensors").items()}
    else:
        state = taken(folder)
    saved = tensors(state)
    if kind == "shared head":
        saved["lm_head.weight"] = saved["transformer.wte.weight"]
    if kind == "shards":
        names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
        for number, name in enumerate(names):
            save_zip(folder / name, {key: saved[key] for key in list(saved)[number::2]})
        places = {key: names[index % 2] for index, key in enumerate(saved)}
        write_json(folder / "pytorch_model.bin.index.json", {"weight_map": places})
    else:
        (save_legacy if kind == "legacy" else save_zip)(folder / "pytorch_model.bin", saved)
    assert [data_of(path) for path in written(folder, tmp_path / "out")] == expected


def nanogpt_state(state: State, prefix: str) -> State:
    """As nanoGPT names and stores them: matrices as (outputs, inputs), the head next to the embedding, no biases."""
    found: State = {}
    for name, data in state.items():
        if not name.endswith(".bias"):
            linear = data.ndim == 2 and ".h." in name
            found[prefix + name] = np.ascontiguousarray(data.T) if linear else data
    return found


@pytest.fixture
def nanogpt(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with GPT-2's biases of zero, and nanoGPT's `ckpt.pt` of the same weights."""
    twin = make_checkpoint(tmp_path / "twin", config={"activation_function": "gelu"})
    state = load_file(twin / "model.safetensors")
    state = {name: np.zeros_like(data) if name.endswith(".bias") else data for name, data in state.items()}
    write_weights(twin, state)
    folder = make_checkpoint(tmp_path / "out-novel")
    taken(folder)
    (folder / "config.json").unlink()
    inner = tensors(nanogpt_state(state, "_orig_mod."))
    inner["_orig_mod.lm_head.weight"] = inner["_orig_mod.transformer.wte.weight"]
    saved = {"model": inner, "model_args": NANOGPT, "iter_num": 5, "config": {"dataset": "novel"}, "optimizer": {}}
    save_zip(folder / "ckpt.pt", saved)
    return folder, twin


@pytest.mark.parametrize("named", ["file", "folder"])
def test_a_checkpoint_of_nanogpt(
    named: str, nanogpt: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, twin = nanogpt
    [full, _] = written(folder / "ckpt.pt" if named == "file" else folder, tmp_path / "out")
    [warning] = caplog.messages
    assert warning.startswith("the configuration in ckpt.pt (model_args) states the exact GELU")
    [expected, _] = written(twin, tmp_path / "expected")
    assert data_of(full) == data_of(expected)
    computed = forward(twin, TEXT, activation_function="gelu_new").logits  # what llama.cpp computes in its place
    assert relative(from_gguf(full, np.float64).logits(TEXT), computed) < 1e-9
    [default] = convert(str(folder / "ckpt.pt"), type="F16", output=tmp_path / "out", dry_run=True)
    assert default.model == "out-novel"


def test_a_file_of_weights_is_kept_in_the_cache(nanogpt: tuple[Path, Path]) -> None:
    folder, _ = nanogpt
    (folder / "late.pt").write_bytes((folder / "ckpt.pt").read_bytes())
    with pytest.raises(CheckpointError, match=r"has 2 files of weights \(ckpt\.pt, late\.pt\)"):
        model_file(str(folder))
    name, first = model_file(str(folder / "ckpt.pt"), type="Q8_0", threads=1)
    assert model_file(str(folder / "ckpt.pt"), type="Q8_0") == (name, first)
    assert model_file(str(folder / "late.pt"), type="Q8_0", threads=1)[1] != first
    other = {key: Tensor(data * 2) for key, data in load_file(folder.parent / "twin" / "model.safetensors").items()}
    save_zip(folder / "ckpt.pt", {"model": other, "model_args": NANOGPT})
    assert model_file(str(folder / "ckpt.pt"), type="Q8_0", threads=1)[1] != first


@pytest.mark.parametrize(
    ("vocabulary", "words"),
    [(50257, "hf download openai-community/gpt2 vocab.json merges.txt --local-dir"), (65, "byte-level BPE")],
)
def test_nanogpt_without_a_tokenizer_is_refused(vocabulary: int, words: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "out", vocabulary=vocabulary, width=8, tokenizer=None)
    state = nanogpt_state(taken(folder), "")
    (folder / "config.json").unlink()
    arguments = NANOGPT | {"vocab_size": vocabulary, "n_embd": 8}
    save_zip(folder / "ckpt.pt", {"model": tensors(state), "model_args": arguments})
    with pytest.raises(CheckpointError, match="no tokenizer; ") as caught:
        convert(str(folder / "ckpt.pt"), type="F16", output=tmp_path / "new")
    assert words in caught.value.hint
    assert "characters" in caught.value.message or vocabulary == 50257
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "_module.", "_orig_mod.module.", "model.", "base.model.module."]
)
def test_prefixes_of_wrappers_are_removed(prefix: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", head="untied")
    expected = data_of(written(folder, tmp_path / "expected")[0])
    state = {prefix + name: data for name, data in taken(folder).items()}
    save_zip(folder / "pytorch_model.bin", tensors(state))
    assert data_of(written(folder, tmp_path / "out")[0]) == expected


def test_value_heads_are_dropped_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_checkpoint(tmp_path / "model")
    expected = data_of(written(folder, tmp_path / "expected")[0])
    head = {"v_head.summary.weight": np.ones((1, 64), np.float32), "v_head.summary.bias": np.ones(1, np.float32)}
    save_zip(folder / "pytorch_model.bin", tensors(taken(folder) | head))
    with caplog.at_level(logging.WARNING):
        assert data_of(written(folder, tmp_path / "out")[0]) == expected
    [warning] = [record.getMessage() for record in caplog.records]
    assert "v_head.summary.weight, v_head.summary.bias" in warning


@pytest.mark.peer
@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_files_of_pytorch_itself(dtype: str, legacy: bool, tmp_path: Path) -> None:
    import torch

    folder = make_checkpoint(tmp_path / "model")
    state = {name: torch.from_numpy(data).to(getattr(torch, dtype)) for name, data in taken(folder).items()}
    state["lm_head.weight"] = torch.nn.Parameter(state["transformer.wte.weight"])
    from safetensors.torch import save_file

    copies = {name: tensor.detach().clone() for name, tensor in state.items()}
    save_file(copies, folder / "model.safetensors")
    expected = [data_of(path) for path in written(folder, tmp_path / "expected")]
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    assert [data_of(path) for path in written(folder, tmp_path / "out")] == expected
