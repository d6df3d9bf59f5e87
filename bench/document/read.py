"""A `bench.json` read without trust: it may come from another machine, another version, or an editor.

The shape is that of the TypedDicts in `schema.py`, checked key by key; keys that are not in them are left out. Ranges
are checked as far as the report and the comparison rely on them: they divide by sizes and speeds, and draw logarithms.
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

_LARGEST_FILE = 64 << 20  # bytes; 35 levels with their worst tokens and pairs are below 1 MB
_LARGEST_NUMBER = 1e15
_SMALLEST_POSITIVE = 1e-9  # far below any speed, size or perplexity; a logarithm and a quotient of it are sound
_LARGEST_KLD = 1e6  # nats; logits are some hundreds at most
_SMALLEST_KLD = 1e-30  # nats; of a mean, which is drawn on a logarithmic axis. Float64 rounds at 1e-16
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
    """Raises `ResultError` that names the file and the key."""
    content = _read(path)
    if not isinstance(content, dict):
        raise ResultError(f"{path} is not a bench.json: it holds no JSON object", "Name what `bench` wrote.")
    version = content.get("schema_version")
    if type(version) is not int:
        raise ResultError(f"{path} is not a bench.json: it has no schema_version", "Name what `bench` wrote.")
    if version > SCHEMA_VERSION:
        raise ResultError(
            f"{path} has the schema version {version}; this dgpt2-quant knows those up to {SCHEMA_VERSION}",
            "Install the version of dgpt2-quant that wrote it.",
        )
    document: BenchJson = _checked(content, BenchJson, path, "")
    levels: dict[tuple[str, str], int] = {}
    for index, result in enumerate(document["results"]):
        if (first := levels.setdefault((result["type"], result["recipe"]), index)) != index:
            raise _wrong(path, f"results[{index}]", f"is {label(result)}, and so is results[{first}]")
        if result["run"] >= len(document["runs"]):
            raise _wrong(path, f"results[{index}].run", f"is {result['run']}, but there are {len(document['runs'])}")
    if not document["results"]:
        raise _wrong(path, "results", "is empty")
    return document


def _read(path: Path) -> Any:
    if str(path) == "-":
        raise ResultError("results cannot be read from stdin", "Name a bench.json that `bench` wrote.")
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ResultError(f"{path} is a folder", f"Name the file in it: {path / 'bench.json'}")
        if not stat.S_ISREG(mode):  # a pipe that nobody writes to would be waited for without end
            raise ResultError(f"{path} is no regular file", "Name a bench.json that `bench` wrote.")
        with path.open("rb") as file:
            text = file.read(_LARGEST_FILE + 1)
        if len(text) > _LARGEST_FILE:
            raise ResultError(f"{path} is not a bench.json: it has more than {_LARGEST_FILE >> 20} MiB")
        return json.loads(text.decode("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ResultError(f"there is no file {path}", "Name a bench.json that `bench` wrote.") from None
    except OSError as error:
        raise ResultError(f"{path} can not be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # a null byte in the name is a ValueError too
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise ResultError(f"{path} is not sound JSON: {reason}", "Name a bench.json that `bench` wrote.") from error


def _checked(value: Any, hint: Any, path: Path, where: str, key: str = "") -> Any:
    """The value, with the keys of the type alone; `key` is the last name on the way to it."""
    if typing.is_typeddict(hint):
        hints = typing.get_type_hints(hint)
        if not isinstance(value, dict):
            raise _wrong(path, where, "is not an object")
        if missing := [name for name in hints if name in hint.__required_keys__ and name not in value]:
            raise ResultError(
                f"{path} has no {where}{'.' if where else ''}{missing[0]}: it is not whole, or of an older version",
                "Measure again with this version of dgpt2-quant.",
            )
        names = {name: f"{where}.{name}" if where else name for name in hints}
        ranged = key if key in _SIGNED | _POSITIVE | _KLD else ""  # what an interval or a rate is of says its range
        return {
            name: _checked(value[name], of, path, names[name], ranged or name)
            for name, of in hints.items()
            if name in value
        }
    if typing.get_origin(hint) is list:
        if not isinstance(value, list):
            raise _wrong(path, where, "is not a list")
        (of,) = typing.get_args(hint)
        return [_checked(item, of, path, f"{where}[{index}]", key) for index, item in enumerate(value)]
    if isinstance(hint, types.UnionType):
        (of,) = (part for part in typing.get_args(hint) if part is not type(None))
        return None if value is None else _checked(value, of, path, where, key)
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
        raise _wrong(path, where, f"is not a {'whole ' if hint is int else ''}number")
    if abs(value) > _LARGEST_NUMBER or not math.isfinite(value):
        raise _wrong(path, where, "is out of range")
    if (value < 0 and key not in _SIGNED) or (value == 0 and key in _POSITIVE) or (value > 1 and key in _NOT_ABOVE_ONE):
        raise _wrong(path, where, f"is {value}, which it can not be")
    if key in _POSITIVE and value < _SMALLEST_POSITIVE:
        raise _wrong(path, where, f"is {value}, which is out of range: it is {_SMALLEST_POSITIVE:g} or more")
    if key in _KLD and abs(value) > _LARGEST_KLD:
        raise _wrong(path, where, f"is {value}, which is out of range: it is {_LARGEST_KLD:g} nats at most")
    if key == "kld_mean" and 0 < value < _SMALLEST_KLD:
        raise _wrong(path, where, f"is {value}, which is out of range: it is 0, or {_SMALLEST_KLD:g} nats or more")
    return value


def _is_unicode(text: str) -> bool:
    """Not so for half of a surrogate pair, which JSON can spell and UTF-8 can not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _wrong(path: Path, where: str, what: str) -> ResultError:
    return ResultError(f"{path} is not a sound bench.json: {where or 'the document'} {what}")
