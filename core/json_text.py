"""JSON output: UTF-8, and null for NaN and infinity."""

import json
import math
from typing import Any


def to_json_text(document: Any) -> str:
    """Encodes a document with indents, without a final newline; NaN and infinity become null."""
    return json.dumps(_finite(document), ensure_ascii=False, indent=2, allow_nan=False)


def to_json_line(document: Any) -> str:
    """Encodes a document on one line, without a newline; NaN and infinity become null."""
    return json.dumps(_finite(document), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
