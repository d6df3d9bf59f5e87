"""Parses amounts of memory (48MB, 1.5 GiB, 4096) and time (30d, 12h)."""

import re

from .errors import UsageError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(|[kmg]i?)b?", re.IGNORECASE | re.ASCII)

_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 604_800}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|min|h|d|w)", re.IGNORECASE | re.ASCII)


def parse_bytes(text: str) -> int:
    """The number of bytes: 1 MB is 10^6 bytes, 1 MiB is 2^20. Raises `UsageError` for other text."""
    match = _SIZE.fullmatch(text.strip())
    if not match or len(text) > 40:
        raise UsageError(f"{text[:60]!r} is not a size", "Write it like 48MB, 1.5GB, 64MiB or 4096.")
    return round(float(match[1]) * _UNITS[match[2].lower()])


def parse_seconds(text: str) -> float:
    """The number of seconds; the unit is required. Raises `UsageError` for other text."""
    match = _DURATION.fullmatch(text.strip())
    if not match or len(text) > 40:
        raise UsageError(f"{text[:60]!r} is not an amount of time", "Write it like 30d, 12h, 90min or 2w.")
    return float(match[1]) * _SECONDS[match[2].lower()]
