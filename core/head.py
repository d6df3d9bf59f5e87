"""A classification head, and its metadata keys in a GGUF file.

llama.cpp refuses unknown tensors and ignores unknown keys, so the weights are an array in the metadata.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Kind = Literal["text", "token", "choice"]
Pooling = Literal["last", "first", "mean"]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
PROBLEM_TYPES: tuple[ProblemType, ...] = get_args(ProblemType)
_PREFIX = "dgpt2_quant.head"
LABELS = f"{_PREFIX}.labels"
_MOST_NUMBERS = 1 << 22  # of the weights: 16 MiB in the header of a file


@dataclass(frozen=True)
class Head:
    """A linear head on the hidden states after the final norm.

    `kind` is what is scored: a text, each token of a text, or a text as one of several choices. `weight` is
    (labels, width) and `bias` (labels,), float32. `pooling` is the hidden state that stands for a text; "last" is that
    of the last token other than `pad`. `tanh` is whether the results pass through it, and `prefix_space` whether a
    blank is put before a text, as the model's tokenizer does.
    """

    kind: Kind
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32] | None = None
    labels: tuple[str, ...] = ()  # none for choices
    problem_type: ProblemType = "single_label_classification"
    pooling: Pooling = "last"
    pad: int | None = None
    tanh: bool = False
    prefix_space: bool = False

    def logits(self, hidden: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The logits, (..., labels), of hidden states, (..., width). They are infinite or NaN where they overflow."""
        with np.errstate(all="ignore"):
            found = hidden @ self.weight.T + (0 if self.bias is None else self.bias)
            return np.asarray(np.tanh(found) if self.tanh else found, np.float32)

    def position(self, tokens: list[int]) -> int:
        """The position of the hidden state for "last": the last token that is not padding, or 0 if all are."""
        return next((at for at in range(len(tokens) - 1, 0, -1) if tokens[at] != self.pad), 0)

    def to_metadata(self) -> dict[str, Any]:
        """The keys for a GGUF file."""
        found: dict[str, Any] = {
            f"{_PREFIX}.kind": self.kind,
            f"{_PREFIX}.problem_type": self.problem_type,
            f"{_PREFIX}.pooling": self.pooling,
            f"{_PREFIX}.weight": self.weight.ravel().tolist(),
        }
        if self.labels:
            found[LABELS] = list(self.labels)
        if self.bias is not None:
            found[f"{_PREFIX}.bias"] = self.bias.tolist()
        if self.pad is not None:
            found[f"{_PREFIX}.pad_token_id"] = self.pad
        if self.tanh:
            found[f"{_PREFIX}.activation"] = "tanh"
        if self.prefix_space:
            found[f"{_PREFIX}.add_prefix_space"] = True
        return found


def fits_header(numbers: int) -> bool:
    """Whether a GGUF file's header can hold a head of that many weights."""
    return numbers <= _MOST_NUMBERS


def head_of(metadata: Mapping[str, Any], width: int) -> Head | None:
    """The head that a file's metadata describe; None if there is none. Raises `ValueError` if they are not sound."""
    if (kind := metadata.get(f"{_PREFIX}.kind")) is None:
        return None
    found = {key: metadata.get(f"{_PREFIX}.{key}") for key in ("problem_type", "pooling", "pad_token_id", "activation")}
    weight = _numbers(metadata, "weight")
    bias = _numbers(metadata, "bias") if f"{_PREFIX}.bias" in metadata else None
    labels, pad = metadata.get(LABELS, []), found["pad_token_id"]
    known: dict[str, tuple[Any, tuple[Any, ...]]] = {
        "kind": (kind, get_args(Kind)),
        "problem_type": (found["problem_type"], PROBLEM_TYPES),
        "pooling": (found["pooling"], get_args(Pooling)),
        "activation": (found["activation"], (None, "tanh")),
    }
    for key, (value, possible) in known.items():
        if value not in possible:
            raise ValueError(f"{_PREFIX}.{key} is {value!r}, not one of {', '.join(map(str, possible))}")
    if pad is not None and type(pad) is not int:
        raise ValueError(f"{_PREFIX}.pad_token_id is {pad!r}, not the id of a token")
    rows = 1 if kind == "choice" else len(labels) if isinstance(labels, list) else 0
    if not rows or weight.size != rows * width or (bias is not None and bias.size != rows):
        raise ValueError(f"its head has {weight.size} weights for {rows} labels and the width {width}")
    if not all(isinstance(label, str) for label in labels):
        raise ValueError(f"{LABELS} has values that are not strings")
    return Head(
        kind=kind,
        weight=weight.reshape(rows, width),
        bias=bias,
        labels=tuple(labels),
        problem_type=known["problem_type"][0],
        pooling=known["pooling"][0],
        pad=pad,
        tanh=found["activation"] == "tanh",
        prefix_space=metadata.get(f"{_PREFIX}.add_prefix_space") is True,
    )


def _numbers(metadata: Mapping[str, Any], key: str) -> npt.NDArray[np.float32]:
    value = metadata.get(f"{_PREFIX}.{key}")
    if not isinstance(value, list) or not all(type(number) is float for number in value):
        raise ValueError(f"{_PREFIX}.{key} is not an array of FLOAT32")
    found = np.array(value, np.float32)
    if not np.isfinite(found).all():
        raise ValueError(f"{_PREFIX}.{key} has a number that is not finite")
    return found
