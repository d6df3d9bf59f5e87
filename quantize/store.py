"""From a model's name to a file that runs: converted once, kept, and found again quickly.

Converted files are kept by the source's content, recipe and tool version. Hashing 352 MB on every start would cost
more than loading the model, so the hash is remembered together with path, size and modification time of every file
that went into it, and made again when one of these has changed.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .checkpoint import source_files, source_sha256
from .errors import OutputError, UsageError
from .gguf_file import require_file
from .metadata import tool_version
from .output_file import explain_errors, output_file
from .progress import Progress
from .quant_types import DEFAULT_TYPE, QuantType, find_type, find_types
from .resolve import DEFAULT_MODEL, Source, is_gguf_name, resolve


@dataclass(frozen=True)
class StoredModel:
    """The files of one model by quant type, and what they were made from (the hash as `source_sha256` makes it)."""

    name: str
    source_sha256: str
    files: dict[QuantType, Path]


def cache_folder() -> Path:
    """$DGPT2_QUANT_CACHE, else $XDG_CACHE_HOME/dgpt2-quant, else ~/.cache/dgpt2-quant."""
    if own := os.environ.get("DGPT2_QUANT_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(base or os.path.expanduser("~/.cache")) / "dgpt2-quant"  # noqa: PTH111  Path.expanduser raises


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

    `announce` is told, in a sentence, when something has to be converted. Raises `DgptQuantError`.
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
    """The model's files of several types, those that are missing converted in one pass over the source.

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
    folder = cache_folder() / "models" / key / f"stock-{tool_version()}"
    files = {quant_type: folder / quant_type.file_name(source.name) for quant_type in wanted}
    if not all(path.is_file() for path in files.values()):
        try:
            _convert_missing(source, files, sha256, threads, progress, announce)
        except OutputError as error:
            raise OutputError(error.message, "Set DGPT2_QUANT_CACHE to a folder with room.") from error
    return StoredModel(source.name, sha256, files)


def remembered_sha256(folder: Path) -> str:
    """`source_sha256` of a checkpoint folder, remembered for as long as its files do not change."""
    folder = folder.resolve()
    stamp = [[path.name, (status := path.stat()).st_size, status.st_mtime_ns] for path in source_files(folder)]
    memo = cache_folder() / "sources" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.json"
    try:
        known = json.loads(memo.read_bytes())
        if known["files"] == stamp and isinstance(known["sha256"], str):
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or a broken one: it is made again
    sha256 = source_sha256(folder)
    with contextlib.suppress(OutputError), output_file(memo, overwrite=True) as file:  # it only saves time
        file.write(json.dumps({"folder": str(folder), "files": stamp, "sha256": sha256}).encode())
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
    from filelock import FileLock

    from .convert import write_files
    from .model_source import CheckpointModel
    from .plan import make_plan

    folder = next(iter(files.values())).parent
    with explain_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        lock.acquire()
    with lock:
        missing = {quant_type: path for quant_type, path in files.items() if not path.is_file()}
        if missing:
            if announce:
                announce(f"Converting {source.name} to {', '.join(t.name for t in missing)}, kept in {folder}")
            model = CheckpointModel(source)
            plans = {path: make_plan(model, quant_type) for quant_type, path in missing.items()}
            write_files(model, plans, threads=threads, progress=progress, known_sha256=sha256)
