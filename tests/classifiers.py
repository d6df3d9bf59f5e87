"""Writes tiny random checkpoints with a classification head, as Transformers' classes save them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from .checkpoints import make_checkpoint

CLASSES = {  # by kind: the class, and its tensors with the number of dimensions
    "text": ("GPT2ForSequenceClassification", {"score.weight": 2}),
    "token": ("GPT2ForTokenClassification", {"classifier.weight": 2, "classifier.bias": 1}),
    "choice": (
        "GPT2DoubleHeadsModel",
        {"multiple_choice_head.summary.weight": 2, "multiple_choice_head.summary.bias": 1},
    ),
}


def make_classifier(
    folder: Path, kind: str = "text", labels: Sequence[str] = ("joy", "anger", "fear"), **options: Any
) -> Path:
    """Writes a checkpoint of this kind, with the options of `make_checkpoint`, and returns its folder."""
    name, tensors = CLASSES[kind]
    config = {"architectures": [name], "id2label": {str(number): label for number, label in enumerate(labels)}}
    if kind == "choice":
        labels, config = ["LABEL_0"], {"architectures": [name], "summary_proj_to_labels": True}
    make_checkpoint(folder, **{**options, "config": {**config, **options.get("config", {})}})
    random, width = np.random.default_rng(7), options.get("width", 64)
    add_tensors(
        folder,
        {
            key: random.normal(0, 0.3, (len(labels), width)[:dimensions]).astype(np.float32)
            for key, dimensions in tensors.items()
        },
    )
    return folder


def add_tensors(folder: Path, tensors: dict[str, Any]) -> None:
    """Adds tensors to a checkpoint of one file; None removes one."""
    path = folder / "model.safetensors"
    found = {**load_file(path), **tensors}
    save_file({name: data for name, data in found.items() if data is not None}, path)
