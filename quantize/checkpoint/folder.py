"""Reads a checkpoint folder in Hugging Face layout: `config.json`, safetensors (one file or shards), tokenizer."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.core.workers import check_cancelled

from .model_card import card_license
from .safetensors_file import StoredTensor, read_header

# The files that affect a converted file, in addition to the weights; all but the config are optional.
_TEXT_FILES = (
    "README.md",
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)

_HASHED_AT_ONCE = 1 << 18  # bytes


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its config, and the location of each tensor."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]

    def license(self) -> str | None:
        """The SPDX identifier in the model card."""
        return card_license(self.folder)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Reads the config and the headers of the weight files.

    Raises `CheckpointError` if one is missing or broken.
    """
    config = read_json(folder / "config.json")
    tensors: dict[str, StoredTensor] = {}
    for path in _weight_files(folder):
        found = read_header(path)
        if twice := sorted(tensors.keys() & found.keys()):
            raise CheckpointError(f"tensor {twice[0]!r} is in {tensors[twice[0]].path.name} and in {path.name}")
        tensors |= found
    return Checkpoint(folder, config, tensors)


def source_files(folder: Path) -> list[Path]:
    """All files that affect a conversion, in a fixed order. Raises `CheckpointError` if there are no weights."""
    return [path for name in _TEXT_FILES if (path := folder / name).is_file()] + _weight_files(folder)


def source_sha256(folder: Path) -> str:
    """A hash of the folder's content, independent of its name: of the names and hashes of `source_files`."""
    lines = [f"{file_sha256(path)}  {path.name}\n" for path in source_files(folder)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object. Raises `CheckpointError` that names the file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing", "A checkpoint folder contains config, weights and tokenizer."
        ) from None
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def file_sha256(path: Path) -> str:
    """The SHA-256 of the file's bytes, in hexadecimal. Raises `CheckpointError` if it cannot be read."""
    try:
        digest, buffer = hashlib.sha256(), memoryview(bytearray(_HASHED_AT_ONCE))
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
                check_cancelled()
        return digest.hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error


def _weight_files(folder: Path) -> list[Path]:
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        other = next((p.name for p in sorted(folder.glob("*.bin")) + sorted(folder.glob("*.h5"))), None)
        raise CheckpointError(
            f"{folder} has no model.safetensors" + (f", only {other}" if other else ""),
            "Save the weights with `model.save_pretrained(folder)`: it writes safetensors." if other else "",
        )
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"{index} has no valid weight_map")
    names, present = sorted(set(shards.values())), {path.name for path in folder.iterdir() if path.is_file()}
    for name in names:
        if name not in present:
            raise CheckpointError(f"{index.name} lists the shard {name[:255]!r}, which is not in {folder}")
    return [folder / name for name in names]
