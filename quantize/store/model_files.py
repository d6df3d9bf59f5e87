"""From a model's name to a file that runs: converted once, kept, and found again quickly.

Converted files are kept by the content of the source, the recipe and the code version (`cache.cache_version`). Hashing
352 MB on every start would cost more than loading the model, so the hash is remembered together with path, size and
modification time of every file that went into it, and made again when one of these has changed.
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
from dgpt2_quant.core.cache import cache_folder, cache_version, read_entry, touch
from dgpt2_quant.core.errors import OutputError, UsageError
from dgpt2_quant.core.gguf_file import require_file
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.quant_types import DEFAULT_TYPE, QuantType, find_type, find_types
from dgpt2_quant.quantize.checkpoint.folder import source_files, source_sha256
from dgpt2_quant.quantize.checkpoint.resolve import DEFAULT_MODEL, Source, is_gguf_name, resolve

from .kept_files import KeptFiles

_log = logging.getLogger(__name__)
_in_use: set[Path] = set()  # what this process was handed: the cache's limit does not take it away


@dataclass(frozen=True)
class StoredModel:
    """The files of one model by quant type, and what they were made from (the hash as `source_sha256` makes it)."""

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
    """The model's name and a GGUF file of it: the one named by `model`, or one from the cache (converted if need be).

    `announce` is called with a sentence when something has to be converted. Raises `DgptQuantError`.
    """
    if is_gguf_name(model):
        path = require_file(Path(model))
        if revision is not None:
            raise UsageError(f"{model} is a file, so --revision says nothing", "Leave one of the two out.")
        if type is not None:
            raise UsageError(f"{model} is a file already, so --type says nothing", "Leave one of the two out.")
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
    """The model's files of several types. Those that are missing or damaged are converted in one pass over the source.

    Raises `DgptQuantError`, a `UsageError` among them for a type that needs an importance matrix.
    """
    wanted = find_types(types)
    for quant_type in wanted:
        if quant_type.needs_imatrix:
            raise UsageError(
                f"{quant_type} needs an importance matrix",
                f"Make the file first, with `dgpt2-quant convert -t {quant_type.name.lower()} --calibrate TEXTFILE`.",
            )
    source = resolve(model, revision=revision, offline=offline, prefer_cache=True)
    sha256 = remembered_sha256(source.folder)
    key = "-".join(filter(None, [source.name, sha256[:16], source.commit and source.commit[:12]]))
    folder = cache_folder() / "models" / key / f"stock-{cache_version()}"
    files = {quant_type: folder / quant_type.file_name(source.name) for quant_type in wanted}
    kept = KeptFiles(folder)
    if not all(map(kept.is_unchanged, files.values())):
        if all(map(kept.is_whole, files.values())):  # copied, or on a disk that may only be read
            kept.record(dict.fromkeys(files.values()))
        else:
            try:
                _convert_missing(source, files, sha256, threads, progress, announce)
            except OutputError as error:
                raise OutputError(error.message, "Set DGPT2_QUANT_CACHE to a folder with room.") from error
    for path in files.values():
        touch(path)
    _in_use.update(files.values())
    return StoredModel(source.name, sha256, files)


def remembered_sha256(folder: Path) -> str:
    """`source_sha256` of a checkpoint folder, remembered for as long as its files do not change."""
    folder = folder.resolve()
    stamp = [[path.name, (status := path.stat()).st_size, status.st_mtime_ns] for path in source_files(folder)]
    memo = cache_folder() / "sources" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.json"

    def parse(path: Path) -> str | None:
        known = json.loads(path.read_bytes())
        if not isinstance(known["sha256"], str):
            raise ValueError("no hash")
        return (
            str(known["sha256"]) if (known["files"], known.get("cache_version")) == (stamp, cache_version()) else None
        )

    if found := read_entry(memo, parse):
        return found
    sha256 = source_sha256(folder)
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
    # imported late: a run from the cache needs none of them
    from dgpt2_quant.quantize.checkpoint.source import CheckpointModel
    from dgpt2_quant.quantize.convert import write_files
    from dgpt2_quant.quantize.recipes.plan import make_plan

    from .cache_entries import converted_limit, enforce_limit
    from .conversion_lock import conversion_lock

    limit = converted_limit()
    folder = next(iter(files.values())).parent
    names = ", ".join(quant_type.name for quant_type in files)
    with ExitStack() as held:
        with explain_errors(folder):
            held.enter_context(conversion_lock(folder, f"{source.name} to {names}"))
        kept = KeptFiles(folder)  # anew: another process may have converted meanwhile
        missing = {quant_type: path for quant_type, path in files.items() if not kept.is_whole(path)}
        if missing:
            damaged = [path for path in missing.values() if os.path.lexists(path)]
            for path in damaged:
                _log.warning("%s is damaged, and is made again", path)
            if announce:
                announce(f"Converting {source.name} to {', '.join(t.name for t in missing)}, kept in {folder}")
            model = CheckpointModel(source)
            plans = {path: make_plan(model, quant_type) for quant_type, path in missing.items()}
            made = write_files(
                model, plans, threads=threads, overwrite=bool(damaged), progress=progress, known_sha256=sha256
            )
            kept.record({Path(file.path): file.sha256 for file in made})
    if missing:
        enforce_limit(limit, _in_use | set(files.values()))
