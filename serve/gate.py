"""Everything around a route: who may ask, the request's id, unexpected errors, the access log and the metrics."""

import hmac
import logging
import re
import secrets
import traceback
from pathlib import Path

from dgpt2_quant.serve.calls.call import Call
from dgpt2_quant.serve.calls.errors import HTTPError, internal
from dgpt2_quant.serve.calls.metrics import Metrics
from dgpt2_quant.serve.calls.models import Models
from dgpt2_quant.serve.calls.settings import Settings, is_loopback
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access_log import AccessLog
from .routes import error_response
from .web_files import PREFIX, is_page_request

PUBLIC = ("/health",)
_ID = re.compile(r"[\x21-\x7e]{1,100}")
_log = logging.getLogger(__name__)
CLIENT_LEFT = 499  # nginx's status for the access log: no answer was sent


class Gate:
    """ASGI middleware. A `Call` is made for each request, and is `request.state.call` for the routes."""

    def __init__(
        self, app: ASGIApp, *, models: Models, settings: Settings, metrics: Metrics, access_log: AccessLog | None
    ) -> None:
        self.app, self.models, self.settings, self.metrics = app, models, settings, metrics
        self.access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        name = given if _ID.fullmatch(given) else secrets.token_hex(12)
        call = Call(name, "unknown", self.models, self.settings, self.metrics)
        scope.setdefault("state", {})["call"] = call
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = MutableHeaders(scope=message)
                added["x-request-id"] = call.id
                added["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            refuse_strangers(headers, scope, self.settings)
            await self.app(scope, receive, answer)
        except HTTPError as error:
            await error_response(error)(scope, receive, answer)
        except Exception as error:
            _log.error("request %s failed: %s", call.id, _place(error))  # no message: it may have a prompt
            if status:
                raise  # the connection is closed: the answer has begun
            await error_response(internal())(scope, receive, answer)
        finally:
            self._record(scope, call, status or CLIENT_LEFT)

    def _record(self, scope: Scope, call: Call, status: int) -> None:
        if call.left_early:
            status = CLIENT_LEFT
        self.metrics.requests.labels(call.route, str(status)).inc()
        is_file_of_page = scope["path"].startswith(PREFIX) and status < 400  # 20 of them for each look at the page
        if self.access_log and not is_file_of_page:
            self.access_log.write(call, scope["method"], scope["path"], status)


def refuse_strangers(headers: Headers, scope: Scope, settings: Settings) -> None:
    """Raises `HTTPError` for a request without a key where one is needed, or from another site.

    On a loopback address without keys the names of the server are checked: a web page could otherwise reach it, by a
    name of its own that it lets point to this machine (DNS rebinding).
    """
    if scope["path"] in PUBLIC:
        return
    if settings.keys:
        if is_page_request(scope["method"], scope["path"], headers):
            return  # the page has no secrets, and asks for the key itself
        authorization = headers.get("authorization", "")
        bearer = authorization[7:].strip() if authorization[:7].lower() == "bearer " else ""
        given = (bearer or headers.get("x-api-key", "")).encode()
        matches = [hmac.compare_digest(given, key.encode()) for key in settings.keys]
        if not any(matches):
            message = "give an API key: Authorization: Bearer KEY" if not given else "the API key is wrong"
            raise HTTPError(
                401, message, "authentication_error", None, "invalid_api_key", {"WWW-Authenticate": "Bearer"}
            )
        return
    host = _name(headers.get("host", ""))
    if settings.is_loopback and not _is_ours(host, settings):
        what = f"this server is not called {host[:80]!r}" if host else "a Host header is needed"
        raise _forbidden(f"{what}: see --allowed-host NAME")
    origin = headers.get("origin")
    if origin is not None:
        site = origin.partition("://")[2].lower()
        same = site == headers.get("host", "").lower()
        if not same and not (settings.is_loopback and _is_ours(_name(site), settings)):
            raise _forbidden("requests of other sites are refused")


def _place(error: BaseException) -> str:
    """The kind of an error and where it was raised, without paths and texts."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} at " + ", ".join(f"{Path(at.filename).name}:{at.lineno}" for at in frames[-3:])


def _forbidden(message: str) -> HTTPError:
    return HTTPError(403, message, "permission_error", code="forbidden")


def _name(netloc: str) -> str:
    """A host without its port, in lower case."""
    name, _, port = netloc.rpartition(":")
    return (name if name and port.isdecimal() and not name.endswith("[") else netloc).strip("[]").rstrip(".").lower()


def _is_ours(name: str, settings: Settings) -> bool:
    return is_loopback(name) or name in (settings.host.lower(), *(host.lower() for host in settings.hosts))
