"""Artifacts of a workflow as folders: what upload-artifact v4 and later and download-artifact do, without GitHub."""

import fnmatch
import shutil
from pathlib import Path
from typing import Any


class ArtifactError(Exception):
    """An artifact or a file that is not there, or that is there twice."""


def upload(store: Path, workspace: Path, inputs: dict[str, Any]) -> list[str]:
    """Copies a file, a folder's content or what a pattern finds to a new artifact; the names copied."""
    name, path = inputs["name"], inputs["path"].strip()
    target = store / name
    if target.exists():
        raise ArtifactError(f"an artifact {name} was uploaded already")
    if "\n" in path:
        raise ArtifactError(f"one path for each artifact, not {path!r}")
    found = workspace / path
    files = sorted(found.iterdir() if found.is_dir() else workspace.glob(path))
    if not files:
        raise ArtifactError(f"there is no file {path} to upload")
    target.mkdir(parents=True)
    for file in files:
        _copy(file, target)
    return [file.name for file in files]


def download(store: Path, workspace: Path, inputs: dict[str, Any]) -> list[str]:
    """Copies the artifact of that name, or all that fit the pattern, into `path`; the artifacts' names.

    Each has a folder of its own there, unless it was named or `merge-multiple` is set.
    """
    pattern = inputs.get("name") or inputs.get("pattern") or "*"
    there = sorted(store.iterdir()) if store.exists() else []
    chosen = [artifact for artifact in there if fnmatch.fnmatchcase(artifact.name, pattern)]
    if not chosen and "name" in inputs:
        raise ArtifactError(f"there is no artifact {pattern}")
    for artifact in chosen:
        flat = "name" in inputs or inputs.get("merge-multiple")
        target = workspace / inputs.get("path", ".") / ("" if flat else artifact.name)
        target.mkdir(parents=True, exist_ok=True)
        for file in artifact.iterdir():
            if (target / file.name).exists():  # GitHub takes one of them, which one is open
                raise ArtifactError(f"{file.name} is in two artifacts; one would replace the other")
            _copy(file, target)
    return [artifact.name for artifact in chosen]


def _copy(source: Path, folder: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, folder / source.name)
    else:
        shutil.copyfile(source, folder / source.name)
