"""Reads a line of a job: plain (`{"prompt": ...}`, `{"task": ...}`) or OpenAI's (`{"custom_id", "url", "body"}`).

Each kind of line is a class: `texts` are the texts to generate for it, `answer` makes its result.
"""

import json
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NoReturn, Protocol

from dgpt2_quant.core.errors import DgptQuantError
from dgpt2_quant.runtime import Completion, Model
from dgpt2_quant.runtime.request import Prompt

from .lines import Line

Text = tuple[Prompt, dict[str, Any]]
"""A prompt, and the options of `Model.new_sequence`."""

Kinds = Mapping[str, tuple[type, ...]]
"""The types that a field may have, by name; `object`: any, which the library checks."""
TEXT, INTEGER, NUMBER, FLAG, LIST = (str,), (int,), (float, int), (bool,), (list,)
TEXT_OR_LIST, OBJECT, ANY = (str, list), (dict,), (object,)
_LONGEST = 500  # characters of a message: some repeat the value, which may have 1 MiB
_DEEPEST = 100  # lists and objects in each other: Python could not write an answer with an `id` of 1,000
_WORDS = {str: "a text", int: "an integer", float: "a number", bool: "true or false", list: "a list", dict: "an object"}


class BadLineError(Exception):
    """A line that cannot be answered: the reason, a word for programs, and the field."""

    def __init__(self, message: str, code: str = "invalid_value", param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.code, self.param = message, code, param

    def to_json(self) -> dict[str, Any]:
        return {"code": self.code, "message": self.message, "param": self.param}


class Request(Protocol):
    """The work of a line."""

    def texts(self, model: Model) -> Sequence[Text]:
        """The texts to generate. Those without a seed get one from the number of the line."""

    def answer(self, model: Model, found: Sequence[Completion]) -> dict[str, Any]:
        """The result, from the completions of `texts`."""


def read_object(line: Line) -> dict[str, Any]:
    """The JSON object of a line. Raises `BadLineError`."""
    if line.too_long:
        raise BadLineError(f"a line must have at most {line.too_long} bytes", "line_too_long")
    try:
        text = line.data.decode("utf-8-sig" if line.number == 1 else "utf-8")
        if not text.strip():
            raise BadLineError("the line is empty", "invalid_json")
        data = json.loads(text, parse_constant=_refuse_constant, parse_float=_number)
        if "\\u" in text:
            json.dumps(data, ensure_ascii=False).encode()  # finds surrogates without their partners
    except UnicodeError as error:
        raise BadLineError(f"the line is not UTF-8: {error}", "invalid_json") from None
    except ValueError as error:
        raise BadLineError(f"the line is not JSON: {error}", "invalid_json") from None
    except RecursionError:
        raise _too_deep() from None
    if text.count("[") + text.count("{") > _DEEPEST:
        inside = [data]
        for _ in range(_DEEPEST):
            containers = (one.values() if isinstance(one, dict) else one for one in inside)
            inside = [item for items in containers for item in items if isinstance(item, dict | list)]
        if inside:
            raise _too_deep()
    if not isinstance(data, dict):
        raise BadLineError("the line must be a JSON object", "invalid_json")
    return data


def _too_deep() -> BadLineError:
    return BadLineError(f"a line may be nested at most {_DEEPEST} deep", "invalid_json")


def explained(error: Exception) -> BadLineError:
    """Any error as that of a line."""
    if isinstance(error, BadLineError):
        return error
    message, param = getattr(error, "message", None) or f"unexpected {type(error).__name__}: {error}", None
    if message.count("`") > 1:
        param = message.split("`")[1]
    if len(message) > _LONGEST:
        message = f"{message[:_LONGEST]}..."
    if isinstance(error, DgptQuantError):
        too_long = "tokens to fit the context" in message
        return BadLineError(message, "context_length_exceeded" if too_long else "invalid_value", param)
    return BadLineError(message, "internal_error")


def take_fields(
    given: Mapping[str, Any], kinds: Kinds, what: str, refused: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The fields that are not null, each of one of its `kinds`. `refused` maps others that are known to reasons.

    Raises `BadLineError` for a field that is unknown, refused, or of another kind.
    """
    found = {}
    for name, value in given.items():
        if value is None:
            continue
        if refused and name in refused:
            raise BadLineError(f"`{name}` is not supported in a batch{refused[name]}", "unsupported_value", name)
        if name not in kinds:
            near = get_close_matches(name, kinds, 1)
            hint = f"did you mean `{near[0]}`?" if near else f"the fields are {', '.join(kinds)}"
            raise BadLineError(f"{what} has no field `{name[:100]}`: {hint}", "unknown_field", name[:100])
        kind = kinds[name]
        if object not in kind and (not isinstance(value, kind) or (isinstance(value, bool) and bool not in kind)):
            allowed = " or ".join(_WORDS[one] for one in kind if one is not int or float not in kind)
            raise BadLineError(f"`{name}` must be {allowed}, not {json.dumps(value)[:60]}", "invalid_value", name)
        found[name] = value
    return found


def biases(given: Mapping[str, Any]) -> dict[int, Any]:
    """`logit_bias` with integers for token ids: JSON has only texts there. Raises `BadLineError`."""
    for name in given:
        if not (name.isascii() and name.isdecimal()) or len(name) > 9:
            raise BadLineError(f"`logit_bias` must map token ids to numbers, not {name[:40]!r}", param="logit_bias")
    return {int(name): bias for name, bias in given.items()}


def _number(text: str) -> int | float:
    """5 for 5.0, as JSON does not distinguish them."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")
