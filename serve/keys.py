"""The file of API keys."""

from pathlib import Path

from dgpt2_quant.core.errors import UsageError


def read_keys(path: Path) -> tuple[str, ...]:
    """The keys of a file, one on each line; lines that begin with # are comments. Raises `UsageError`."""
    try:
        lines = path.expanduser().read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the file of API keys cannot be read: {error}") from error
    keys = tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    if not keys:
        raise UsageError(f"{path} has no API key", "Write one on each line, for instance by `openssl rand -hex 24`.")
    return keys
