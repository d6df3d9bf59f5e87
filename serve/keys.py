"""The file of API keys."""

from pathlib import Path

from dgpt2_quant.core.errors import UsageError


def read_keys(path: Path) -> tuple[str, ...]:
    """The keys of a file, one on each line; lines that begin with # are comments. Raises `UsageError`."""
    try:
        lines = [line.strip() for line in path.expanduser().read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the file of API keys cannot be read: {error}") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise UsageError(f"{path} has no API key", "Write one on each line, for instance by `openssl rand -hex 24`.")
    if not all(33 <= ord(letter) <= 126 for key in keys for letter in key):
        raise UsageError(f"a key in {path} has characters that cannot be sent in a header", "Use ASCII without spaces.")
    return keys
