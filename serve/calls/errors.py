"""Errors as responses: a status, and OpenAI's error object."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dgpt2_quant.core.errors import OverloadedError, UsageError

RETRY_SECONDS = 1  # when to try again after a full queue


@dataclass
class HTTPError(Exception):
    """A request that is answered with an error. `param` is the field of the request that is wrong."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}


def refused(message: str, param: str | None = None, code: str | None = None) -> HTTPError:
    """The request is wrong (400)."""
    return HTTPError(400, message, param=param, code=code)


def unsupported(name: str, instead: str = "") -> HTTPError:
    """A field that this server knows and does not support (400)."""
    return refused(f"`{name}` is not supported{instead and f': {instead}'}", name, "unsupported_parameter")


def overloaded(message: str = "the queue is full") -> HTTPError:
    headers = {"Retry-After": str(RETRY_SECONDS)}
    return HTTPError(429, f"{message}; try again later", "rate_limit_error", None, "rate_limit_exceeded", headers)


def unavailable(message: str) -> HTTPError:
    headers = {"Retry-After": str(RETRY_SECONDS)}
    return HTTPError(503, message, "unavailable_error", None, "unavailable", headers)


def timed_out(seconds: float) -> HTTPError:
    """The answer took too long; asking again would take as long."""
    message = f"the answer took longer than {seconds:g} s; ask for fewer tokens"
    return HTTPError(408, message, "timeout_error", None, "request_timeout", {"x-should-retry": "false"})


def internal() -> HTTPError:
    """An unexpected error, whose details are only in the server's log."""
    return HTTPError(
        500, "internal error; the server's log has the details", "server_error", None, None, {"x-should-retry": "false"}
    )


def of_library(error: Exception, names: Mapping[str, str] | None = None) -> HTTPError:
    """The response for an error of the library. `names` maps its parameters' names to those of the request."""
    if isinstance(error, OverloadedError):
        return overloaded()
    if not isinstance(error, UsageError):
        return internal()
    renamed = names or {}
    message = re.sub(r"`(\w+)`", lambda found: f"`{renamed.get(found[1], found[1])}`", error.message)
    named = re.search(r"`(\w+)`", message)
    code = "context_length_exceeded" if "to fit the context" in message else None
    return refused(message, "prompt" if code else named and named[1], code)
