"""Reads a classification head from a checkpoint: its weights, its labels, and how its results are to be read.

Sources, in Transformers: models/gpt2/modeling_gpt2.py (`GPT2ForSequenceClassification`, `GPT2ForTokenClassification`,
`GPT2SequenceSummary` of `GPT2DoubleHeadsModel`) and configuration_utils.py (`id2label`, `num_labels`).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.core.head import PROBLEM_TYPES, Head, Kind, Pooling, ProblemType, fits_header
from dgpt2_quant.core.hyperparameters import Hyperparameters

from .config import switch
from .folder import Checkpoint
from .layouts import NamedTensors
from .lora import Adapter, replacement

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Class:
    """A class of Transformers with a head, and the names of the head's tensors, without prefix."""

    name: str
    kind: Kind
    weight: str
    bias: str | None = None


CLASSES = (
    _Class("GPT2ForSequenceClassification", "text", "score.weight"),
    _Class("GPT2ForTokenClassification", "token", "classifier.weight", "classifier.bias"),
    _Class(
        "GPT2DoubleHeadsModel", "choice", "multiple_choice_head.summary.weight", "multiple_choice_head.summary.bias"
    ),
)
HEAD_TENSORS = frozenset(name for one in CLASSES for name in (one.weight, one.bias) if name)
# the summary that GPT2DoubleHeadsModel takes of a choice; cls_index is the last token unless a call says otherwise
_SUMMARIES: dict[str, Pooling] = {"cls_index": "last", "last": "last", "first": "first", "mean": "mean"}


def read_head(
    checkpoint: Checkpoint, named: NamedTensors, sizes: Hyperparameters, adapters: Sequence[Adapter] = ()
) -> Head | None:
    """The checkpoint's head, or the one that an adapter was trained with; None if there is none.

    Raises `CheckpointError` for a head that does not fit the config, or that would compute something else here.
    """
    config, stated = checkpoint.config, _stated(checkpoint.config)
    names = {*named.tensors, *(name for adapter in adapters for name in adapter.replacements)}
    found = [one for one in CLASSES if one.weight in names]
    if len(found) > 1:
        where = [_place_of(one.weight, checkpoint, named, adapters) for one in found[:2]]
        raise CheckpointError(
            f"two heads were found, {where[0]} and {where[1]}", "Convert a model or an adapter with one of them."
        )
    if not found:
        if lacking := next((one for one in CLASSES if one.name in stated), None):
            what = "%s: config.json says %s, but the tensor %r is absent: converted without a head"
            _log.warning(what, checkpoint.folder, lacking.name, lacking.weight)
        return None
    (one,) = found
    if one.kind == "token" and one.weight in named.tensors and stated and one.name not in stated:
        raise CheckpointError(
            f"{checkpoint.folder} has the tensor {one.weight!r}, but config.json says architectures {stated}",
            f"If it classifies tokens, set architectures to ['{one.name}'] in config.json.",
        )
    weight = _read(checkpoint, named, adapters, one.weight, (-1, sizes.width))
    bias = _read(checkpoint, named, adapters, one.bias, weight.shape[:1]) if one.bias in names and one.bias else None
    if not fits_header(weight.size):
        raise CheckpointError(
            f"the head {one.weight!r} of {checkpoint.folder} has {weight.size} weights, too many for GGUF metadata"
        )
    if one.kind == "choice":
        return _choice_head(checkpoint, weight, bias)
    is_adapters = one.weight not in named.tensors or replacement(adapters, one.weight) is not None
    labels = _labels(checkpoint, len(weight), is_adapters)
    problem, pad = _problem_type(config, one.kind, len(weight)), config.get("pad_token_id")
    has_pad = one.kind == "text" and type(pad) is int and 0 <= pad < sizes.vocabulary
    return Head(one.kind, weight, bias, labels, problem, pad=pad if has_pad else None)


def _place_of(name: str, checkpoint: Checkpoint, named: NamedTensors, adapters: Sequence[Adapter]) -> str:
    folder = next((one.folder for one in adapters if name in one.replacements), checkpoint.folder)
    return f"{named.shown(name) if name in named.tensors else name!r} of {folder}"


