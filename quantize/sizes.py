"""Amounts of memory as people write them: 48MB, 1.5 GiB, 4096."""

import re

from .errors import UsageError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(|[kmg]i?)b?", re.IGNORECASE | re.ASCII)


def parse_bytes(text: str) -> int:
    """The number of bytes: MB are millions, MiB are 1,048,576. Raises `UsageError` for what is no amount."""
    match = _SIZE.fullmatch(text.strip())
    if not match or len(text) > 40:
        raise UsageError(f"{text[:60]!r} is no size", "Write it like 48MB, 1.5GB, 64MiB or 4096.")
    return round(float(match[1]) * _UNITS[match[2].lower()])
