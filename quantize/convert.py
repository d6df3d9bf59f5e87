"""`convert()`: a model to GGUF files. The source is read once for any number of quant types.

The steps are: what was asked for (`Request`), a `Plan` for each file (recipes/plan.py), `prepare`, where `lean`
computes, and `write_files` (write.py). With a target, a search finds the recipe first (search/search.py).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from dgpt2_quant.core.atomic_file import refuse_existing
from dgpt2_quant.core.cores import threads_or_all
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.parallel import calculating
from dgpt2_quant.core.paths import user_path
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.quant_types import QuantType, find_types
from dgpt2_quant.core.read_input import Announce
from dgpt2_quant.core.text import NamedText
from dgpt2_quant.quantize.calibration.calibration import Calibration, Outline, read_given
from dgpt2_quant.quantize.calibration.collect import SAMPLED
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix
from dgpt2_quant.quantize.checkpoint.naming import clean_name, file_name
from dgpt2_quant.quantize.checkpoint.resolve import DEFAULT_MODEL, is_gguf_name
from dgpt2_quant.quantize.checkpoint.source import ModelSource, open_model
from dgpt2_quant.quantize.lean.model import LeanModel
from dgpt2_quant.quantize.recipes.lean_steps import steps_without
from dgpt2_quant.quantize.recipes.plan import Plan, make_lean_plan, make_plan, needs_importance, plan_of_recipe
from dgpt2_quant.quantize.recipes.recipe_file import Recipe, read_recipe
from dgpt2_quant.quantize.recipes.tensor_types import Override, Prefer, check_recipe, find_override, find_preference
from dgpt2_quant.quantize.search.saved_recipe import refuse_existing_search, saved_recipe
from dgpt2_quant.quantize.search.search import find_recipe
from dgpt2_quant.quantize.search.target import Target, find_target

from .converted_file import ConvertedFile
from .write import Prepared, write_files

_log = logging.getLogger(__name__)


def convert(
    model: str = DEFAULT_MODEL,
    *,
    type: str | QuantType | Sequence[str | QuantType] = (),
    output: str | Path | None = None,
    recipe: str | Path = "stock",
    prefer: str | None = None,
    without: Sequence[str] = (),
    imatrix: str | Path | None = None,
    calibrate: str | Path | NamedText | None = None,
    parse_special: bool = True,
    keep_crlf: bool = False,
    tensor_type: Sequence[str | Override] = (),
    target_size: int | str | None = None,
    target_bpw: float | None = None,
    max_kld: float | None = None,
    revision: str | None = None,
    offline: bool = False,
    threads: int | None = None,
    allow_requantize: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    name: str | None = None,
    progress: Progress | None = None,
    announce: Announce | None = None,
) -> list[ConvertedFile]:
    """Writes a GGUF file for each quant type and returns their descriptions, in that order.

    `model` is `storybook`, a Hub name, a folder, or a GGUF file (of F32, F16 or BF16; of other types with
    `allow_requantize`). `output` is a folder (default: here) or, for one type, a file name that ends in `.gguf`. `name`
    replaces the model's name in file names and metadata.

    `recipe` is `stock` (types and bytes of llama-quantize), `lean` (less loss in the same formats), or a file that a
    search wrote. `prefer` (`quality`, `speed` or `size`, for the embedding's type) and `without` (steps to skip,
    `lean_steps.STEPS`) are for `lean`. `tensor_type` has items `REGEX=TYPE`, which go before the recipe; the first
    match counts.

    `imatrix` is an importance matrix in llama.cpp's GGUF format; `calibrate` is a text to collect one over, or
    `sampled` for text that the model writes, the default of `lean`. `parse_special` and `keep_crlf` are as for
    `load_text`.

    One of `target_size` (bytes, or as `48MB`), `target_bpw` (bits per weight) and `max_kld` (nats) starts a search for
    the types (search/search.py). Its recipe is saved next to the file as `.recipe.json`, even when the file cannot be
    written.

    `threads` defaults to the usable cores. `dry_run` writes nothing and uses only the local Hub cache. `announce` is
    called with notes. Raises `DgptQuantError`, and leaves no partial files.
    """
    threads = threads_or_all(threads)
    saved = read_recipe(recipe) if str(recipe).endswith(".json") else None
    target = find_target(target_size, target_bpw, max_kld, prefer)
    if saved or target:
        excluded = {"type": type, "tensor_type": tensor_type}
        if saved:
            excluded |= {"prefer": prefer, "without": without}
            excluded |= {"target_size": target_size, "target_bpw": target_bpw, "max_kld": max_kld}
        if given := [f"`{parameter}`" for parameter, value in excluded.items() if value]:
            what = f"the recipe file {recipe}" if saved else "a target"
            raise UsageError(f"{', '.join(given)} cannot be combined with {what}, which sets all types")
    request = Request(
        quant_types=(saved.quant_type,) if saved else tuple(find_types(type)),
        recipe="lean" if saved or target else str(recipe),
        saved=saved,
        target=target,
        overrides=tuple(find_override(text) for text in tensor_type),
        prefer=find_preference(prefer),
        skip_steps=steps_without(without).left_out,
        output=user_path(output or "."),
        weighed=imatrix is not None or calibrate is not None,
    )
    request.check()
    text = read_given(imatrix, calibrate, parse_special=parse_special, keep_crlf=keep_crlf, announce=announce)

    source = open_model(
        model, revision=revision, offline=offline or dry_run, allow_requantize=allow_requantize, name=name
    )
    paths = request.paths(source.name)
    if not dry_run:
        for path in paths:
            (refuse_existing_search if target else refuse_existing)(path, overwrite)
    if request.uses_lean and not request.weighed:
        text = SAMPLED
    calibration = Calibration(source, imatrix, text, announce)
    outline = calibration.outline(uses_text=request.uses_lean)

    importance = None
    if target:
        with calculating(threads):
            importance = calibration.collected(progress)
            saved = find_recipe(source, importance, target, skip_steps=request.skip_steps, progress=progress)
    plans = dict(zip(paths, make_plans(source, request, saved, outline), strict=True))
    if dry_run:
        stated = outline.metadata if outline else {}
        files = [ConvertedFile.of(source, p, path, p.file_bytes(source, stated)) for path, p in plans.items()]
    else:
        with saved_recipe(saved, paths[0], overwrite) if saved and target else nullcontext():
            if importance is None and any(plan.uses_importance for plan in plans.values()):
                with calculating(threads):
                    importance = calibration.collected(progress)  # after all checks, because it takes long
            prepared = prepare(source, plans, importance, threads=threads, progress=progress)
            files = write_files(
                source, plans, prepared, importance, threads=threads, overwrite=overwrite, progress=progress
            )
    return [replace(file, found=saved.found) for file in files] if saved and target else files


@dataclass(frozen=True)
class Request:
    """What was asked for, as far as it is known without the model."""

    quant_types: tuple[QuantType, ...]  # none for a target
    recipe: str
    saved: Recipe | None
    target: Target | None
    overrides: tuple[Override, ...]
    prefer: Prefer | None
    skip_steps: tuple[str, ...]
    output: Path
    weighed: bool  # whether an importance matrix was asked for

    def check(self) -> None:
        """Raises `UsageError` for a request that no model can satisfy."""
        check_recipe(self.recipe)
        if not (self.quant_types or self.target):
            raise UsageError("`type` must name at least one quant type", "For example q4_k; see `dgpt2-quant types`.")
        if self.recipe == "stock" and (self.prefer or self.skip_steps):
            raise UsageError("`prefer` and `without` are for the recipe lean, not stock", "Set `recipe` to lean.")
        for quant_type in self.quant_types:
            if self.recipe == "stock" and quant_type.needs_imatrix and not self.weighed:
                raise needs_importance(quant_type.name)
        if self.output.parts[:1] == ("-",):
            raise UsageError(
                "`output` must be a file or a folder, not stdout", "Name a file that ends in .gguf, or a folder."
            )
        if is_gguf_name(self.output.name) and len(self.quant_types) > 1:
            raise UsageError(
                f"`output` must be a folder for {len(self.quant_types)} types, not the file {self.output}",
                "Name a folder, or one type.",
            )

    def is_lean(self, quant_type: QuantType) -> bool:
        """Whether `lean` computes the file: at F32, F16 and BF16 it changes nothing."""
        return self.saved is not None or (self.recipe == "lean" and quant_type.base.is_quantized)

    @property
    def uses_lean(self) -> bool:
        return self.target is not None or any(map(self.is_lean, self.quant_types))

    def paths(self, model: str) -> list[Path]:
        """The files to write, in the order of the types."""
        if is_gguf_name(self.output.name):
            return [self.output]
        if self.target:
            return [self.output / f"{clean_name(model)}.{self.target.label}.gguf"]
        label = self.saved.label(clean_name(model)) if self.saved else "lean"
        return [self.output / file_name(model, t, label if self.is_lean(t) else "stock") for t in self.quant_types]


def make_plans(source: ModelSource, request: Request, saved: Recipe | None, outline: Outline | None) -> list[Plan]:
    """A plan for each file; `saved` is the recipe that was read or found. Warns of settings without effect."""
    if saved:
        assert outline  # `lean` always has an importance matrix
        plans = [plan_of_recipe(source, saved, outline.names)]
    else:
        plans = []
        for quant_type in request.quant_types:
            if outline and request.is_lean(quant_type):
                plan = make_lean_plan(
                    source,
                    quant_type,
                    outline.names,
                    overrides=request.overrides,
                    prefer=request.prefer,
                    skip_steps=request.skip_steps,
                )
            else:
                plan = make_plan(source, quant_type, request.overrides, outline.names if outline else None)
            plans.append(plan)
    if request.recipe == "lean" and (stock := [plan.quant_type.name for plan in plans if plan.recipe == "stock"]):
        _log.warning("%s: the recipe lean changes nothing there; written as with stock", ", ".join(stock))
    if request.weighed and (idle := [plan.quant_type.name for plan in plans if not plan.uses_importance]):
        _log.warning("%s: the importance matrix changes nothing there", ", ".join(idle))
    return plans


def prepare(
    source: ModelSource,
    plans: Mapping[Path, Plan],
    importance: ImportanceMatrix | None = None,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Iterator[Prepared]:
    """The tensors to write: those of the source for all `stock` files together, then those of each `lean` file, which
    are computed when the iterator reaches them."""
    if stock := [path for path, plan in plans.items() if plan.recipe == "stock"]:
        yield Prepared(stock, source.tensors)
    model: LeanModel | None = None
    for path, plan in plans.items():
        if plan.recipe == "stock":
            continue
        if importance is None:
            raise needs_importance(f"the recipe {plan.recipe}")
        with calculating(threads):
            if model is None or model.skip_steps != plan.skip_steps:
                model = LeanModel(source, importance, plan.skip_steps, progress)
            tensors, padding = model.encoded(plan.types)
        yield Prepared([path], tensors, padding)
