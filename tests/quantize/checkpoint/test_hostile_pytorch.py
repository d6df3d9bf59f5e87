"""Damaged PyTorch files and adapters: a conversion gives a valid result, or raises a `DgptQuantError`."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.core.errors import DgptQuantError
from dgpt2_quant.quantize.checkpoint.pytorch_file import read_pytorch_file
from dgpt2_quant.quantize.convert import convert
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from ...checkpoints import make_checkpoint
from ..pytorch_writer import Tensor, save_legacy, save_zip
from .test_hostile_checkpoints import (
    LONGEST,
    MANY,
    ODD_FLOATS,
    ODD_INTEGERS,
    ODD_TEXTS,
    SOME,
    attempt,
    changed,
    converted_or_refused,
    damaged,
    dump,
    folder,
    tampered,
)
from .test_lora import PREFIX, embedding_lora, lora_of, normal, save_adapter
from .test_pytorch_checkpoints import NANOGPT

NUMBERS = np.arange(24, dtype=np.float32).reshape(6, 4)
STATE = {"w": Tensor(NUMBERS), "t": Tensor(NUMBERS, NUMBERS.T), "half": Tensor(NUMBERS.astype(np.float16))}


def read_soundly_or_refuse(path: Path) -> None:
    """Each tensor that is found can be read, and is within the file."""
    found = attempt(lambda: read_pytorch_file(path))
    if isinstance(found, DgptQuantError):
        assert found.message
        return
    for tensor in found.values() if isinstance(found, dict) else ():
        if hasattr(tensor, "read"):
            data = attempt(tensor.read)
            if not isinstance(data, DgptQuantError):
                assert data.shape == tensor.shape
                assert data.nbytes <= 4 * path.stat().st_size


with folder() as place:
    with zipfile.ZipFile(save_zip(place / "sound.bin", STATE)) as archive:
        PARTS = {name: archive.read(name) for name in archive.namelist()}
    LEGACY = save_legacy(place / "old.bin", STATE).read_bytes()


@MANY
@given(damaged(PARTS["archive/data.pkl"]))
def test_a_damaged_pickle_in_a_sound_zip(pickled: bytes) -> None:
    with folder() as place:
        with zipfile.ZipFile(place / "model.bin", "w") as archive:
            for name, content in (PARTS | {"archive/data.pkl": pickled}).items():
                archive.writestr(name, content)
        read_soundly_or_refuse(place / "model.bin")


@MANY
@given(damaged(LEGACY, front=1000))
def test_a_damaged_old_file(content: bytes) -> None:
    with folder() as place:
        (place / "model.bin").write_bytes(content)
        read_soundly_or_refuse(place / "model.bin")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make_checkpoint(tmp_path_factory.mktemp("hostile") / "tiny", layers=1)
    state = {name: Tensor(data) for name, data in load_file(model / "model.safetensors").items()}
    (model / "model.safetensors").unlink()
    save_zip(model / "pytorch_model.bin", state)
    return model


@SOME
@given(st.data())
def test_a_damaged_checkpoint(tiny: Path, data: st.DataObject) -> None:
    path = tiny / "pytorch_model.bin"
    with changed(path, data.draw(damaged(path.read_bytes(), front=2500))):
        converted_or_refused(tiny, "f16")


@SOME
@given(
    st.sampled_from([*NANOGPT, "new"]),
    st.sampled_from([*ODD_INTEGERS, *ODD_FLOATS, *ODD_TEXTS, LONGEST**2, None, [], {}, {"a": [1]}, (1, 2), b"x"]),
)
def test_odd_arguments_of_nanogpt(tiny: Path, name: str, value: Any) -> None:
    with folder() as place:
        model = make_checkpoint(place / "out", layers=1)
        state = {key: Tensor(data) for key, data in load_file(model / "model.safetensors").items()}
        for file in ("model.safetensors", "config.json"):
            (model / file).unlink()
        save_zip(model / "ckpt.pt", {"model": state, "model_args": NANOGPT | {"n_layer": 1, name: value}})
        converted_or_refused(model / "ckpt.pt", "f16")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    lengths = {f"{PREFIX}h.0.attn.c_attn.lora_magnitude_vector": 1 + normal(9, 192)}
    state = lora_of("h.0.attn.c_attn") | lora_of("h.0.mlp.c_fc") | embedding_lora("wpe", 64) | lengths
    patterns = {"rank_pattern": {"c_fc": 4}, "alpha_pattern": {"h.0": 3, r"h\.\d+.attn": 2}}
    return save_adapter(tmp_path_factory.mktemp("hostile") / "poet", state, use_dora=True, **patterns)


def merged_or_refused(model: Path, adapter: Path) -> None:
    with folder() as output:
        files = attempt(lambda: convert(str(model), type="F32", lora=[adapter], output=output / "new"))
        if isinstance(files, DgptQuantError):
            assert files.message
            assert list(output.iterdir()) == []


@SOME
@given(st.data())
def test_a_tampered_adapter_config(tiny: Path, adapter: Path, data: st.DataObject) -> None:
    path = adapter / "adapter_config.json"
    content = data.draw(tampered(json.loads(path.read_bytes())))
    with folder() as place:
        dump(place / "config.json", content)
        text = (place / "config.json").read_bytes()
    with changed(path, text):
        merged_or_refused(tiny, adapter)


@SOME
@given(st.data())
def test_damaged_adapter_weights(tiny: Path, adapter: Path, data: st.DataObject) -> None:
    path = adapter / "adapter_model.safetensors"
    with changed(path, data.draw(damaged(path.read_bytes(), front=1500))):
        merged_or_refused(tiny, adapter)
