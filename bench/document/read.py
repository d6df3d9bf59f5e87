"""Reads and validates a `bench.json`, which may come from another machine, another version, or an editor.

Each key is checked against the TypedDicts in `schema.py`; other keys are dropped. Ranges are checked where the report
and the comparison depend on them: they divide by sizes and speeds, and draw logarithms.
"""

import json
import math
import stat
import types
import typing
from pathlib import Path
from typing import Any

from dgpt2_quant.core.errors import ResultError

from .format_numbers import label
from .schema import SCHEMA_VERSION, BenchJson

_LARGEST_FILE = 64 << 20  # bytes; 35 files with their worst tokens and pairs take less than 1 MB
_LARGEST_NUMBER = 1e15
_SMALLEST_POSITIVE = 1e-9  # far below any speed, size or perplexity; its logarithm and quotients are finite
_LARGEST_KLD = 1e6  # nats; logits are at most some hundreds
_SMALLEST_KLD = 1e-30  # nats, of a mean, which is drawn on a logarithmic axis
_HINT = "Name a bench.json that `dgpt2-quant bench` wrote."
_SIGNED = {"mean_dp", "nll_correlation", "kld_difference", "nll_difference"}
_POSITIVE = {
    "bytes",
    "parameters",
    "bits_per_weight",
    "perplexity",
    "ppl_ratio",
    "context",
    "batch",
    "prompt_tps",
    "decode_tps",
    "prompt_ratio",
    "decode_ratio",
    "tps",
}
_KLD = {
    "kld",
    "kld_mean",
    "kld_stderr",
    "kld_interval",
    "kld_median",
    "kld_p90",
    "kld_p95",
    "kld_p99",
    "kld_p999",
    "kld_max",
    "kld_difference",
}
_NOT_ABOVE_ONE = {"top1_agreement", "reference_p", "level_p"}


def read_document(path: Path) -> BenchJson:
    """The document of a file. Raises `ResultError` that names the file and the key."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ResultError(f"{path} is not a bench.json: it is not a JSON object", _HINT)
    version = content.get("schema_version")
    if type(version) is not int:
        raise ResultError(f"{path} is not a bench.json: it lacks schema_version", _HINT)
    if version > SCHEMA_VERSION:
        raise ResultError(
            f"{path} has schema version {version}; this version of dgpt2-quant reads up to {SCHEMA_VERSION}",
            "Install the version of dgpt2-quant that wrote it.",
        )
    document: BenchJson = checked(content, BenchJson, path, "")
    seen: dict[tuple[str, str], int] = {}
    for index, result in enumerate(document["results"]):
        if (first := seen.setdefault((result["type"], result["recipe"]), index)) != index:
            raise _wrong(path, f"results[{index}]", f"is {label(result)}, and so is results[{first}]")
        if result["run"] >= len(document["runs"]):
            raise _wrong(path, f"results[{index}].run", f"is {result['run']}, but there are {len(document['runs'])}")
    if not document["results"]:
        raise _wrong(path, "results", "is empty")
    return document


def read_json(path: Path, hint: str = _HINT) -> Any:
    """The content of a JSON file. Raises `ResultError`."""
    if str(path) == "-":
        raise ResultError("results cannot be read from stdin", hint)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ResultError(f"{path} is a folder", f"Name the file in it: {path / 'bench.json'}")
        if not stat.S_ISREG(mode):  # reading a pipe without a writer would never end
            raise ResultError(f"{path} is not a regular file", hint)
        with path.open("rb") as file:
            text = file.read(_LARGEST_FILE + 1)
        if len(text) > _LARGEST_FILE:
            raise ResultError(f"{path} is too large: it has more than {_LARGEST_FILE >> 20} MiB")
        return json.loads(text.decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ResultError(f"there is no file {path}", hint) from None
    except OSError as error:
        raise ResultError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # a null byte in the name is a ValueError too
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise ResultError(f"{path} is not valid JSON: {reason}", hint) from error


def checked(value: Any, hint: Any, path: Path, where: str, key: str = "") -> Any:
    """The value with only the keys of its type, a `TypedDict`; `key` is the last key of its path `where`.

    Raises `ResultError` for a value of another type or out of range."""
    if typing.is_typeddict(hint):
        hints = typing.get_type_hints(hint)
        if not isinstance(value, dict):
            raise _wrong(path, where, "is not an object")
        if missing := [name for name in hints if name in hint.__required_keys__ and name not in value]:
            raise ResultError(
                f"{path} lacks {where}{'.' if where else ''}{missing[0]}: it is incomplete, or of an older version",
                "Make it again with this version of dgpt2-quant.",
            )
        names = {name: f"{where}.{name}" if where else name for name in hints}
        ranged = key if key in _SIGNED | _POSITIVE | _KLD else ""  # intervals and rates have the range of their figure
        return {
            name: checked(value[name], of, path, names[name], ranged or name)
            for name, of in hints.items()
            if name in value
        }
    if typing.get_origin(hint) is list:
        if not isinstance(value, list):
            raise _wrong(path, where, "is not a list")
        (of,) = typing.get_args(hint)
        return [checked(item, of, path, f"{where}[{index}]", key) for index, item in enumerate(value)]
    if isinstance(hint, types.UnionType):
        (of,) = (part for part in typing.get_args(hint) if part is not type(None))
        return None if value is None else checked(value, of, path, where, key)
    if hint is str:
        if not isinstance(value, str) or not _is_unicode(value):
            raise _wrong(path, where, "is not a text")
        return value
    if hint is bool:
        if not isinstance(value, bool):
            raise _wrong(path, where, "is not true or false")
        return value
    return _number(value, hint, path, where, key)


def _number(value: Any, hint: Any, path: Path, where: str, key: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int if hint is int else int | float):
        raise _wrong(path, where, f"is not {'an integer' if hint is int else 'a number'}")
    if abs(value) > _LARGEST_NUMBER or not math.isfinite(value):
        raise _wrong(path, where, "is out of range")
    if (value < 0 and key not in _SIGNED) or (value == 0 and key in _POSITIVE) or (value > 1 and key in _NOT_ABOVE_ONE):
        raise _wrong(path, where, f"is {value}, which is impossible")
    if key in _POSITIVE and value < _SMALLEST_POSITIVE:
        raise _wrong(path, where, f"must be {_SMALLEST_POSITIVE:g} or more, not {value}")
    if key in _KLD and abs(value) > _LARGEST_KLD:
        raise _wrong(path, where, f"must be at most {_LARGEST_KLD:g} nats, not {value}")
    if key == "kld_mean" and 0 < value < _SMALLEST_KLD:
        raise _wrong(path, where, f"must be 0, or {_SMALLEST_KLD:g} nats or more, not {value}")
    return value


def _is_unicode(text: str) -> bool:
    """Whether UTF-8 can encode it: not for half of a surrogate pair, which JSON can spell."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _wrong(path: Path, where: str, what: str) -> ResultError:
    return ResultError(f"{path} is not valid: {where or 'the document'} {what}")
