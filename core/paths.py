"""Paths as people write them: the one place where `~` is expanded, for every path that a user names."""

import os
from pathlib import Path


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path with a leading `~` or `~user` expanded; a user that does not exist stays as it is written."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path.expanduser raises where there is no home
