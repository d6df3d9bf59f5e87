"""What is not a GPT-2 that can be converted is refused by the name of what it is, with the next step."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.quantize.convert import convert
from safetensors.numpy import load_file

from ...checkpoints import make_checkpoint, write_json, write_weights
from ..pytorch_writer import Tensor, save_zip
from .test_layouts import set_config


def only(**files: bytes) -> Callable[[Path], None]:
    """The files in the place of the weights; `__` in a name stands for a dot."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        for name, content in files.items():
            (folder / name.replace("__", ".")).write_bytes(content)

    return change


def in_place(content: bytes) -> Callable[[Path], None]:
    return only(model__safetensors=content)


def configured(**config: Any) -> Callable[[Path], None]:
    return lambda folder: set_config(folder, **config)


def with_tensors(**tensors: tuple[int, ...]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        state |= {f"transformer.{name.replace('__', '.')}": np.zeros(shape) for name, shape in tensors.items()}
        write_weights(folder, state)

    return change


def unmerged(folder: Path) -> None:
    """As `model.save_pretrained` of a model that PEFT has wrapped."""
    state = load_file(folder / "model.safetensors")
    key = "transformer.h.0.attn.c_attn"
    state[f"base_model.model.{key}.base_layer.weight"] = state.pop(f"{key}.weight")
    state[f"base_model.model.{key}.lora_A.default.weight"] = np.zeros((4, 64))
    write_weights(folder, state)


def without_half(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    write_weights(folder, {name: data for name, data in state.items() if ".h.1." not in name})


def other_names(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    write_weights(folder, {name.replace("attn.c_", "attention."): data for name, data in state.items()})


def lost_shard(folder: Path) -> None:
    only()(folder)
    (folder / "pytorch_model-00001-of-00002.bin").touch()
    places = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    write_json(folder / "pytorch_model.bin.index.json", {"weight_map": places})


def zero_folder(folder: Path) -> None:
    only()(folder)
    (folder / "global_step100").mkdir()


def fsdp_folder(folder: Path) -> None:
    only()(folder)
    (folder / "pytorch_model_fsdp_0").mkdir()


def without_config(folder: Path) -> None:
    """A state dict as minGPT saves it."""
    state = load_file(folder / "model.safetensors")
    only()(folder)
    (folder / "config.json").unlink()
    save_zip(folder / "model.pt", {name: Tensor(data) for name, data in state.items()})


def renamed(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors").rename(folder / name) and None


def pointer(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\n") and None


def whole_object(folder: Path) -> None:
    """torch.save(model) in place of its state."""
    only()(folder)
    save_zip(folder / "pytorch_model.bin", {"model": pickle.Pickler, "w": Tensor(np.zeros(3, np.float32))})


def list_of_tensors(folder: Path) -> None:
    only()(folder)
    save_zip(folder / "pytorch_model.bin", [Tensor(np.zeros(3, np.float32))])


def no_tensors(folder: Path) -> None:
    only()(folder)
    save_zip(folder / "pytorch_model.bin", {"epoch": 3, "history": [1.5]})


def two_models(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    write_weights(folder, state | {f"teacher.{name}": data for name, data in state.items()})


CASES: list[tuple[str, Callable[[Path], None], str, str]] = [
    ("PEFT inside", unmerged, "PEFT's adapter is not merged", "merge_and_unload()"),
    ("GPTQ", configured(quantization_config={"quant_method": "gptq"}), "quantization_config", "original model"),
    ("GPTQ tensors", with_tensors(h__0__attn__c_attn__qweight=(4, 4)), "already quantized", "original model"),
    (
        "ZeRO-3 empties",
        with_tensors(h__0__ln_1__weight=(0,)),
        "is empty: its weights are in the files",
        "zero_to_fp32.py",
    ),
    ("ZeRO-3 folder", zero_folder, "only DeepSpeed's global_step100", "zero_to_fp32.py"),
    ("FSDP", fsdp_folder, "only FSDP's pytorch_model_fsdp_0", "accelerate merge-weights"),
    ("states of training", only(rng_state_0__pth=b"-", rng_state_1__pth=b"-"), "only files of its training", "save_"),
    ("Flax shards", only(**{"flax_model-00001-of-00002__msgpack": b"-"}), "only Flax weights (flax_model-0", "save_"),
    ("another name", renamed("model.fp16.safetensors"), "but model.fp16.safetensors", "model.fp16.safetensors"),
    ("no index", renamed("model-00001-of-00002.safetensors"), "but model-00001-of-", "model.safetensors.index.json"),
    ("sizes unknown", without_config, "model.pt does not state the model's sizes", "model.config.save_pretrained"),
    ("config pointer", pointer("config.json"), "config.json is a Git LFS pointer", "git lfs pull"),
    ("tokenizer pointer", pointer("tokenizer.json"), "tokenizer.json is a Git LFS pointer", "git lfs pull"),
    ("compressed-tensors", configured(compression_config={"format": "x"}), "compression_config", "original model"),
    ("Flax", only(flax_model__msgpack=b"-"), "only Flax weights (flax_model.msgpack)", "save_pretrained"),
    ("TensorFlow", only(tf_model__h5=b"-"), "only TensorFlow weights (tf_model.h5)", "save_pretrained"),
    ("training", only(training_args__bin=b"-"), "only files of its training", "save_pretrained"),
    ("optimizer", only(optimizer__pt=b"-", scheduler__pt=b"-"), "only files of its training", "save_pretrained"),
    ("a GGUF next to it", only(it__gguf=b"-"), "has no model.safetensors", "it.gguf"),
    ("nothing", only(), "neither model.safetensors nor pytorch_model.bin", "save_pretrained"),
    ("fewer positions", configured(n_positions=32), "'transformer.wpe.weight'", "n_positions to 64"),
    ("fewer tokens", configured(vocab_size=100), "'transformer.wte.weight'", "vocab_size to 262"),
    ("other inner", configured(n_inner=128), "c_proj.weight' has the shape [256, 64]", "n_inner to 256"),
    ("other width", configured(n_embd=32), "config.json implies [32]", "n_embd to 64"),
    ("more layers", configured(n_layer=3), "2 blocks of tensors, fewer than n_layer 3", "n_layer to 2"),
    ("fewer layers", configured(n_layer=1), "2 blocks of tensors, more than n_layer 1", "n_layer to 2"),
    ("other names", other_names, "and has 'transformer.h.0.attention.attn.bias'", "names of another program"),
    ("half the layers", without_half, "1 blocks of tensors, fewer than n_layer 2", "if blocks are missing"),
    ("a pickle", in_place(pickle.dumps({"a": 1})), "a pickle that torch.save did not write", "state_dict()"),
    ("a pickle of a function", in_place(pickle.dumps(print)), "asks for builtins.print", "state_dict()"),
    ("an old pickle", in_place(b"cos\nsystem\n(S'true'\ntR."), "asks for os.system", "state_dict()"),
    ("a pointer", in_place(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n"), "pointer", "git lfs pull"),
    ("legacy ggml", in_place(b"lmgg" + bytes(40)), "a file of ggml before GGUF", "original checkpoint"),
    ("a GGUF file", in_place(b"GGUF" + bytes(40)), "a GGUF file", ".gguf"),
    ("a web page", in_place(b"<!DOCTYPE html><html>"), "a web page", "login"),
    ("another page", only(pytorch_model__bin=b"<html><body>"), "a web page", "login"),
    ("Keras", only(pytorch_model__bin=b"\x89HDF\r\n\x1a\n" + bytes(40)), "Keras", "from_tf=True"),
    ("empty", in_place(b""), "0 bytes are too short", "again"),
    ("a whole object", whole_object, "asks for pickle.Pickler", "state_dict()"),
    ("a list", list_of_tensors, "holds a list, not a dictionary of tensors", "state_dict()"),
    ("no tensors", no_tensors, "holds no tensors, but epoch, history", "state_dict()"),
    ("two models", two_models, "two models in one file", "alone"),
    ("Llama", configured(model_type="llama"), "model_type 'llama'", "convert_hf_to_gguf.py"),
    ("no type", configured(model_type=None, architectures=["OPTForCausalLM"]), "OPTForCausalLM", "convert_hf_to_gguf"),
    ("a lost shard", lost_shard, "names the shard 'pytorch_model-00002-of-00002.bin'", "Fetch"),
]


@pytest.mark.parametrize(("change", "words", "hint"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_refusals_name_what_was_found(change: Callable[[Path], None], words: str, hint: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    change(folder)
    with pytest.raises(CheckpointError) as caught:
        convert(str(folder), type="F16", output=tmp_path / "out")
    assert words in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_another_model_with_gpt2s_config_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    write_weights(folder, {"model.layers.0.self_attn.q_proj.weight": np.zeros((4, 4))})
    with pytest.raises(CheckpointError, match="none of the tensors that a GPT-2 has") as caught:
        convert(str(folder), type="F16", output=tmp_path / "out")
    assert "convert_hf_to_gguf.py" in caught.value.hint
