"""The arguments of `convert`, parsed and checked before the model is opened."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpt2_quant.core.atomic_file import refuse_existing
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.paths import user_path
from dgpt2_quant.core.quant_types import QuantType, find_types
from dgpt2_quant.quantize.calibration.collect import SAMPLED
from dgpt2_quant.quantize.checkpoint.model_name import clean_name, file_name
from dgpt2_quant.quantize.checkpoint.resolve import is_gguf_name
from dgpt2_quant.quantize.recipes.lean_steps import steps_without
from dgpt2_quant.quantize.recipes.plan import needs_importance
from dgpt2_quant.quantize.recipes.recipe_file import Recipe, read_recipe
from dgpt2_quant.quantize.recipes.tensor_types import (
    Override,
    Prefer,
    check_recipe,
    find_override,
    find_preference,
    has_lean,
)
from dgpt2_quant.quantize.search.saved_recipe import refuse_existing_search
from dgpt2_quant.quantize.search.target import Target, find_target


@dataclass(frozen=True)
class Request:
    """Files to write. `file` is a recipe file that was read, or the recipe that the search for `target` found."""

    quant_types: tuple[QuantType, ...]  # none for a target
    recipe: str  # stock or lean
    file: Recipe | None
    target: Target | None
    overrides: tuple[Override, ...]
    prefer: Prefer | None
    skip_steps: tuple[str, ...]
    output: Path
    weighed: bool  # whether an importance matrix was asked for

    def is_lean(self, quant_type: QuantType) -> bool:
        """Whether `lean` computes the file."""
        return self.file is not None or (self.recipe == "lean" and has_lean(quant_type))

    @property
    def uses_lean(self) -> bool:
        return self.target is not None or any(map(self.is_lean, self.quant_types))

    @property
    def default_text(self) -> str | None:
        """The calibration text where neither an importance matrix nor a text was given."""
        return SAMPLED if self.uses_lean and not self.weighed else None

    def paths(self, model: str) -> list[Path]:
        """The files to write, in the order of the types."""
        if is_gguf_name(self.output.name):
            return [self.output]
        if self.target:
            return [self.output / f"{clean_name(model)}.{self.target.label}.gguf"]
        label = self.file.label(clean_name(model)) if self.file else "lean"
        return [self.output / file_name(model, t, label if self.is_lean(t) else "stock") for t in self.quant_types]

    def refuse_existing(self, paths: Iterable[Path], overwrite: bool) -> None:
        """Raises `OutputError` for files, with a target also for their recipes, that may not be written."""
        for path in paths:
            (refuse_existing_search if self.target else refuse_existing)(path, overwrite)


def read_request(
    *,
    type: str | QuantType | Sequence[str | QuantType],
    output: str | Path | None,
    recipe: str | Path,
    prefer: str | None,
    without: Sequence[str],
    tensor_type: Sequence[str | Override],
    target_size: int | str | None,
    target_bpw: float | None,
    max_kld: float | None,
    weighed: bool,
) -> Request:
    """Parameters as for `convert`. Raises `DgptQuantError` for a request that no model can satisfy."""
    file = read_recipe(recipe) if str(recipe).endswith(".json") else None
    target = find_target(target_size, target_bpw, max_kld, prefer)
    types: dict[str, Any] = {"type": type, "tensor_type": tensor_type}
    if file:
        targets = {"target_size": target_size, "target_bpw": target_bpw, "max_kld": max_kld}
        _refuse_given({**types, "prefer": prefer, "without": without, **targets}, f"the recipe file {recipe}")
    else:
        check_recipe(str(recipe))
        if target:
            _refuse_given(types, "a target")
    request = Request(
        quant_types=(file.quant_type,) if file else tuple(find_types(type)),
        recipe="lean" if file or target else str(recipe),
        file=file,
        target=target,
        overrides=tuple(find_override(text) for text in tensor_type),
        prefer=find_preference(prefer),
        skip_steps=steps_without(without).left_out,
        output=user_path(output or "."),
        weighed=weighed,
    )
    if not (request.quant_types or target):
        raise UsageError("`type` must name at least one quant type", "For example q4_k; see `dgpt2-quant types`.")
    if request.recipe == "stock":
        if prefer or without:
            raise UsageError("`prefer` and `without` are for the recipe lean, not stock", "Set `recipe` to lean.")
        if not weighed and (needy := [t.name for t in request.quant_types if t.needs_imatrix]):
            raise needs_importance(needy[0])
    if request.output.parts[:1] == ("-",):
        raise UsageError(
            "`output` must be a file or a folder, not stdout", "Name a file that ends in .gguf, or a folder."
        )
    if is_gguf_name(request.output.name) and (count := len(request.quant_types)) > 1:
        raise UsageError(
            f"`output` must be a folder for {count} types, not the file {request.output}", "Name a folder."
        )
    return request


def _refuse_given(parameters: dict[str, Collection[Any] | float | None], what: str) -> None:
    if given := [f"`{name}`" for name, value in parameters.items() if value]:
        raise UsageError(f"{', '.join(given)} cannot be combined with {what}, which sets all types")
