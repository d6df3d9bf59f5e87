"""`convert()`: converts a model to GGUF files. The source is read once for any number of quant types.

The steps are: a `Request` (request.py), a `Plan` for each file (recipes/plan.py), `prepare`, where `lean` computes, and
`write_files` (write.py). With a target, a search finds the recipe first (search/search.py).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from dgpt2_quant.core.cores import threads_or_all
from dgpt2_quant.core.parallel import calculating
from dgpt2_quant.core.progress import Progress, Stages
from dgpt2_quant.core.quant_types import QuantType
from dgpt2_quant.core.read_input import Announce
from dgpt2_quant.core.scratch import NewStore, in_memory, scratch
from dgpt2_quant.core.text import NamedText
from dgpt2_quant.quantize.calibration.calibration import Calibration, Outline, read_given
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix
from dgpt2_quant.quantize.checkpoint.model_name import clean_name
from dgpt2_quant.quantize.checkpoint.resolve import DEFAULT_MODEL
from dgpt2_quant.quantize.checkpoint.source import ModelSource, open_model
from dgpt2_quant.quantize.lean.model import LeanModel
from dgpt2_quant.quantize.lean.needs import Needs
from dgpt2_quant.quantize.recipes.plan import Plan, make_lean_plan, make_plan, needs_importance, plan_of_recipe
from dgpt2_quant.quantize.recipes.tensor_types import Override
from dgpt2_quant.quantize.search.saved_recipe import saved_recipe
from dgpt2_quant.quantize.search.search import find_recipe

from .converted_file import ConvertedFile
from .request import Request, read_request
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
    lora: Sequence[str | Path] = (),
    progress: Progress | None = None,
    announce: Announce | None = None,
) -> list[ConvertedFile]:
    """Writes a GGUF file for each quant type and returns their descriptions, in that order.

    `model` is `storybook`, a Hub name, a folder, a file of weights, or a GGUF file (of F32, F16 or BF16; of other
    types with `allow_requantize`). `output` is a folder (default: here) or, for one type, a file name that ends in
    `.gguf`. `name` replaces the model's name in file names and metadata.

    `lora` has PEFT adapters, folders or Hub names, each `NAME` or `NAME=WEIGHT`, which are merged in this order.

    `recipe` is `stock` (types and bytes of llama-quantize), `lean` (less loss in the same formats), or a file that a
    search wrote. `prefer` (`quality`, `speed` or `size`, for the embedding's type) and `without` (steps to skip,
    `lean_steps.STEPS`) are for `lean`. `tensor_type` has items `REGEX=TYPE`, which override the recipe; the first
    match counts.

    `imatrix` is an importance matrix in llama.cpp's GGUF format; `calibrate` is a text to collect one over, or
    `sampled` for text that the model generates, the default of `lean`. `parse_special` and `keep_crlf` are as for
    `load_text`.

    One of `target_size` (bytes, or as `48MB`), `target_bpw` (bits per weight) and `max_kld` (nats) starts a search for
    the types (search/search.py). Its recipe is saved next to the file as `.recipe.json`, even when the file cannot be
    written.

    `threads` defaults to the usable cores. `dry_run` writes nothing and uses only the local Hub cache. `announce` is
    called with notes. Raises `DgptQuantError`, and leaves no partial files.
    """
    threads = threads_or_all(threads)
    request = read_request(
        type=type,
        output=output,
        recipe=recipe,
        prefer=prefer,
        without=without,
        tensor_type=tensor_type,
        target_size=target_size,
        target_bpw=target_bpw,
        max_kld=max_kld,
        weighed=imatrix is not None or calibrate is not None,
    )
    text = read_given(imatrix, calibrate, parse_special=parse_special, keep_crlf=keep_crlf, announce=announce)
    source = open_model(
        model, revision=revision, offline=offline or dry_run, allow_requantize=allow_requantize, name=name, lora=lora
    )
    paths = request.paths(source.name)
    if not dry_run:
        request.refuse_existing(paths, overwrite)
    calibration = Calibration(source, imatrix, text or request.default_text, announce)
    outline = calibration.outline(uses_text=request.uses_lean)

    importance, found, needs = None, None, None
    if request.uses_lean and not dry_run:
        assert outline  # `lean` always has an importance matrix
        needs = Needs(source.sizes, outline.chunks, outline.length, calibration.step)
        needs.require(threads, len(paths), searches=request.target is not None)
    if request.target:
        with calculating(threads):
            importance = calibration.collected(progress)
            assert importance  # there is at least sampled text
            found = find_recipe(source, importance, request.target, skip_steps=request.skip_steps, progress=progress)
        request = replace(request, file=found)
        needs = needs and replace(needs, calibration=None)
    plans = dict(zip(paths, make_plans(source, request, outline), strict=True))
    if dry_run:
        stated = outline.metadata if outline else {}
        files = [ConvertedFile.of(source, plan, path, plan.file_bytes(source, stated)) for path, plan in plans.items()]
    else:
        stages = Stages(progress, needs.work(plans.values()) if needs else None)
        with ExitStack() as stack:
            if found:
                stack.enter_context(saved_recipe(found, paths[0], overwrite))
            new_store = in_memory
            if request.uses_lean:
                new_store = stack.enter_context(scratch(clean_name(source.name), source.sha256()))
            if importance is None and any(plan.uses_importance for plan in plans.values()):
                with calculating(threads):  # after all checks, because it takes long
                    importance = calibration.collected(stages.begin(needs.calibrating if needs else 0), new_store)
            ready = prepare(source, plans, importance, new_store, threads=threads, stages=stages)
            files = write_files(source, plans, ready, importance, threads=threads, overwrite=overwrite)
    return [replace(file, found=found.found) for file in files] if found else files


def make_plans(source: ModelSource, request: Request, outline: Outline | None) -> list[Plan]:
    """A plan for each file. Warns of settings without effect."""
    if request.file:
        assert outline  # `lean` always has an importance matrix
        plans = [plan_of_recipe(source, request.file, outline.names)]
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
        _log.warning("%s: the recipe lean has no effect; written as with stock", ", ".join(stock))
    if request.weighed and (idle := [plan.quant_type.name for plan in plans if not plan.uses_importance]):
        _log.warning("%s: the importance matrix has no effect", ", ".join(idle))
    return plans


def prepare(
    source: ModelSource,
    plans: Mapping[Path, Plan],
    importance: ImportanceMatrix | None = None,
    new_store: NewStore = in_memory,
    *,
    threads: int | None = None,
    stages: Stages | None = None,
) -> Iterator[Prepared]:
    """Yields the tensors to write: those of the source for all `stock` files together, then those of each `lean` file,
    computed when the iterator reaches them."""
    stages = stages or Stages()
    if stock := [path for path, plan in plans.items() if plan.recipe == "stock"]:
        yield Prepared(stock, source.tensors, stages.begin(Needs(source.sizes).writing))
    model: LeanModel | None = None
    for path, plan in plans.items():
        if plan.recipe == "stock":
            continue
        if importance is None:
            raise needs_importance(f"the recipe {plan.recipe}")
        with calculating(threads):
            if model is None or model.skip_steps != plan.skip_steps:
                model = LeanModel(source, importance, plan.skip_steps, stages, new_store=new_store)
            tensors, padding = model.encoded(plan.types)
        yield Prepared([path], tensors, stages.begin(model.needs.writing), padding)
