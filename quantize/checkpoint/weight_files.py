"""Finds the files that hold a checkpoint's weights, and reads their tables of tensors, by content and not by name.

safetensors (one file or shards), PyTorch files (one or shards), and nanoGPT's `.pt`. What is something else is refused
by the name of what it is.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.core.file_kinds import HEAD_BYTES, other_kind

from .json_file import read_json
from .pytorch_file import SAVE_STATE, is_pytorch_file, read_pytorch_file
from .resolve import TRAINING_ONLY, is_saved_in_training
from .safetensors_file import StoredTensor, read_header

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # the first that is there; or its index, for shards
# where programs that train put the weights in what they save
_STATE_KEYS = ("model", "state_dict", "model_state_dict", "module")
_OTHERS = {  # files of weights that are not read, by their names
    r"tf_model.*\.h5": "TensorFlow weights",
    r"flax_model.*\.msgpack": "Flax weights",
    r"rust_model\.ot": "weights for Rust",
    r"model\.ckpt.*\.index": "TensorFlow weights",
    r"openvino_model\.xml": "an OpenVINO model",
    r"coreml": "a Core ML model",
    r"onnx|model\.onnx": "an ONNX model",
}
_PICKLE = re.compile(rb"\x80[\x02-\x05]|c[\w.]+\n[\w.]+\n")  # of protocols 2 to 5, or with a function first


@dataclass(frozen=True)
class Weights:
    """The tensors by their names in the files; `arguments` are nanoGPT's `model_args`."""

    tensors: dict[str, StoredTensor]
    arguments: dict[str, Any] = field(default_factory=dict)


def weight_files(folder: Path) -> list[Path]:
    """The files with the folder's weights. Raises `CheckpointError` where there are none."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}.index.json").is_file():
            return _shards(folder, index)
    saved = [path for path in sorted(folder.iterdir()) if is_saved_in_training(path)]
    if len(saved) == 1:
        return saved
    if saved:
        names = ", ".join(path.name for path in saved[:4])
        raise CheckpointError(f"{folder} has {len(saved)} files of weights ({names})", f"Name one, such as {saved[0]}")
    raise _no_weights(folder)


def read_weights(files: list[Path]) -> Weights:
    """Raises `CheckpointError` for a broken file, or one of another format."""
    tensors: dict[str, StoredTensor] = {}
    arguments: dict[str, Any] = {}
    for path in files:
        found, arguments = _read_file(path)
        if twice := sorted(tensors.keys() & found.keys()):
            raise CheckpointError(
                f"tensor {twice[0]!r} is in {tensors[twice[0]].path.name} and in {path.name}",
                "Fetch or save the shards again, with their index.",
            )
        tensors |= found
    return Weights(tensors, arguments)


def _shards(folder: Path, index: Path) -> list[Path]:
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"{index} has no sound weight_map")
    names, present = sorted(set(shards.values())), {path.name for path in folder.iterdir() if path.is_file()}
    for name in names:
        if name not in present:
            raise CheckpointError(
                f"{index.name} names the shard {name[:255]!r}, which is not in {folder}", "Fetch or save it again."
            )
    return [folder / name for name in names]


def _no_weights(folder: Path) -> CheckpointError:
    names = {path.name for path in folder.iterdir()}
    what = f"{folder} has no model.safetensors"
    save = "Save the weights with `model.save_pretrained(folder)`: it writes safetensors."
    if zero := next((name for name in sorted(names) if name.startswith("global_step")), None):
        return CheckpointError(
            f"{what}, only DeepSpeed's {zero}", f"Put it together: `python zero_to_fp32.py {folder} {folder}`."
        )
    if fsdp := next((name for name in sorted(names) if re.fullmatch(r"pytorch_model_fsdp_\d+", name)), None):
        return CheckpointError(
            f"{what}, only FSDP's {fsdp}", f"Put it together: `accelerate merge-weights {folder / fsdp} {folder}`."
        )
    others = [
        name for name in sorted(names) if name.endswith((".safetensors", ".bin")) and not TRAINING_ONLY.fullmatch(name)
    ]
    if others:
        hint = f"If these are the weights, name the file: {folder / others[0]}"
        if len(others) > 1 or re.search(r"-\d{5}-of-\d{5}\.", others[0]):
            hint = "Name the file of the weights; shards need their index, `model.safetensors.index.json`."
        return CheckpointError(f"{what}, but {', '.join(others[:4])}", hint)
    for pattern, kind in _OTHERS.items():
        if name := next((name for name in sorted(names) if re.fullmatch(pattern, name)), None):
            return CheckpointError(f"{what}, only {kind} ({name})", save)
    if training := next(filter(TRAINING_ONLY.fullmatch, sorted(names)), None):
        return CheckpointError(f"{what}, only files of its training ({training})", save)
    if gguf := next((name for name in sorted(names) if name.endswith(".gguf")), None):
        return CheckpointError(what, f"Name the GGUF file: {folder / gguf}")
    return CheckpointError(f"{folder} has neither model.safetensors nor pytorch_model.bin", save)


def _read_file(path: Path) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if found := other_kind(head):
        raise CheckpointError(f"{path} is {found[0]}", found[1])
    if is_pytorch_file(path):
        return _state_of(path, read_pytorch_file(path))
    if head[8:9] == b"{":  # before it is the length of the header, which can begin as a pickle does
        return read_header(path), {}
    if _PICKLE.match(head):  # refused, by the name of a function that it asks for
        return _state_of(path, read_pytorch_file(path))
    if path.name.endswith(".safetensors"):
        return read_header(path), {}
    what = "neither a PyTorch nor a safetensors file" if head else "empty"
    raise CheckpointError(f"{path} is {what}", "Fetch or save it again; it may be truncated.")


def _state_of(path: Path, saved: Any) -> tuple[dict[str, StoredTensor], dict[str, Any]]:
    """The tensors of what was saved: a state dict, or a dictionary that has one in it."""
    if not isinstance(saved, dict):
        raise CheckpointError(f"{path} holds a {type(saved).__name__}, not a dictionary of tensors", SAVE_STATE)
    arguments = saved.get("model_args")
    inside = next((saved[key] for key in _STATE_KEYS if isinstance(saved.get(key), dict)), saved)
    tensors = {name: tensor for name, tensor in inside.items() if isinstance(tensor, StoredTensor)}
    if not tensors:
        names = ", ".join(name[:40] for name in saved if isinstance(name, str))[:200]
        raise CheckpointError(f"{path} holds no tensors, but {names or 'nothing'}", SAVE_STATE)
    return tensors, arguments if isinstance(arguments, dict) else {}
