"""The texts that importance is collected on, and levels are compared on."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from .errors import ModelNotFoundError, UsageError

BUNDLED = {"evaluation": "evaluation.txt", "calibration": "calibration.txt"}


@dataclass(frozen=True)
class NamedText:
    """A text, and the hash of its bytes."""

    name: str
    sha256: str
    text: str


def load_text(text: str | Path = "evaluation") -> NamedText:
    """A bundled text by name, or any UTF-8 file.

    Raises `ModelNotFoundError` for a missing file, `UsageError` for one that is not UTF-8.
    """
    path = Path(text)
    try:
        if str(text) in BUNDLED and not path.is_file():
            data, name = files("dgpt2_quant.demo").joinpath(BUNDLED[str(text)]).read_bytes(), str(text)
        else:
            data, name = path.read_bytes(), path.name
    except (OSError, ValueError) as error:  # none there, no permission, a name too long, a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise ModelNotFoundError(
            f"there is no text {str(text)[:200]!r} ({reason})", f"Name a file, or one of: {', '.join(BUNDLED)}."
        ) from error
    try:
        return NamedText(name, hashlib.sha256(data).hexdigest(), data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error}", "Convert it, for example with iconv.") from error
