"""Plans: which type and shape each tensor of a file gets, and how many bytes the file will have."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.gguf_file import encode_header, padded, tensor_bytes
from dgpt2_quant.core.hyperparameters import block_of, matmul_weights, pad_count
from dgpt2_quant.core.quant_types import QuantType, TensorType
from dgpt2_quant.quantize.checkpoint.metadata import quant_type_metadata, with_pad_tokens
from dgpt2_quant.quantize.checkpoint.source import ModelSource

from .recipe_file import Recipe
from .tensor_types import (
    FAST_HEADS,
    Override,
    Prefer,
    applied_overrides,
    fitting,
    lacking_importance,
    refuse_unmatched,
    tensor_types,
)

# Types that the C code rounds the same with and without importance (`(void) quant_weights` in ggml-quants.c).
UNWEIGHTED = frozenset({TensorType.F32, TensorType.F16, TensorType.BF16, TensorType.Q8_0, TensorType.TQ1_0})
UNWEIGHTED |= {TensorType.TQ2_0, TensorType.MXFP4, TensorType.NVFP4, TensorType.Q1_0, TensorType.Q2_0}
_ANY_HASH = "0" * 64


@dataclass(frozen=True)
class Plan:
    """What a file will contain. With the source and an importance matrix it decides the file's bytes.

    `overrides` are those that set a type; `uses_importance` is whether an importance matrix changes the file.
    `skip_steps` and `pads`, the number of pad tokens after the vocabulary, are of the recipe `lean`.
    """

    quant_type: QuantType
    recipe: str
    overrides: tuple[Override, ...]
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, TensorType]
    uses_importance: bool
    skip_steps: tuple[str, ...] = ()
    pads: int = 0

    @property
    def parameters(self) -> int:
        return sum(map(prod, self.shapes.values()))

    @property
    def bits_per_weight(self) -> float:
        return 8 * sum(self.tensor_bytes(name) for name in self.types) / self.parameters

    @property
    def data_bytes(self) -> int:
        """Of all tensors, padded as they are in the file, without the header."""
        return sum(padded(self.tensor_bytes(name)) for name in self.types)

    def tensor_bytes(self, name: str) -> int:
        """Of one tensor, without padding."""
        return tensor_bytes(self.shapes[name], self.types[name])

    def counts(self) -> dict[str, int]:
        """The number of tensors of each type, largest first."""
        return dict(Counter(tensor_type.name for tensor_type in self.types.values()).most_common())

    def header(
        self,
        source: ModelSource,
        importance: Mapping[str, Any],
        *,
        sha256: str = _ANY_HASH,
        twin: int = 0,
        pad_probability: float = 0.0,
    ) -> bytes:
        """The file's header. `importance` is what an importance matrix adds to the metadata (`metadata()`), `sha256`
        the source's hash, `twin` the token that the pad tokens copy, and `pad_probability` what they take together; the
        header's size does not depend on these."""
        stated = importance if self.uses_importance else {}
        own = quant_type_metadata(self.quant_type, self.recipe, map(str, self.overrides), self.skip_steps, stated)
        if self.pads:
            own |= {
                "dgpt2_quant.padding": self.pads,
                "dgpt2_quant.padding.twin": twin,
                "dgpt2_quant.padding.probability": pad_probability,
            }
        metadata = source.metadata(sha256, own)
        if self.pads:
            metadata = with_pad_tokens(metadata, self.pads)
        return encode_header(metadata, {name: (shape, self.types[name]) for name, shape in self.shapes.items()})

    def file_bytes(self, source: ModelSource, importance: Mapping[str, Any]) -> int:
        """The exact size of the file; parameters as for `header`."""
        return len(self.header(source, importance)) + self.data_bytes


def make_plan(
    source: ModelSource,
    quant_type: QuantType,
    overrides: Iterable[Override] = (),
    importance: Collection[str] | None = None,
) -> Plan:
    """The plan of a file of the recipe `stock`. `importance` names the matrices that the importance matrix has entries
    for; None is for no importance matrix.

    Raises `UsageError` for an override that matches no matrix, and for a type that needs importance that is missing.
    """
    overrides = tuple(overrides)
    shapes = {tensor.name: tensor.shape for tensor in source.tensors}
    refuse_unmatched(overrides, shapes)
    types = tensor_types(
        shapes,
        quant_type,
        overrides=overrides,
        has_imatrix=importance is not None,
        stored={tensor.name: tensor.stored for tensor in source.tensors if tensor.stored is not None},
    )
    if (name := lacking_importance(types, quant_type, importance or ())) is not None:
        if importance is not None:
            raise _no_entry(name, types)
        raise needs_importance(quant_type.name if quant_type.needs_imatrix else f"{name} at {types[name].name}")
    weighted = {name for name, kind in types.items() if kind not in UNWEIGHTED}
    applied = applied_overrides(overrides, types, shapes, quant_type)
    return Plan(quant_type, "stock", applied, shapes, types, not weighted.isdisjoint(importance or ()))


