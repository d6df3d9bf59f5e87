"""Expands `~` in every path that a user names."""

import os
from pathlib import Path


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path with a leading `~` or `~user` expanded; an unknown user is left as written."""
    return Path(os.path.expanduser(path))  # noqa: PTH111  Path.expanduser raises if there is no home
