"""`dgpt2-quant cache`: lists or clears the cache."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import JsonOption
from .output import megabytes, note, print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dgpt2_quant.quantize.store.cache_entries import CacheEntry


def cache(
    action: Annotated[
        str, typer.Argument(metavar="ls|clear", help="ls: list the entries; clear: remove them.", show_default=True)
    ] = "ls",
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than", metavar="AGE", help="Only entries that were not used for this time: 30d, 12h, 90min."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what clear would remove, and remove nothing.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """List or clear the cache.

    The cache has converted models, calibrations, measured effects, reference logits, downloaded data sets, hashes, and
    what an interrupted conversion with recipe lean continues from.
    It is in DGPT2_QUANT_CACHE, by default ~/.cache/dgpt2-quant. Other files in it are never removed. When converted
    models exceed DGPT2_QUANT_CACHE_LIMIT (default 10GB), the least recently used are removed.

    Example: dgpt2-quant cache clear --older-than 30d
    """
    from dgpt2_quant.core.cache_folder import cache_folder
    from dgpt2_quant.core.errors import UsageError
    from dgpt2_quant.core.sizes import parse_seconds
    from dgpt2_quant.quantize.store.cache_entries import cache_entries, clear_cache, converted_limit

    age = None if older_than is None else parse_seconds(older_than)
    if action == "ls":
        if dry_run:
            raise UsageError("--dry-run needs clear, not ls", "Omit --dry-run: ls removes nothing.")
        entries = [e for e in cache_entries() if age is None or time.time() - e.last_used >= age]
        document = {"folder": str(cache_folder()), "limit": converted_limit(), **_document(entries)}
        end = f"{megabytes(sum(e.bytes for e in entries))} in {len(entries)} files in {cache_folder()}"
    elif action == "clear":
        cleared = clear_cache(age, dry_run=dry_run)
        entries = cleared.removed
        for folder in cleared.busy:
            note(f"{folder} is not cleared: a running conversion uses it")
        document = {"folder": str(cache_folder()), "dry_run": dry_run, **_document(entries)}
        done = "Would remove" if dry_run else "Removed"
        end = f"{done} {megabytes(sum(e.bytes for e in entries))} in {len(entries)} files from {cache_folder()}"
    else:
        raise UsageError(f"the action must be ls or clear, not {action!r}", "`dgpt2-quant cache ls` lists the entries.")
    if json:
        print_json(document)
        return
    if entries and (action == "ls" or dry_run):
        _print(entries)
    typer.echo(end)


def _document(entries: "Sequence[CacheEntry]") -> dict[str, Any]:
    rows = [{**vars(entry), "path": str(entry.path)} for entry in entries]
    return {"bytes": sum(entry.bytes for entry in entries), "entries": rows}


def _print(entries: "Sequence[CacheEntry]") -> None:
    rows = [
        [
            e.kind,
            e.model or "-",
            e.type or "-",
            megabytes(e.bytes),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(e.last_used)),
            str(e.path),
        ]
        for e in entries
    ]
    print_table(["kind", "model", "type", "size", "last used", "file"], rows)
    typer.echo("")