def _stated(config: dict[str, Any]) -> list[str]:
    stated = config.get("architectures")
    return [str(name) for name in stated] if isinstance(stated, list) else []


def _read(
    checkpoint: Checkpoint, named: NamedTensors, adapters: Sequence[Adapter], name: str, shape: tuple[int, ...]
) -> Any:
    stored = replacement(adapters, name) or named.tensors[name]
    if len(stored.shape) != len(shape) or stored.shape[-1] != shape[-1] or 0 in stored.shape:
        wanted = f"(labels, {shape[-1]})" if len(shape) == 2 else f"({shape[0]},)"
        raise CheckpointError(
            f"tensor {named.shown(name)!r} of {checkpoint.folder} has the shape {list(stored.shape)}, not {wanted}",
            "Check that the head and the model were trained together.",
        )
    data = stored.read().astype(np.float32)
    if not np.isfinite(data).all():
        raise CheckpointError(
            f"tensor {named.shown(name)!r} of {checkpoint.folder} has values that are not finite in float32",
            "Use a checkpoint from before the training diverged.",
        )
    return data


def _labels(checkpoint: Checkpoint, count: int, is_adapters: bool) -> tuple[str, ...]:
    """The labels by id. Transformers names those without a name LABEL_0, LABEL_1, ..."""
    config = checkpoint.config
    default = tuple(f"LABEL_{number}" for number in range(count))
    stated = config.get("id2label")
    if not stated and not is_adapters and config.get("num_labels") in (None, count):
        return default
    named = stated if isinstance(stated, dict) else {}
    if sorted(named) == sorted(map(str, range(count))) and all(map(_is_text, named.values())):
        return tuple(named[str(number)] for number in range(count))
    if is_adapters:
        _log.warning("the adapter's head has %d labels without names: they are LABEL_0, ...", count)
        return default
    what = f"id2label has {len(named)} labels" if stated else f"num_labels is {config.get('num_labels')!r}"
    raise CheckpointError(
        f"{checkpoint.folder}: config.json's {what}; the head has {count} rows",
        'Set id2label to the names of the labels: {"0": ..., "1": ...}.',
    )


def _is_text(label: object) -> bool:
    """Whether a label is a string that UTF-8 can express, without a lone surrogate."""
    return isinstance(label, str) and label == label.encode("utf-8", "ignore").decode()


def _problem_type(config: dict[str, Any], kind: Kind, labels: int) -> ProblemType:
    """How scores follow from logits. As in Transformers' pipeline, one label without a type gets a sigmoid."""
    stated = config.get("problem_type")
    if kind == "token":
        return "single_label_classification"  # Transformers takes no other for tokens
    if stated is None:
        return "multi_label_classification" if labels == 1 else "single_label_classification"
    if stated not in PROBLEM_TYPES:
        raise CheckpointError(
            f"config.json: problem_type is {stated!r}, not {', '.join(PROBLEM_TYPES)}", "Set it to one of them."
        )
    found: ProblemType = stated
    return "multi_label_classification" if labels == 1 and found == "single_label_classification" else found


def _choice_head(checkpoint: Checkpoint, weight: Any, bias: Any) -> Head:
    config = checkpoint.config
    summary, activation = config.get("summary_type", "cls_index"), config.get("summary_activation") or None
    if len(weight) != 1 or not switch(config, "summary_use_proj", True):
        raise CheckpointError(
            f"{checkpoint.folder}: the head of GPT2DoubleHeadsModel must give 1 number; it has {len(weight)}"
            f" rows, and summary_use_proj is {config.get('summary_use_proj', True)}",
            "Set summary_use_proj and summary_proj_to_labels to true in config.json, and train the head again.",
        )
    if summary not in _SUMMARIES or activation not in (None, "tanh"):
        key, value = ("summary_type", summary) if summary not in _SUMMARIES else ("summary_activation", activation)
        raise CheckpointError(
            f"config.json: {key} {value!r} is not computed here",
            f"Possible are {', '.join(_SUMMARIES)}." if key == "summary_type" else "Possible are null and tanh.",
        )
    return Head("choice", weight, bias, pooling=_SUMMARIES[summary], tanh=activation is not None)
