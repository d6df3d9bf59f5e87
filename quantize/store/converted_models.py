"""Finds the GGUF file for a model name: converts the model once and keeps the file in the cache.

The key of a converted file is the source's content, the recipe and the code that wrote it (`cache.cache_version`).
Hashing 352 MB on every start would cost more than loading the model, so the hash is stored together with path, size
and modification time of every source file, and computed again when one of these has changed.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from dgpt2_quant.core.atomic_file import explain_errors, output_file
from dgpt2_quant.core.cache_folder import cache_folder, cache_version, read_entry, touch
from dgpt2_quant.core.errors import OutputError, UsageError
from dgpt2_quant.core.gguf_file import require_file
from dgpt2_quant.core.progress import Progress, Stages
from dgpt2_quant.core.quant_types import DEFAULT_TYPE, QuantType, find_type, find_types
from dgpt2_quant.quantize.checkpoint.folder import source_files, source_sha256
from dgpt2_quant.quantize.checkpoint.resolve import DEFAULT_MODEL, Source, is_gguf_name, resolve

from .file_record import KeptFiles

_log = logging.getLogger(__name__)
_in_use: set[Path] = set()  # files that this process was given: the cache's limit does not remove them


@dataclass(frozen=True)
class StoredModel:
    """The files of one model by quant type, and the hash of their source (`source_sha256`)."""

    name: str
    source_sha256: str
    files: dict[QuantType, Path]


def model_file(
    model: str = DEFAULT_MODEL,
    *,
    type: str | QuantType | None = None,
    revision: str | None = None,
    offline: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> tuple[str, Path]:
    """The model's name and a GGUF file of it: `model` itself if it is one, or else a file from the cache.

    A file that is missing there is converted; `announce` is then called with a sentence. Raises `DgptQuantError`.
    """
    if is_gguf_name(model):
        path = require_file(Path(model))
        if revision is not None:
            raise UsageError(f"`revision` cannot be combined with a file: {model}", "Omit one of them.")
        if type is not None:
            raise UsageError(f"`type` cannot be combined with a file: {model}", "Omit one of them.")
        return path.stem, path
    quant_type = find_type(type or DEFAULT_TYPE)
    stored = model_files(
        model,
        types=[quant_type],
        revision=revision,
        offline=offline,
        threads=threads,
        progress=progress,
        announce=announce,
    )
    return stored.name, stored.files[quant_type]


def model_files(
    model: str = DEFAULT_MODEL,
    *,
    types: Sequence[str | QuantType],
    revision: str | None = None,
    offline: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> StoredModel:
    """The model's files of several types. Missing and damaged ones are converted in one reading of the source.

    Raises `DgptQuantError`, including `UsageError` for a type that needs an importance matrix.
    """
    wanted = find_types(types)
    for quant_type in wanted:
        if quant_type.needs_imatrix:
            raise UsageError(
                f"{quant_type} needs an importance matrix",
                f"Convert it first, with `dgpt2-quant convert -t {quant_type.name.lower()} --calibrate TEXTFILE`.",
            )
    source = resolve(model, revision=revision, offline=offline, prefer_cache=True)
    sha256 = remembered_sha256(source.folder, source.weights)
    if source.adapters:
        from dgpt2_quant.quantize.checkpoint.lora import merged_sha256, read_adapter

        sha256 = merged_sha256(sha256, [read_adapter(folder, weight) for folder, weight in source.adapters])
    key = "-".join(filter(None, [source.name, sha256[:16], source.commit and source.commit[:12]]))
    folder = cache_folder() / "models" / key / f"stock-{cache_version()}"
    files = {quant_type: folder / quant_type.file_name(source.name) for quant_type in wanted}
    kept = KeptFiles(folder)
    if not all(map(kept.is_unchanged, files.values())):
        if all(map(kept.is_whole, files.values())):  # copied, or on a read-only disk
            kept.record(dict.fromkeys(files.values()))
        else:
            try:
                _convert_missing(source, files, sha256, threads, progress, announce)
            except OutputError as error:
                raise OutputError(error.message, "Set DGPT2_QUANT_CACHE to a folder with free space.") from error
    for path in files.values():
        touch(path)
    _in_use.update(files.values())
    return StoredModel(source.name, sha256, files)


def remembered_sha256(folder: Path, weights: Path | None = None) -> str:
    """`source_sha256` of a checkpoint, stored for as long as its files do not change."""
    folder = folder.resolve()
    files = source_files(folder, weights)
    stamp = [[path.name, (status := path.stat()).st_size, status.st_mtime_ns] for path in files]
    memo = cache_folder() / "sources" / f"{hashlib.sha256(os.fsencode(weights or folder)).hexdigest()[:32]}.json"

    def parse(path: Path) -> str | None:
        known = json.loads(path.read_bytes())
        if not isinstance(known["sha256"], str):
            raise ValueError("no hash")
        fresh = (known["files"], known.get("cache_version")) == (stamp, cache_version())
        return str(known["sha256"]) if fresh else None

    if found := read_entry(memo, parse):
        return found
    sha256 = source_sha256(folder, weights)
    document = {"folder": str(folder), "files": stamp, "cache_version": cache_version(), "sha256": sha256}
    with suppress(OutputError), output_file(memo, overwrite=True) as file:  # it only saves time
        file.write(json.dumps(document).encode())
    return sha256


def _convert_missing(
    source: Source,
    files: dict[QuantType, Path],
    sha256: str,
    threads: int | None,
    progress: Progress | None,
    announce: Callable[[str], None] | None,
) -> None:
    # imported late: a run from the cache does not need them
    from dgpt2_quant.quantize.checkpoint.source import CheckpointModel
    from dgpt2_quant.quantize.convert import prepare
    from dgpt2_quant.quantize.recipes.plan import make_plan
    from dgpt2_quant.quantize.write import write_files

    from .cache_entries import converted_limit, enforce_limit
    from .conversion_lock import conversion_lock

    limit = converted_limit()
    folder = next(iter(files.values())).parent
    names = ", ".join(quant_type.name for quant_type in files)
    with ExitStack() as held:
        with explain_errors(folder):
            held.enter_context(conversion_lock(folder, f"{source.name} to {names}"))
        kept = KeptFiles(folder)  # read again: another process may have converted it
        missing = {quant_type: path for quant_type, path in files.items() if not kept.is_whole(path)}
        if missing:
            damaged = [path for path in missing.values() if os.path.lexists(path)]
            for path in damaged:
                _log.warning("%s is damaged and is converted again", path)
            if announce:
                announce(f"Converting {source.name} to {', '.join(t.name for t in missing)}, kept in {folder}")
            model = CheckpointModel(source)
            plans = {path: make_plan(model, quant_type) for quant_type, path in missing.items()}
            written = write_files(
                model,
                plans,
                prepare(model, plans, stages=Stages(progress)),
                threads=threads,
                overwrite=bool(damaged),
                known_sha256=sha256,
            )
            kept.record({Path(file.path): file.sha256 for file in written})
    if missing:
        enforce_limit(limit, _in_use | set(files.values()))
