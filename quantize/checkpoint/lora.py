"""LoRA adapters of PEFT, merged into the weights while these are read, one tensor at a time.

W' = W + weight * scaling * B A, with scaling alpha / r, or alpha / sqrt(r) for rank-stabilized LoRA (Kalajdzievski
2023); DoRA (Liu et al. 2024) then gives each row of W' the length that it has learned. What cannot be merged exactly
is refused by name. Formats: peft/tuners/lora/config.py and layer.py, peft/utils/save_and_load.py.
"""

import hashlib
import re
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import CheckpointError, UsageError

from .folder import file_sha256
from .json_file import read_json
from .layouts import without_wrappers
from .model_name import folder_name
from .safetensors_file import StoredTensor
from .weight_files import read_weights

Weights = npt.NDArray[np.floating[Any]]

CONFIG = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model."
_PART = re.compile(r"(.+)\.(lora_[AB]|lora_embedding_[AB]|lora_magnitude_vector)(?:\.default)?(?:\.(weight|bias))?")
_COPY = re.compile(r"\.modules_to_save(?:\.default)?\b|\.base_layer\b")
MERGE = "Merge it with PEFT, `model.merge_and_unload().save_pretrained(folder)`, and convert that folder."
_OTHER_MODEL = "Check that it is an adapter of this model."
# initializations that change the weights of the base as well
_CHANGING_INITS = ("pissa", "olora", "corda", "loftq", "lora_ga", "lora-ga")
_REFUSED = {
    "alora_invocation_tokens": "takes effect only from an invocation token on",
    "ensure_weight_tying": "ties copies that are saved once",
    "arrow_config": "routes between adapters for each token",
    "kasa_config": "changes the weights of the base",
    "layer_replication": "repeats layers",
    "megatron_config": "is for Megatron's layers",
    "monteclora_config": "draws its weights at random",
    "target_parameters": "targets parameters, not layers",
    "trainable_token_indices": "trains single tokens of the embedding",
    "use_bdlora": "has block-diagonal matrices",
    "use_qalora": "pools its inputs",
}
_OF_PROMPTS = ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT")
_WITHOUT_EFFECT = {
    *("auto_mapping", "base_model_name_or_path", "corda_config", "eva_config"),
    *("exclude_modules", "fan_in_fan_out", "inference_mode", "layers_pattern", "layers_to_transform"),
    *("loftq_config", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size"),
    *("revision", "runtime_config", "target_modules", "task_type", "velora_config", "_custom_modules"),
}
_USED = {
    *("alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "lora_bias", "modules_to_save", "peft_type", "r"),
    *("rank_pattern", "use_dora", "use_rslora"),
}
# a regular expression without nested repetition, which can take exponential time
_MOST_REPETITIONS = 4
_LARGEST_ALPHA = 1e9
_PLAIN_PATTERN = re.compile(r"(?:[\w.|()^$-]|\\.|\.\*|\.\+|\\d\+|\[[\w-]+\])*")


@dataclass
class _Update:
    """What an adapter does to one layer. `a` has the shape (r, inputs), `b` (outputs, r)."""

    a: StoredTensor | None = None
    b: StoredTensor | None = None
    b_bias: StoredTensor | None = None
    magnitude: StoredTensor | None = None
    of_embedding: bool = False
    module: str = ""  # the name in the model that was trained: transformer.h.0.attn.c_attn
    scaling: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weights that it is for, as (outputs, inputs)."""
        shape = (self.b.shape[0], self.a.shape[1]) if self.a and self.b else ()
        return shape[::-1] if self.of_embedding else shape


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter: updates by the layer's name in the checkpoint (`h.0.attn.c_attn`), and tensors that replace."""

    folder: Path
    weight: float
    updates: Mapping[str, _Update] = field(default_factory=dict)
    replacements: Mapping[str, StoredTensor] = field(default_factory=dict)

    def files(self) -> list[Path]:
        """The files that decide what it does."""
        return [self.folder / CONFIG, _weights_of(self.folder)]

    def has_tokenizer(self) -> bool:
        """Whether the folder also has a whole tokenizer, as trainers save it."""
        return any((self.folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))

    def label(self) -> str:
        """Its name, weight and content, for metadata."""
        hashes = [file_sha256(path) for path in self.files()]
        return f"{folder_name(self.folder.resolve())}={self.weight:g} sha256:{','.join(hashes)}"

    def updates_tensor(self, name: str) -> bool:
        """Whether something is added to the tensor `name`, such as `h.0.attn.c_attn.weight`."""
        layer, _, kind = name.rpartition(".")
        update = self.updates.get(layer)
        return update is not None and (kind == "weight" or update.b_bias is not None)

    def changes(self, name: str) -> bool:
        """Whether it replaces the tensor `name`, or adds to it."""
        return name in self.replacements or self.updates_tensor(name)

    def check(self, shapes: Mapping[str, tuple[int, ...]], replaceable: Container[str] = ()) -> None:
        """Raises `CheckpointError` if it changes tensors that a model lacks, or has in other `shapes`.

        Those in `replaceable` may be in the adapter alone.
        """
        changed = [name for name in self.replacements if name not in replaceable]
        for name in [*changed, *(f"{layer}.weight" for layer in self.updates)]:
            if name not in shapes:
                raise CheckpointError(f"{self.folder}: it changes {name!r}, which the model lacks", _OTHER_MODEL)
        for name in ("wte.weight", "lm_head.weight"):
            rows, width = shapes[name]
            replacement, update = self.replacements.get(name), self.updates.get(name.removesuffix(".weight"))
            found = replacement.shape if replacement else update.shape if update else ()
            if found[1:] == (width,) and found[0] != rows:
                raise CheckpointError(
                    f"{self.folder}: it was trained with {found[0]} tokens ({name}), and the model has {rows}: the"
                    " embedding was resized before",
                    f"Merge it with PEFT: `base.resize_token_embeddings({found[0]})`, `PeftModel.from_pretrained(base,"
                    " adapter).merge_and_unload().save_pretrained(folder)`, save its tokenizer there too, and convert"
                    " that folder.",
                )
        for layer, update in self.updates.items():
            shape = shapes[f"{layer}.weight"]
            if update.shape != shape:
                what = f"its update of {layer} has the shape {list(update.shape)}, the weights {list(shape)}"
                raise CheckpointError(f"{self.folder}: {what}", _OTHER_MODEL)

    @np.errstate(all="ignore")  # `quantize` refuses an infinity, with the tensor's name
    def merged(self, name: str, data: Weights) -> Weights:
        """The tensor `name` with the update added; a matrix has the shape (outputs, inputs)."""
        layer, _, kind = name.rpartition(".")
        update = self.updates.get(layer)
        if update is None or update.a is None or update.b is None:
            return data
        wide = np.result_type(data.dtype, np.float32)
        if kind == "bias":
            if update.b_bias is None:
                return data
            return data.astype(wide) + self.weight * update.scaling * update.b_bias.read().astype(wide)
        a, b = (part.read().astype(wide) for part in (update.a, update.b))
        delta = (b @ a).T if update.of_embedding else b @ a
        changed: Weights = data.astype(wide) + (self.weight * update.scaling) * delta
        if update.magnitude is not None:
            length = np.linalg.norm(changed, axis=1, keepdims=True)
            changed *= update.magnitude.read().astype(wide).reshape(-1, 1) / length
        return changed


def replacement(adapters: Sequence[Adapter], name: str) -> StoredTensor | None:
    """The tensor that an adapter was saved with in place of the tensor `name`. Raises `CheckpointError` for two."""
    replacing = [adapter for adapter in adapters if name in adapter.replacements]
    if replacing and (other := next((a for a in adapters if a is not replacing[0] and a.changes(name)), None)):
        raise CheckpointError(
            f"{replacing[0].folder} replaces {name!r}, which {other.folder} changes as well",
            "Merge one of them with PEFT, `model.merge_and_unload()`, and the other here.",
        )
    return replacing[0].replacements[name] if replacing else None


def merged_sha256(sha256: str, adapters: Sequence[Adapter]) -> str:
    """The hash of a model with adapters, from the hash of the model; the same one without adapters."""
    if not adapters:
        return sha256
    lines = [sha256]
    for adapter in adapters:
        lines += [f"{adapter.weight!r}", *(file_sha256(path) for path in adapter.files())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def parse_lora(text: str) -> tuple[Path, float]:
    """`NAME` or `NAME=WEIGHT`, of a folder or on the Hub. Raises `UsageError`."""
    folder, separator, weight = text.rpartition("=")
    with suppress(OSError, ValueError):  # a name that is too long, or has a NUL byte
        if not separator or Path(text).is_dir():
            return Path(text).expanduser(), 1.0
    try:
        value = float(weight)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise UsageError(f"`lora` is {text!r}: {weight!r} is not a number", "Write NAME=0.5.")
    return Path(folder).expanduser(), value


def read_adapter(folder: Path, weight: float = 1.0) -> Adapter:
    """Raises `CheckpointError` for a folder without a sound adapter, or with one that cannot be merged exactly."""
    if not (folder / CONFIG).is_file():
        what = f"{folder} has no {CONFIG}"
        if not folder.is_dir():
            what = f"{folder} is a file, not a folder" if folder.exists() else f"there is no folder {folder}"
        raise CheckpointError(what, "Name a folder that PEFT has saved, or an adapter on the Hub (owner/name).")
    config = read_json(folder / CONFIG)
    _check_config(folder, config, weight)
    updates: dict[str, _Update] = {}
    replacements: dict[str, StoredTensor] = {}
    for key, tensor in read_weights([_weights_of(folder)]).tensors.items():
        name = without_wrappers(key).removeprefix(_PREFIX)
        if (part := _PART.fullmatch(name)) is None:
            replacements[_COPY.sub("", name).removeprefix("transformer.")] = tensor
            continue
        module, kind, which = part.groups()
        update = updates.setdefault(module.removeprefix("transformer."), _Update(module=module))
        if kind == "lora_magnitude_vector":
            update.magnitude = tensor
        elif which == "bias":
            update.b_bias = tensor
        elif kind.endswith("A"):
            update.a = tensor
        else:
            update.b = tensor
        update.of_embedding |= kind.startswith("lora_embedding")
    for layer, update in updates.items():
        _finish(folder, config, layer, update)
    if not updates and not replacements:
        raise CheckpointError(f"{folder}: its adapter has no tensors")
    return Adapter(folder, weight, updates, replacements)


def _weights_of(folder: Path) -> Path:
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} has neither {' nor '.join(_FILES)}", "Save the adapter again.")


def _check_config(folder: Path, config: dict[str, Any], weight: float) -> None:
    path = folder / CONFIG
    kind = config.get("peft_type")
    if kind in _OF_PROMPTS:
        what = f"its peft_type is {kind!r}, which puts learned vectors before each text: weights cannot hold them"
        raise CheckpointError(f"{path}: {what}", "Convert the base alone, or train a LoRA.")
    if kind != "LORA":
        raise CheckpointError(f"{path}: its peft_type is {kind!r}; only LORA is merged here", MERGE)
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_CHANGING_INITS):
        raise CheckpointError(f"{path}: init_lora_weights {init!r} has changed the weights of the base as well", MERGE)
    for key, value in config.items():
        if key in _USED or key in _WITHOUT_EFFECT or not value:
            continue
        why = _REFUSED.get(key, "is not known here")
        raise CheckpointError(f"{path}: {key} {why}, so it cannot be merged exactly", MERGE)
    whole = [key for key in ("use_dora", "modules_to_save", "bias") if config.get(key) not in (None, False, [], "none")]
    if weight != 1 and whole:
        raise UsageError(f"{folder}: the weight of an adapter with {whole[0]} must be 1", "Leave out its weight.")


def _finish(folder: Path, config: dict[str, Any], layer: str, update: _Update) -> None:
    if update.a is None or update.b is None:
        raise CheckpointError(f"{folder}: its update of {layer} lacks a matrix", "Save the adapter again.")
    shapes = update.a.shape, update.b.shape
    if any(len(shape) != 2 for shape in shapes) or shapes[0][0] != shapes[1][1]:
        raise CheckpointError(f"{folder}: its update of {layer} has matrices of the shapes {shapes[0]} and {shapes[1]}")
    if update.of_embedding and update.magnitude is not None:
        raise CheckpointError(f"{folder}: DoRA of the embedding {layer} cannot be merged exactly", MERGE)
    if update.magnitude is not None and update.magnitude.shape != (shapes[1][0],):
        raise CheckpointError(f"{folder}: the magnitudes of {layer} have the shape {list(update.magnitude.shape)}")
    if update.b_bias is not None and update.b_bias.shape != (shapes[1][0],):
        raise CheckpointError(f"{folder}: the bias of {layer} has the shape {list(update.b_bias.shape)}")
    rank = _by_pattern(folder, config, "rank_pattern", update.module, config.get("r"))
    alpha = _by_pattern(folder, config, "alpha_pattern", update.module, config.get("lora_alpha"))
    if not rank or rank != shapes[0][0] or not isinstance(alpha, int | float) or not abs(alpha) < _LARGEST_ALPHA:
        raise CheckpointError(
            f"{folder}: adapter_config.json states rank {rank!r} and alpha {alpha!r} for {layer}, whose matrices have"
            f" rank {shapes[0][0]}",
            "Check that adapter_config.json and the weights are of the same adapter.",
        )
    update.scaling = alpha / (sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(folder: Path, config: dict[str, Any], key: str, module: str, otherwise: Any) -> Any:
    """As PEFT's `get_pattern_key`: the first pattern that the module's name ends with, at a dot."""
    patterns = config.get(key) or {}
    if not isinstance(patterns, dict):
        raise CheckpointError(f"{folder / CONFIG}: {key} is not a table of layers", MERGE)
    for pattern, value in patterns.items():
        try:
            plain = _PLAIN_PATTERN.fullmatch(pattern) and sum(map(pattern.count, "*+")) <= _MOST_REPETITIONS
            found = plain and re.match(rf"(.*\.)?({pattern})$", module)
        except re.error:
            plain = None
        if not plain:
            what = f"{key} has the pattern {pattern!r}, which is not a layer's name"
            raise CheckpointError(f"{folder / CONFIG}: {what}", MERGE)
        if found:
            return value
    return otherwise