def make_lean_plan(
    source: ModelSource,
    quant_type: QuantType,
    importance: Collection[str],
    *,
    overrides: Iterable[Override] = (),
    prefer: Prefer | None = None,
    skip_steps: tuple[str, ...] = (),
) -> Plan:
    """The plan of a file of the recipe `lean`; parameters and errors as for `make_plan`."""
    overrides = tuple(overrides)
    shapes = _lean_shapes(source, {}, skip_steps)
    refuse_unmatched(overrides, shapes)
    types = tensor_types(shapes, quant_type, "lean", overrides=overrides, has_imatrix=True, prefer=prefer)
    shapes = _lean_shapes(source, types, skip_steps)
    applied = applied_overrides(overrides, types, shapes, quant_type)
    return _lean_plan(source, quant_type, applied, shapes, types, skip_steps, importance)


def plan_of_recipe(source: ModelSource, recipe: Recipe, importance: Collection[str]) -> Plan:
    """The plan of a recipe file; `importance` as for `make_plan`. Raises `UsageError` for a recipe of another model."""
    shapes = _lean_shapes(source, recipe.types, recipe.skip_steps)
    types: dict[str, TensorType] = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            types[name] = TensorType.F32
        elif name not in recipe.types:
            raise UsageError(f"{recipe.name} has no type for {name}", "Use a recipe for a model of this shape.")
        else:
            types[name] = fitting(name, recipe.types[name], shape[1])
    if unknown := [name for name in recipe.types if name not in shapes]:
        raise UsageError(
            f"{recipe.name} names {unknown[0]!r:.80}, which the model does not have", "Use a recipe for this model."
        )
    return _lean_plan(source, recipe.quant_type, (), shapes, types, recipe.skip_steps, importance)


def pad_tokens(vocabulary: int, types: Mapping[str, TensorType], skip_steps: Iterable[str] = ()) -> int:
    """The number of pad tokens after the vocabulary: none where they would not make the output matrix faster."""
    head = types.get("output.weight", types.get("token_embd.weight"))
    return pad_count(vocabulary) if head in FAST_HEADS and "padding" not in skip_steps else 0


def needs_importance(what: str) -> UsageError:
    """The error for a quant type that llama.cpp does not make without an importance matrix."""
    return UsageError(
        f"{what} needs an importance matrix",
        "Give one with `imatrix` (`dgpt2-quant imatrix` makes it), or a text to collect it over with `calibrate`.",
    )


def _lean_shapes(
    source: ModelSource, types: Mapping[str, TensorType], skip_steps: Iterable[str]
) -> dict[str, tuple[int, ...]]:
    untied = "output.weight" in types or any(tensor.name == "output.weight" for tensor in source.tensors)
    pads = pad_tokens(source.sizes.vocabulary, types, skip_steps)
    return source.sizes.padded(pads).shapes(tied=not untied)


def _lean_plan(
    source: ModelSource,
    quant_type: QuantType,
    applied: tuple[Override, ...],
    shapes: Mapping[str, tuple[int, ...]],
    types: Mapping[str, TensorType],
    skip_steps: tuple[str, ...],
    importance: Collection[str],
) -> Plan:
    name = lacking_importance(types, quant_type, importance)
    # llama-imatrix collects none for a tied embedding, so only the blocks' matrices must have an entry
    name = name or next((n for n in matmul_weights(shapes) if block_of(n) is not None and n not in importance), None)
    if name is not None:
        raise _no_entry(name, types)
    pads = pad_tokens(source.sizes.vocabulary, types, skip_steps)
    return Plan(quant_type, "lean", applied, shapes, types, True, skip_steps, pads)


def _no_entry(name: str, types: Mapping[str, TensorType]) -> UsageError:
    return UsageError(
        f"the importance matrix has no entry for {name}, which needs one at {types[name].name}",
        "Collect it over the whole model, with `dgpt2-quant imatrix`.",
    )
