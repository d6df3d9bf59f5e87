"""The plan of one file: which type each tensor gets, with which importance, and how large the file will be."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.gguf_file import padded, tensor_bytes
from dgpt2_quant.core.quant_types import QuantType, TensorType
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix
from dgpt2_quant.quantize.checkpoint.metadata import quant_type_metadata
from dgpt2_quant.quantize.checkpoint.source import ModelSource

from .tensor_types import Override, applied_overrides, lacking_importance, tensor_types, without_effect

# What the C code rounds the same with and without importance (`(void) quant_weights` in ggml-quants.c).
_UNWEIGHTED = frozenset({TensorType.F32, TensorType.F16, TensorType.BF16, TensorType.Q8_0, TensorType.TQ1_0})
_UNWEIGHTED |= {TensorType.TQ2_0, TensorType.MXFP4, TensorType.NVFP4, TensorType.Q1_0, TensorType.Q2_0}


@dataclass(frozen=True)
class Plan:
    """Everything that decides a file's bytes, besides the source. `overrides` are those that set a type."""

    quant_type: QuantType
    recipe: str
    overrides: tuple[Override, ...]
    importance: ImportanceMatrix | None
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, TensorType]
    without: tuple[str, ...] = ()  # steps of the recipe `lean` that are left out

    @property
    def parameters(self) -> int:
        return sum(map(prod, self.shapes.values()))

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(self.tensor_bytes(name) for name in self.types) / self.parameters

    @property
    def data_bytes(self) -> int:
        """Of all tensors, padded as they are in the file; what the head adds is not in it."""
        return sum(padded(self.tensor_bytes(name)) for name in self.types)

    def tensor_bytes(self, name: str) -> int:
        """Of one tensor, without padding."""
        return tensor_bytes(self.shapes[name], self.types[name])

    def counts(self) -> dict[str, int]:
        """How many tensors get each type, most first."""
        return dict(Counter(tensor_type.name for tensor_type in self.types.values()).most_common())

    @property
    def uses_importance(self) -> bool:
        """Whether the file would be another one without the importance matrix."""
        if self.importance is None or self.recipe != "stock":
            return self.importance is not None
        return any(kind not in _UNWEIGHTED for name, kind in self.types.items() if name in self.importance.entries)

    def metadata(self) -> dict[str, Any]:
        """What distinguishes this file from others of the same source: what is in it, not what was asked for."""
        importance = self.importance.metadata() if self.importance and self.uses_importance else {}
        return quant_type_metadata(self.quant_type, self.recipe, map(str, self.overrides), self.without, importance)


def make_plan(
    source: ModelSource,
    quant_type: QuantType,
    recipe: str = "stock",
    overrides: Iterable[Override] = (),
    importance: ImportanceMatrix | None = None,
) -> Plan:
    """Raises `UsageError` for an unknown recipe, an override that matches nothing, an importance matrix that does not
    fit the model, and a type that needs one where there is none."""
    overrides = tuple(overrides)
    shapes = {tensor.name: tensor.shape for tensor in source.tensors}
    refuse_idle(overrides, shapes)
    if importance:
        importance.check(shapes)
    types = tensor_types(
        shapes,
        quant_type,
        recipe,
        overrides=overrides,
        has_imatrix=importance is not None,
        stored={tensor.name: tensor.stored for tensor in source.tensors if tensor.stored is not None},
    )
    present = importance.entries if importance else ()
    if (name := lacking_importance(types, quant_type, present)) is not None:
        if importance:
            raise UsageError(
                f"the importance matrix has no entry for {name}, which needs one at {types[name].name}",
                "Collect it over the whole model, with `dgpt2-quant imatrix`.",
            )
        raise needs_importance(quant_type.name if quant_type.needs_imatrix else f"{name} at {types[name].name}")
    set_by_hand = applied_overrides(overrides, types, shapes, quant_type)
    return Plan(quant_type, recipe, set_by_hand, importance, shapes, types)


def refuse_idle(overrides: Iterable[Override], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raises `UsageError` for an override that matches nothing."""
    if idle := without_effect(overrides, shapes):
        raise UsageError(
            f"--tensor-type {idle[0]} matches no matrix of the model",
            "They are called token_embd.weight, output.weight, and blk.0.attn_qkv.weight, blk.0.attn_output.weight,"
            " blk.0.ffn_up.weight, blk.0.ffn_down.weight and so on.",
        )


def needs_importance(what: str) -> UsageError:
    """The error for a level that llama.cpp does not make without an importance matrix."""
    return UsageError(
        f"{what} needs an importance matrix",
        "Give one with --imatrix FILE (`dgpt2-quant imatrix` makes it), or collect it with --calibrate TEXTFILE.",
    )
