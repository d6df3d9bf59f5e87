"""A model to GGUF files, in one pass.

The source is read once, whatever the number of types asked for, with no file in between. The files take their places
when all of them are complete.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from dgpt2_quant.core.atomic_file import output_file, refuse_existing
from dgpt2_quant.core.cores import threads_or_all
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.gguf_file import encode_header
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.core.parallel import calculating
from dgpt2_quant.core.paths import user_path
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.quant_types import QuantType, TensorType, find_types
from dgpt2_quant.core.read_input import Announce
from dgpt2_quant.core.text import NamedText
from dgpt2_quant.core.workers import Workers
from dgpt2_quant.quantize.calibration.calibration import Calibration, read_given
from dgpt2_quant.quantize.calibration.collect import SAMPLED
from dgpt2_quant.quantize.checkpoint.naming import clean_name, file_name
from dgpt2_quant.quantize.checkpoint.resolve import DEFAULT_MODEL, is_gguf_name
from dgpt2_quant.quantize.checkpoint.source import ModelSource, open_model
from dgpt2_quant.quantize.lean.model import LeanModel
from dgpt2_quant.quantize.lean.padded_source import PaddedSource, padded_source
from dgpt2_quant.quantize.recipes.lean_mix import find_preference
from dgpt2_quant.quantize.recipes.lean_plan import Recipe, make_lean_plan, pad_tokens, plan_of_recipe, read_recipe
from dgpt2_quant.quantize.recipes.lean_steps import steps_without
from dgpt2_quant.quantize.recipes.plan import Plan, make_plan, needs_importance
from dgpt2_quant.quantize.recipes.tensor_types import Override, check_recipe, find_override
from dgpt2_quant.quantize.search.saved_recipe import refuse_existing_search, saved_recipe
from dgpt2_quant.quantize.search.search import SEARCHED_TYPES, Target, Times, find_target, search

from .write import FileWriter, stream

_log = logging.getLogger(__name__)

MeasureTimes = Callable[[Hyperparameters, Sequence[TensorType]], Times]


@dataclass(frozen=True)
class ConvertedFile:
    """One entry of `convert --json`. `seconds` is of the whole call, `tensors` counts them by tensor type.

    Of a dry run, `sha256` is None; `plan` is what was, or would be, written; `found` what a search told
    (`Recipe.found`), `padding` how many pad tokens it has, and of which token they are copies (`Padding`).
    """

    model: str
    type: str
    recipe: str
    path: str
    bytes: int
    bits_per_weight: float
    parameters: int
    sha256: str | None
    seconds: float
    tensors: dict[str, int]
    plan: Plan
    padding: Mapping[str, Any] | None = None
    found: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        document = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("plan", "padding", "found")}
        if self.padding is not None:
            document["padding"] = dict(self.padding)
        if self.found is not None:
            document["search"] = dict(self.found)
        if self.sha256 is None:
            document["plan"] = [
                {"name": n, "type": t.name, "shape": list(self.plan.shapes[n]), "bytes": self.plan.tensor_bytes(n)}
                for n, t in self.plan.types.items()
            ]
        return document


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
    measure_times: MeasureTimes | None = None,
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
    """Writes a GGUF file for each quant type and returns what was written, in that order.

    `model` is `storybook`, a Hub name, a folder, or a GGUF file (of F32, F16 or BF16; of others with
    `allow_requantize`); `output` a folder (default: here), or with one type also a file name that ends in `.gguf`.
    `name` is what to call the model, in file names and metadata, if not by its own name (`naming.folder_name`).
    `recipe` is `stock` (the types and the bytes of llama-quantize), `lean` (better files of the same formats), or a
    file that a search wrote, which says types and level itself. `prefer` and `without` are for `lean`: what to choose
    the embedding's type for (`quality`, `speed`, `size`), and steps to leave out (`lean_steps.STEPS`).
    `imatrix` is an importance matrix in llama.cpp's GGUF format, `calibrate` a text to collect one over on the way
    (`sampled`: what the model writes itself, which `lean` takes if it is given neither), read as `parse_special` and
    `keep_crlf` say (`load_text`); `tensor_type` are `REGEX=TYPE`, the first that matches a matrix going before the
    recipe. `announce` is called with notes.

    With one of `target_size` (bytes, or as `48MB`), `target_bpw` (bits per weight) and `max_kld` (nats), types are
    searched for (search.py), and the recipe that was found is written next to the file, with `.recipe.json` after its
    name; it is kept even when the file cannot be written. `measure_times` is needed to prefer speed: called with the
    model's sizes and types, it gives a function for the seconds of a matrix's shape and type
    (`bench.kernel_times.token_times` makes one).

    `threads` defaults to the cores that this process may use. `dry_run` plans, writes nothing, and takes from the Hub
    cache only.

    Raises `DgptQuantError`: nothing half-written is left behind then.
    """
    saved = read_recipe(recipe) if str(recipe).endswith(".json") else None
    target = find_target(target_size, target_bpw, max_kld, prefer)
    if (saved or target) and (type or tensor_type or (saved and (prefer or without or target))):
        raise UsageError(
            f"{recipe if saved else 'a search'} says all types itself", "Leave out --type, --tensor-type and the like."
        )
    quant_types = [saved.quant_type] if saved else find_types(type)
    if not (quant_types or target):
        raise UsageError("no quantization type was asked for", "For example `--type q4_k`; see `dgpt2-quant types`.")
    is_stock = str(recipe) == "stock" and not target
    if not saved:
        check_recipe(str(recipe))
    if is_stock and (prefer or without):
        raise UsageError("`prefer` and `without` are for the recipe lean, not stock", "Set `recipe` to lean.")
    if imatrix is not None and calibrate is not None:
        raise UsageError("an importance matrix was given, and a text to collect one over", "Leave one of the two out.")
    for quant_type in quant_types:
        if is_stock and quant_type.needs_imatrix and imatrix is None and calibrate is None:
            raise needs_importance(quant_type.name)
    threads = threads_or_all(threads)
    overrides = [find_override(text) for text in tensor_type]
    wanted, steps = find_preference(prefer), steps_without(without).left_out
    output = user_path(output or ".")
    if output.parts[:1] == ("-",):
        raise UsageError("a GGUF file cannot be written to stdout", "Name a file that ends in .gguf, or a folder.")
    # before a model is looked for
    calibrate = read_given(imatrix, calibrate, parse_special=parse_special, keep_crlf=keep_crlf, announce=announce)
    source = open_model(
        model, revision=revision, offline=offline or dry_run, allow_requantize=allow_requantize, name=name
    )
    quantized = bool(saved or target) or any(quant_type.base.is_quantized for quant_type in quant_types)
    is_weighed = imatrix is not None or calibrate is not None
    if not is_weighed and quantized and not is_stock:
        calibrate = SAMPLED
    calibration = Calibration(source, imatrix, calibrate, announce)
    if target and not is_gguf_name(output.name):  # by its name now: what is in the way is reported before the search
        output /= f"{clean_name(source.name)}.{target.label}.gguf"
    if target:
        if not dry_run:
            refuse_existing_search(output, overwrite)
        with calculating(threads):
            saved = _searched(source, calibration, target, steps, measure_times, progress)
        quant_types = [saved.quant_type]
    stock = [quant_type for quant_type in quant_types if is_stock or not (saved or quant_type.base.is_quantized)]
    label = saved.label(clean_name(source.name)) if saved else "lean"
    paths = _paths(output, [file_name(source.name, t, "stock" if t in stock else label) for t in quant_types])
    if not dry_run and not target:
        for path in paths:
            refuse_existing(path, overwrite)
    planned = calibration.planned()

    def plan(quant_type: QuantType) -> Plan:
        if planned is not None and saved:
            return plan_of_recipe(source, saved, planned)
        if planned is None or quant_type in stock:  # at F16 `lean` has nothing to offer
            return make_plan(source, quant_type, "stock", overrides, planned)
        return make_lean_plan(source, quant_type, planned, overrides=overrides, prefer=wanted, without=steps)

    plans = [plan(quant_type) for quant_type in quant_types]
    if stock and not is_stock:
        names = ", ".join(quant_type.name for quant_type in stock)
        _log.warning("%s: written as the recipe stock has it, for lean changes nothing there", names)
    if is_weighed and (idle := [plan.quant_type.name for plan in plans if not plan.uses_importance]):
        _log.warning("%s: the importance matrix changes nothing there", ", ".join(idle))
    found = saved.found if saved and target else None
    if dry_run:
        made = [_as_planned(source, plan, path) for plan, path in zip(plans, paths, strict=True)]
        return [replace(file, found=found) for file in made]
    with ExitStack() as stack:
        if saved and target:
            stack.enter_context(saved_recipe(saved, output, overwrite))
        collected = None
        if any(plan.uses_importance for plan in plans):
            with calculating(threads):
                collected = calibration.collected(progress)  # last, for it takes longest
        plans = [replace(plan, importance=collected) for plan in plans]
        files = write_files(
            source, dict(zip(paths, plans, strict=True)), threads=threads, overwrite=overwrite, progress=progress
        )
    return [replace(file, found=found) for file in files]


def _searched(
    source: ModelSource,
    calibration: Calibration,
    target: Target,
    steps: Sequence[str],
    measure_times: MeasureTimes | None,
    progress: Progress | None,
) -> Recipe:
    importance = calibration.collected(progress)
    if importance is None or not importance.tokens:
        raise UsageError(
            "the importance matrix has not the text in it that it was collected on, which a search measures on",
            "`dgpt2-quant imatrix` makes one that has.",
        )

    def file_bytes(plan: Plan) -> int:
        return _as_planned(source, plan, Path()).bytes

    times = None
    if target.prefer == "speed" and measure_times:
        times = measure_times(source.sizes, SEARCHED_TYPES)
    return search(source, importance, target, without=steps, file_bytes=file_bytes, times=times, progress=progress)


def write_files(
    source: ModelSource,
    plans: Mapping[Path, Plan],
    *,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    known_sha256: str | None = None,
) -> list[ConvertedFile]:
    """Writes a file by each plan, and returns what was written. They take their places at the end.

    `known_sha256` saves reading the source once more for its hash, for a caller who just did. Raises `DgptQuantError`.
    """
    started, threads = time.monotonic(), threads_or_all(threads)
    for path in plans:
        refuse_existing(path, overwrite)
    with Workers(1) as aside, ExitStack() as stack:
        hashing = aside.submit(lambda: known_sha256 or source.origin())
        writers = [
            FileWriter(path, stack.enter_context(output_file(path, overwrite=overwrite)), plan)
            for path, plan in plans.items()
        ]

        padding: dict[Path, Mapping[str, Any]] = {}
        for model, group in _prepared(source, writers, threads, progress):
            if isinstance(model, PaddedSource) and model.padding.count:
                padding |= {writer.path: model.padding.to_json() for writer in group}

            def heads(model: ModelSource = model, group: Sequence[FileWriter] = group) -> list[bytes]:
                return [_head(model, writer.plan, hashing.result()) for writer in group]

            stream(model.tensors, group, heads, threads, progress)
    seconds = round(time.monotonic() - started, 3)
    files = [_describe(source, w.plan, w.path, w.bytes, w.hash.hexdigest(), seconds) for w in writers]
    return [replace(file, padding=padding.get(Path(file.path))) for file in files]


def _prepared(
    source: ModelSource, writers: Sequence[FileWriter], threads: int, progress: Progress | None
) -> Iterator[tuple[ModelSource, Sequence[FileWriter]]]:
    """The stock files all at once, in one reading of the source; then the `lean` ones, each with tensors of its own."""
    if stock := [writer for writer in writers if writer.plan.recipe == "stock"]:
        yield source, stock
    model: LeanModel | None = None
    for writer in writers:
        plan = writer.plan
        if plan.recipe != "stock" and plan.importance:
            with calculating(threads):
                if model is None or model.left_out != plan.without:
                    model = LeanModel(source, plan.importance, plan.without, progress)
                made = model.quantized(plan.types)
            yield made, [writer]


def _head(source: ModelSource, plan: Plan, sha256: str) -> bytes:
    tensors = {name: (shape, plan.types[name]) for name, shape in plan.shapes.items()}
    return encode_header(source.metadata(sha256, plan.metadata()), tensors)


def _as_planned(source: ModelSource, plan: Plan, path: Path) -> ConvertedFile:
    any_hash = "0" * 64  # all are as long as another
    model = source if plan.recipe == "stock" else padded_source(source, pad_tokens(source, plan.without))
    return _describe(source, plan, path, len(_head(model, plan, any_hash)) + plan.data_bytes, None, 0.0)


def _describe(
    source: ModelSource, plan: Plan, path: Path, nbytes: int, sha256: str | None, seconds: float
) -> ConvertedFile:
    return ConvertedFile(
        model=source.name,
        type=plan.quant_type.name,
        recipe=plan.recipe,
        path=str(path),
        bytes=nbytes,
        bits_per_weight=round(plan.bits_per_weight, 3),
        parameters=plan.parameters,
        sha256=sha256,
        seconds=seconds,
        tensors=plan.counts(),
        plan=plan,
    )


def _paths(output: Path, names: Sequence[str]) -> list[Path]:
    """Where the files of these names go: into a folder, or the only one where `output` names a file."""
    if not is_gguf_name(output.name):
        return [output / name for name in names]
    if len(names) > 1:
        raise UsageError(f"{output} is one file, but {len(names)} types were asked for", "Name a folder.")
    return [output]
