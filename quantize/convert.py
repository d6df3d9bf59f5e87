"""A model to GGUF files, in one pass.

The source is read once, whatever the number of types asked for, with no file in between. The files take their places
when all of them are complete.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from .calibrate import collect, uncollected
from .cores import threads_or_all
from .errors import UsageError
from .gguf_file import encode_header
from .importance import read_importance
from .model_source import ModelSource, open_model
from .output_file import output_file, refuse_existing
from .plan import Plan, make_plan, needs_importance
from .progress import Progress
from .quant_types import QuantType, find_types
from .recipe import Override, find_override
from .resolve import DEFAULT_MODEL, is_gguf_name
from .stream import FileWriter, stream
from .text import load_text


@dataclass(frozen=True)
class ConvertedFile:
    """One entry of `convert --json`. `seconds` is of the whole call, `tensors` counts them by tensor type.

    Of a dry run, `sha256` is None; `plan` is what was, or would be, written.
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

    def to_json(self) -> dict[str, Any]:
        document = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "plan"}
        if self.sha256 is None:
            document["plan"] = [
                {"name": n, "type": t.name, "shape": list(self.plan.shapes[n]), "bytes": self.plan.tensor_bytes(n)}
                for n, t in self.plan.types.items()
            ]
        return document


def convert(
    model: str = DEFAULT_MODEL,
    *,
    type: str | QuantType | Sequence[str | QuantType],
    output: str | Path | None = None,
    recipe: str = "stock",
    imatrix: str | Path | None = None,
    calibrate: str | Path | None = None,
    tensor_type: Sequence[str | Override] = (),
    revision: str | None = None,
    offline: bool = False,
    threads: int | None = None,
    allow_requantize: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> list[ConvertedFile]:
    """Writes a GGUF file for each quant type and returns what was written, in that order.

    `model` is `storybook`, a Hub name, a folder, or a GGUF file (of F32, F16 or BF16; of others with
    `allow_requantize`); `output` a folder (default: here), or with one type also a file name that ends in `.gguf`.
    `imatrix` is an importance matrix in llama.cpp's GGUF format, `calibrate` a text to collect one over on the way;
    `tensor_type` are `REGEX=TYPE`, the first that matches a matrix going before the recipe. `threads` defaults to the
    cores that this process may use. `dry_run` plans, writes nothing, and takes from the Hub cache only.

    Raises `DgptQuantError`: nothing half-written is left behind then.
    """
    quant_types = find_types(type)
    if not quant_types:
        raise UsageError("no quantization type was asked for", "For example `--type q4_k`; see `dgpt2-quant types`.")
    if imatrix is not None and calibrate is not None:
        raise UsageError("an importance matrix was given, and a text to collect one over", "Leave one of the two out.")
    for quant_type in quant_types:
        if quant_type.needs_imatrix and imatrix is None and calibrate is None:
            raise needs_importance(quant_type.name)
    threads = threads_or_all(threads)
    overrides = [find_override(text) for text in tensor_type]
    importance = read_importance(imatrix) if imatrix is not None else None
    text = load_text(calibrate) if calibrate is not None else None
    source = open_model(model, revision=revision, offline=offline or dry_run, allow_requantize=allow_requantize)
    targets = _targets(source.name, quant_types, Path(output or "."))
    if not dry_run:
        for path in targets.values():
            refuse_existing(path, overwrite)
    if text:
        importance = uncollected(source, text)
    plans = [make_plan(source, quant_type, recipe, overrides, importance) for quant_type in quant_types]
    if dry_run:
        return [_as_planned(source, plan, path) for plan, path in zip(plans, targets.values(), strict=True)]
    if text:  # last, for it takes longest
        collected = collect(source, text, progress=progress)
        plans = [replace(plan, importance=collected) for plan in plans]
    return write_files(
        source, dict(zip(targets.values(), plans, strict=True)), threads=threads, overwrite=overwrite, progress=progress
    )


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
    with ThreadPoolExecutor(1) as aside, ExitStack() as stack:
        hashing = aside.submit(lambda: known_sha256 or source.sha256())
        writers = [
            FileWriter(path, stack.enter_context(output_file(path, overwrite=overwrite)), plan)
            for path, plan in plans.items()
        ]

        def heads() -> list[bytes]:
            return [_head(source, writer.plan, hashing.result()) for writer in writers]

        stream(source.tensors, writers, heads, threads, progress)
    seconds = round(time.monotonic() - started, 3)
    return [
        _describe(source, writer.plan, writer.path, writer.bytes, writer.hash.hexdigest(), seconds)
        for writer in writers
    ]


def _head(source: ModelSource, plan: Plan, sha256: str) -> bytes:
    tensors = {name: (shape, plan.types[name]) for name, shape in plan.shapes.items()}
    return encode_header(source.metadata(sha256, plan.metadata()), tensors)


def _as_planned(source: ModelSource, plan: Plan, path: Path) -> ConvertedFile:
    any_hash = "0" * 64  # all are as long as another
    return _describe(source, plan, path, len(_head(source, plan, any_hash)) + plan.data_bytes, None, 0.0)


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


def _targets(name: str, quant_types: Sequence[QuantType], output: Path) -> dict[QuantType, Path]:
    if is_gguf_name(output.name):
        if len(quant_types) > 1:
            raise UsageError(f"{output} is one file, but {len(quant_types)} types were asked for", "Name a folder.")
        return {quant_types[0]: output}
    return {quant_type: output / quant_type.file_name(name) for quant_type in quant_types}
