"""The plan of a file of the recipe `lean`, and plans in files of their own: what a search found, for anybody to use."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from dgpt2_quant.core.atomic_file import output_file
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.gguf_file import require_file
from dgpt2_quant.core.hyperparameters import block_of, matmul_weights, pad_count
from dgpt2_quant.core.json_text import to_json_text
from dgpt2_quant.core.quant_types import QUANT_TYPES, QuantType, TensorType, find_type
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix, Statistics
from dgpt2_quant.quantize.checkpoint.naming import clean_name
from dgpt2_quant.quantize.checkpoint.source import ModelSource

from .lean_mix import ROUNDABLE, Prefer
from .lean_steps import steps_without
from .plan import Plan, refuse_idle
from .tensor_types import RECIPES, Override, applied_overrides, fitting, lacking_importance, tensor_types

_FORMAT = "dgpt2-quant recipe"
_VERSION = 1
_LARGEST = 1 << 22  # bytes; the deepest model has 2050 matrices


@dataclass(frozen=True)
class Recipe:
    """A type for each matrix, by name, and the steps that are left out.

    One for `output.weight` where the model's own is tied splits it. `quant_type` is the level that the file is named
    by, `found` what a search told of it.
    """

    name: str
    quant_type: QuantType
    types: Mapping[str, TensorType]
    without: tuple[str, ...] = ()
    found: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """A document that `read_recipe` reads."""
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "type": self.quant_type.name,
            "without": list(self.without),
            "types": {name: tensor_type.name for name, tensor_type in self.types.items()},
            **({"found": dict(self.found)} if self.found else {}),
        }

    def write(self, path: Path, *, overwrite: bool = False) -> None:
        """Raises `OutputError`."""
        with output_file(path, overwrite=overwrite) as file:
            file.write((to_json_text(self.to_json()) + "\n").encode())

    def label(self, model: str) -> str:
        """What its files are called by, after the model's name: the recipe file's own name, without the model's."""
        label = clean_name(self.name).removesuffix(".json").removesuffix(".recipe").removesuffix(".gguf")
        label = label.removeprefix(f"{model}.")
        return "recipe" if label in (*RECIPES, self.quant_type.name, model) else label


def read_recipe(path: str | Path) -> Recipe:
    """Raises `ModelNotFoundError` when there is no such file, and `UsageError` for one that is no recipe."""
    path = require_file(Path(path), "`dgpt2-quant convert --target-size` writes one.")
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST} bytes")
        document = json.loads(text)
        if document["format"] != _FORMAT or document["version"] != _VERSION:
            raise ValueError(f"its format is {document['format']!r}, version {document['version']!r}")
        by_name = {tensor_type.name: tensor_type for tensor_type in TensorType}
        types = {str(name): by_name[kind] for name, kind in document["types"].items()}
        without = steps_without(list(document["without"])).left_out
        found = document.get("found")
        return Recipe(path.name, find_type(document["type"]), types, without, None if found is None else dict(found))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, UsageError) as error:
        raise UsageError(
            f"{path} is no recipe of this tool ({error!s:.200})", "`dgpt2-quant convert --target-size` writes one."
        ) from error


def make_lean_plan(
    source: ModelSource,
    quant_type: QuantType,
    importance: ImportanceMatrix,
    *,
    overrides: Iterable[Override] = (),
    prefer: Prefer | None = None,
    without: tuple[str, ...] = (),
) -> Plan:
    """The plan of a level. Raises `UsageError` as `make_plan`."""
    overrides = tuple(overrides)
    shapes = _shapes(source, {}, without)
    refuse_idle(overrides, shapes)
    types = tensor_types(shapes, quant_type, "lean", overrides=overrides, has_imatrix=True, prefer=prefer)
    set_by_hand = applied_overrides(overrides, types, shapes, quant_type)
    return _checked(source, Plan(quant_type, "lean", set_by_hand, importance, shapes, types, _left_out(types, without)))


def _left_out(types: Mapping[str, TensorType], without: tuple[str, ...]) -> tuple[str, ...]:
    """These steps, and scaling where C chooses most codes, because it harms codebooks (docs/quantization.md)."""
    blocks = [kind for name, kind in types.items() if name.startswith("blk.") and kind.is_quantized]
    ours = sum(kind in ROUNDABLE for kind in blocks)
    return without if 2 * ours >= len(blocks) else steps_without((*without, "scaling")).left_out


def plan_of_recipe(source: ModelSource, recipe: Recipe, importance: ImportanceMatrix) -> Plan:
    """The plan that a recipe makes of a model. Raises `UsageError` when it is for another one."""
    shapes = _shapes(source, recipe.types, recipe.without)
    types: dict[str, TensorType] = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            types[name] = TensorType.F32
        elif name not in recipe.types:
            raise UsageError(f"{recipe.name} has no type for {name}", "It was made for a model of another shape.")
        else:
            types[name] = fitting(name, recipe.types[name], shape[1])
    if idle := [name for name in recipe.types if name not in shapes]:
        raise UsageError(
            f"{recipe.name} names {idle[0]!r:.80}, which the model has not", "It was made for another model."
        )
    return _checked(source, Plan(recipe.quant_type, "lean", (), importance, shapes, types, recipe.without))


def nominal_level(types: Mapping[str, TensorType], shapes: Mapping[str, tuple[int, ...]]) -> QuantType:
    """The level that a mix is called by: the K-quant or Q8_0 whose nominal bits are nearest to its own."""
    matrices = [(prod(shapes[name]), kind.bits_per_weight) for name, kind in types.items() if len(shapes[name]) == 2]
    mean = sum(count * bits for count, bits in matrices) / sum(count for count, _ in matrices)
    levels = [QUANT_TYPES[name] for name in ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")]
    return min(levels, key=lambda level: abs(level.bits_per_weight - mean))


def pad_tokens(source: ModelSource, without: Iterable[str]) -> int:
    """How many are behind the vocabulary."""
    return 0 if "padding" in without else pad_count(source.sizes.vocabulary)


def _shapes(source: ModelSource, types: Mapping[str, TensorType], without: Iterable[str]) -> dict[str, tuple[int, ...]]:
    untied = "output.weight" in types or any(tensor.name == "output.weight" for tensor in source.tensors)
    return source.sizes.padded(pad_tokens(source, without)).shapes(tied=not untied)


def _checked(source: ModelSource, plan: Plan) -> Plan:
    present: Mapping[str, Statistics] = {}
    if plan.importance:
        present = plan.importance.entries
        plan.importance.check(plan.shapes)
        plan.importance.check_text(source.sizes.vocabulary, source.sizes.context)
    name = lacking_importance(plan.types, plan.quant_type, present)
    # that of a tied embedding is missing in files of llama-imatrix
    name = name or next((n for n in matmul_weights(plan.shapes) if block_of(n) is not None and n not in present), None)
    if name is not None:
        raise UsageError(
            f"the importance matrix has no entry for {name}, which needs one at {plan.types[name].name}",
            "Collect it over the whole model, with `dgpt2-quant imatrix`.",
        )
    return plan
