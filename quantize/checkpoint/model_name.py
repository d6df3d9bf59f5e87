"""Derives model names from folders and file names, and GGUF file names from model names."""

import re
from pathlib import Path

from dgpt2_quant.core.quant_types import QuantType, is_type

from .model_card import card_base_model

_SNAPSHOT = re.compile(r"[0-9a-f]{40}")  # in the Hub cache: models--OWNER--NAME/snapshots/COMMIT
_SAYS_NOTHING = re.compile(r"[0-9a-f]{40}|checkpoint-\d+|snapshots|")
_LONGEST = 120  # bytes; file systems allow 255, and recipe and type are added
_OTHER_RECIPE = re.compile(r"(?<=.)\.(lean|search-[\w.+-]+(MB|bpw)|search-kld[\w.+-]+)$")  # than stock


def folder_name(folder: Path) -> str:
    """The name of the model in a folder: usually the folder's name.

    For a Hub snapshot it is the repository's name. For a folder named after a commit, or `checkpoint-1500`, it is the
    `base_model` of the model card, or else the parent folder's name.
    """
    if _SNAPSHOT.fullmatch(folder.name) and folder.parent.name == "snapshots":
        repository = re.fullmatch(r"models--.+--(.+)", folder.parent.parent.name)
        if repository:
            return clean_name(repository[1])
    if _SAYS_NOTHING.fullmatch(folder.name) and (base := card_base_model(folder)):
        return clean_name(base.rstrip("/").split("/")[-1])
    named = (path.name for path in (folder, *folder.parents) if not _SAYS_NOTHING.fullmatch(path.name))
    return clean_name(next(named, ""))


def clean_name(name: str) -> str:
    """Makes a name valid as part of a file name: `my model/v2` becomes `my-model-v2`."""
    name = name.encode("utf-8", "replace").decode()  # a folder's name can contain invalid Unicode
    name = re.sub(r"[\s\x00-\x1f\x7f/\\:*?\"<>|]+", "-", name).strip(".-")
    return name.encode()[:_LONGEST].decode(errors="ignore") or "model"


def file_name(name: str, quant_type: QuantType, recipe: str) -> str:
    """`distilgpt2.Q4_K_M.gguf` as on the Hub; `distilgpt2.lean.Q4_K_M.gguf` for a recipe other than stock."""
    name = clean_name(name)
    return quant_type.file_name(name if recipe == "stock" else f"{name}.{recipe}")


def name_of_file(stem: str) -> str:
    """The model name in a file name, without recipe and type: `distilgpt2` for distilgpt2.lean.F16.gguf."""
    for separator in (".", "-"):
        name, _, suffix = stem.rpartition(separator)
        if name and is_type(suffix):
            stem = name
            break
    return _OTHER_RECIPE.sub("", stem)
