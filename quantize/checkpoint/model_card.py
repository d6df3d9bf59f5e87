"""What a checkpoint's model card (`README.md`) states in its front matter, as far as we read it."""

import re
from pathlib import Path

_FIRST_ITEM = r"[ \t]*(?:\r?\n[ \t]*-[ \t]*|\[[ \t]*)?"  # of a list in YAML, in either notation


def card_license(folder: Path) -> str | None:
    """The SPDX name of the license."""
    return _stated(folder, r"license:[ \t]*[\"']?(\w[\w.+-]*)")


def card_base_model(folder: Path) -> str | None:
    """The model that this one was made from, the first where there are several: `owner/name`, or a path."""
    found = _stated(folder, rf"base_model:{_FIRST_ITEM}[\"']?([\w./~+-]*\w)")
    return None if found in ("null", "None") else found


def _stated(folder: Path, pattern: str) -> str | None:
    try:
        text = (folder / "README.md").read_text("utf-8", errors="replace")
    except OSError:  # there is none; or it cannot be read, and hashing the source reports that
        return None
    front = re.match(r"---\r?\n(.*?)\n---", text, re.DOTALL)
    found = re.search(f"^{pattern}", front[1], re.MULTILINE) if front else None
    return found[1] if found else None
