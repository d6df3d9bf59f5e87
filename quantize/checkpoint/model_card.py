"""Reads license and base model from the front matter of a model card (`README.md`)."""

import re
from pathlib import Path

_FIRST_ITEM = r"[ \t]*(?:\r?\n[ \t]*-[ \t]*|\[[ \t]*)?"  # of a YAML list, in block or flow style


def card_license(folder: Path) -> str | None:
    """The SPDX identifier of the license."""
    return _stated(folder, r"license:[ \t]*[\"']?(\w[\w.+-]*)")


def card_base_model(folder: Path) -> str | None:
    """The base model, the first of several: `owner/name`, or a path."""
    found = _stated(folder, rf"base_model:{_FIRST_ITEM}[\"']?([\w./~+-]*\w)")
    return None if found in ("null", "None") else found


def _stated(folder: Path, pattern: str) -> str | None:
    try:
        text = (folder / "README.md").read_text("utf-8", errors="replace")
    except OSError:  # missing; or unreadable, which hashing the source reports
        return None
    front = re.match(r"---\r?\n(.*?)\n---", text, re.DOTALL)
    found = re.search(f"^{pattern}", front[1], re.MULTILINE) if front else None
    return found[1] if found else None
