"""Reads a request's body: within its limits, strict JSON, checked against a schema. Errors name the wrong field."""

import asyncio
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json
from starlette.requests import Request

from .errors import HTTPError, refused
from .settings import Limits

_SHOWN = 60  # characters of a wrong value in an error
_DISCARDED = 16 << 20  # bytes of a body that is too large: a client that is still sending does not read the answer
_MOST_FIELDS = 400  # of an object: each unknown one would be an error of its own
_Item = TypeVar("_Item")
Items = Annotated[list[_Item], Field(fail_fast=True)]
"""A list. Each list of a schema is one: of a long one with wrong items, only the first makes an error."""
Ids = Items[int]
Prompts = str | Items[str] | Ids | Items[Ids]
"""Texts or token ids."""


class Body(BaseModel):
    """The schema of a request. An explicit null is the same as an absent field; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: Any) -> dict[str, Any]:
        """The schema with null allowed for every optional field."""
        found: dict[str, Any] = handler.resolve_ref_schema(handler(schema))
        for name, field in found.get("properties", {}).items():
            if name not in found.get("required", ()) and {"type": "null"} not in field.get("anyOf", ()):
                about = {key: field.pop(key) for key in ("default", "description", "title") if key in field}
                found["properties"][name] = {"anyOf": [field, {"type": "null"}], **about}
        return found

    @model_validator(mode="before")
    @classmethod
    def drop_nulls(cls, data: Any) -> Any:
        if isinstance(data, dict):
            if len(data) > _MOST_FIELDS:
                raise ValueError(f"an object must have at most {_MOST_FIELDS} fields")
            return {name: value for name, value in data.items() if value is not None}
        return data


B = TypeVar("B", bound=BaseModel)


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body. Raises `HTTPError` for one that is too large or arrives too slowly."""
    stated = request.headers.get("content-length", "0")
    too_large = stated.isdecimal() and int(stated) > limits.body
    if too_large and "expect" in request.headers:
        raise _too_large(limits)  # the client waits for an answer before it sends
    size, body = 0, bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limits.body + _DISCARDED:
                    break
                too_large = too_large or size > limits.body
                if not too_large:
                    body += part
    except TimeoutError:
        message = f"the body did not arrive within {limits.body_seconds:g} s"
        raise HTTPError(408, message, headers={"Connection": "close", "x-should-retry": "false"}) from None
    if too_large:
        raise _too_large(limits)
    return bytes(body)


def _too_large(limits: Limits) -> HTTPError:
    message = f"the body must have at most {limits.body} bytes"
    return HTTPError(413, message, code="request_too_large", headers={"Connection": "close"})


def require_json(request: Request) -> None:
    """Raises `HTTPError` for a content type that is not JSON. An absent one is treated as JSON."""
    kind = (request.headers.get("content-type") or "application/json").split(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        raise HTTPError(415, f"the content type must be application/json, not {kind[:_SHOWN]!r}")


def parse(schema: type[B], body: bytes) -> B:
    """The checked request. Raises `HTTPError` 400."""
    try:
        data = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise refused(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise refused("the body must be a JSON object", code="invalid_json")
    try:
        return schema.model_validate(_with_integers(data))
    except ValidationError as error:
        raise _explained(error) from None


def _with_integers(data: Any) -> Any:
    """The data with 5 for 5.0, as JSON does not distinguish them."""
    if isinstance(data, dict):
        return {name: _with_integers(value) for name, value in data.items()}
    if isinstance(data, list):
        return [_with_integers(value) for value in data]
    return int(data) if isinstance(data, float) and data.is_integer() and abs(data) < 2**53 else data


def _explained(error: ValidationError) -> HTTPError:
    """The first error, in words."""
    problems = error.errors(include_url=False, include_context=False)
    # of a union, each alternative has its own errors: the first field counts, and the deepest error in it
    field = problems[0]["loc"][:1]
    same = [problem for problem in problems if problem["loc"][:1] == field]
    worst = max(same, key=lambda problem: len(_path(problem["loc"])))
    path = _path(worst["loc"])
    name, param = ".".join(path), path[0] if path else None
    if worst["type"] == "extra_forbidden":
        return refused(f"Unrecognized request argument supplied: {name}", name, "unknown_parameter")
    if worst["type"] == "missing":
        return refused(f"you must provide `{name}`", name, "missing_required_parameter")
    alike = [problem for problem in same if _path(problem["loc"]) == path]
    expected = " or ".join(dict.fromkeys(_plain(problem["msg"]) for problem in alike))
    value = repr(worst["input"])
    shown = value if len(value) <= _SHOWN else f"{value[:_SHOWN]}..."
    return refused(f"`{name}` is wrong: {expected}, not {shown}" if name else expected, param, "invalid_value")


def _path(location: tuple[int | str, ...]) -> list[str]:
    """The names of the fields in it, without indices and the names of a union's alternatives."""
    return [
        part
        for part in location
        if isinstance(part, str)
        and part.islower()
        and part not in ("str", "int", "float", "bool")
        and "[" not in part
        and "(" not in part
    ]


def _plain(message: str) -> str:
    message = message.removeprefix("Input ").removeprefix("Value error, ")
    return message[:1].lower() + message[1:]
