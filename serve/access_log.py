"""The access log: one line for each request, with its counts and times, never with text."""

import json
import sys
from datetime import UTC, datetime
from typing import TextIO
from urllib.parse import quote

from dgpt2_quant.serve.calls.call import Call

_PATH, _METHOD = 100, 20  # characters that are shown


class AccessLog:
    """Writes lines to `stream` (default: stderr), for people or, `as_json`, for programs."""

    def __init__(self, *, as_json: bool = False, stream: TextIO | None = None) -> None:
        self.as_json, self.stream = as_json, stream

    def write(self, call: Call, method: str, path: str, status: int) -> None:
        shown = quote(path[:_PATH], safe="/:?")
        found = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": call.id,
            "method": method[:_METHOD],
            "path": shown,
            "status": status,
            "model": call.model,
            "prompt_tokens": call.prompt_tokens,
            "cached_tokens": call.cached_tokens,
            "completion_tokens": call.completion_tokens,
            "queue_ms": _ms(call.queue_seconds),
            "first_token_ms": _ms(call.first_token_seconds),
            "total_ms": _ms(call.seconds),
        }
        line = json.dumps(found) if self.as_json else _for_people(found)
        print(line, file=self.stream or sys.stderr, flush=True)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(1000 * seconds, 1)


def _for_people(found: dict[str, object]) -> str:
    parts = [f"{found['time']} {found['method']} {found['path']} {found['status']}"]
    if found["model"]:
        parts.append(f"{found['model']} {found['prompt_tokens']}+{found['completion_tokens']} tokens")
    if found["first_token_ms"] is not None:
        parts.append(f"queue {found['queue_ms']} ms, first token {found['first_token_ms']} ms")
    return ", ".join([*parts, f"{found['total_ms']} ms", f"id {found['id']}"])
