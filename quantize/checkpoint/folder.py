"""Opens a checkpoint: a folder in Hugging Face layout, or a single file of weights such as nanoGPT's `ckpt.pt`."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.core.workers import check_cancelled

from .config import CONFIG, config_of_nanogpt
from .json_file import read_json
from .known_keys import check_keys
from .model_card import card_license
from .safetensors_file import StoredTensor
from .weight_files import read_weights, weight_files

# The files that affect a converted file, in addition to the weights; all but the config are optional.
_TEXT_FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)

_NANOGPT_GPT2 = (50257, 50304)  # sizes of GPT-2's vocabulary in nanoGPT, which pads it to a multiple of 64
_HASHED_AT_ONCE = 1 << 18  # bytes


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: its config, what states it, and the location of each tensor."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]
    stated_in: str = CONFIG

    def license(self) -> str | None:
        """The SPDX identifier in the model card."""
        return card_license(self.folder)

    def check_tokenizer(self, vocabulary: int) -> None:
        """Raises `CheckpointError` for a model of nanoGPT without tokenizer, which nanoGPT does not save."""
        if self.stated_in == CONFIG or any((self.folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            return
        if vocabulary in _NANOGPT_GPT2:
            raise CheckpointError(
                f"{self.folder} has no tokenizer; nanoGPT uses GPT-2's",
                f"Fetch it: `hf download openai-community/gpt2 vocab.json merges.txt --local-dir {self.folder}`.",
            )
        raise CheckpointError(
            f"{self.folder} has no tokenizer; its vocabulary of {vocabulary} is not GPT-2's, and a"
            " vocabulary of characters (meta.pkl) cannot be converted",
            "If it was trained with another byte-level BPE, save that as tokenizer.json in the folder.",
        )


def open_checkpoint(folder: Path, weights: Path | None = None) -> Checkpoint:
    """Reads the config and the tables of the weight files: those of the folder, or the one file `weights`.

    Raises `CheckpointError` if one is missing or broken.
    """
    files = [weights] if weights else weight_files(folder)
    found, stated_in = read_weights(files), CONFIG
    has_config = (folder / "config.json").is_file()
    if not has_config and not found.arguments:
        raise CheckpointError(
            f"{folder} has no config.json, and {files[0].name} does not state the model's sizes",
            "Save it there: `model.config.save_pretrained(folder)`, or as JSON with n_layer, n_head, n_embd, ....",
        )
    config = read_json(folder / "config.json") if has_config else {}
    check_keys("config.json", config)
    if (folder / "generation_config.json").is_file():
        check_keys("generation_config.json", read_json(folder / "generation_config.json"))
    if found.arguments:
        config |= config_of_nanogpt(found.arguments)
        stated_in = f"the configuration in {files[0].name} (model_args)"
    return Checkpoint(folder, config, found.tensors, stated_in)


def source_files(folder: Path, weights: Path | None = None) -> list[Path]:
    """All files that affect a conversion, in a fixed order. Raises `CheckpointError` if there are no weights."""
    texts = [path for name in _TEXT_FILES if (path := folder / name).is_file()]
    texts += sorted((folder / "additional_chat_templates").glob("*.jinja"))
    return texts + ([weights] if weights else weight_files(folder))


def source_sha256(folder: Path, weights: Path | None = None) -> str:
    """A hash of the folder's content, independent of its name: of the names and hashes of `source_files`."""
    lines = [f"{file_sha256(path)}  {path.name}\n" for path in source_files(folder, weights)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


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
