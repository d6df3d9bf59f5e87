"""The record of a job, next to its output: how far it is, and everything that its bytes depend on."""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from dgpt2_quant.core.atomic_file import output_file
from dgpt2_quant.core.errors import OutputError
from dgpt2_quant.core.json_text import to_json_text

_FORMAT = 1
_EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of no bytes
WORDS = {  # those that are not parameters
    "model": "model",
    "model_sha256": "content of the model",
    "version": "version of dgpt2-quant",
    "llama_cpp": "build of llama.cpp",
    "instructions": "instruction set",
}


def this_process() -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()}, since {since}"


@dataclass
class Part:
    """The bytes of a file so far, their hash, and the number of lines in them."""

    lines: int = 0
    bytes: int = 0
    sha256: str = _EMPTY


@dataclass
class Record:
    """`job` maps what the output depends on to its value; `input` is the part of the input that is answered."""

    job: dict[str, Any]
    input: Part = field(default_factory=Part)
    output: Part = field(default_factory=Part)
    errors: Part = field(default_factory=Part)
    failed: int = 0
    tokens: int = 0
    finished: bool = False
    process: str = field(default_factory=this_process)

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The record in a file; None if there is no such file. Raises `OutputError` for another content."""
        try:
            known = json.loads(path.read_bytes())
            if known.pop("format") != _FORMAT:
                raise ValueError("another format")
            known |= {name: Part(**known[name]) for name in ("input", "output", "errors")}
            found = cls(**known)
            parts = (found.input, found.output, found.errors)
            counts = [number for part in parts for number in (part.lines, part.bytes)]
            if not isinstance(found.job, dict) or not all(type(number) is int and number >= 0 for number in counts):
                raise TypeError
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise OutputError(
                f"{path} is not the record of a job that this version can continue",
                "Begin anew with `restart`, or choose another `output`.",
            ) from error
        return found

    def write(self, path: Path) -> None:
        """Replaces the file. Raises `OutputError`."""
        with output_file(path, overwrite=True) as file:
            file.write((to_json_text({"format": _FORMAT, **asdict(self)}) + "\n").encode())

    def require_same(self, job: dict[str, Any], output: Path) -> None:
        """Raises `OutputError` with the name of what differs from `job`."""
        for name in {**self.job, **job}:
            before, now = self.job.get(name), job.get(name)
            if before != now:
                raise OutputError(
                    f"{output} was begun with another {WORDS.get(name, f'`{name}`')}: {_shown(before)},"
                    f" not {_shown(now)}",
                    "Run it as it was begun, begin anew with `restart`, or choose another `output`.",
                )


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
