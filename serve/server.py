"""Runs the application under uvicorn: the socket, connections and their limits, signals, and a shutdown that ends."""

import asyncio
import logging
import math
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from types import FrameType
from typing import Any

import uvicorn
from dgpt2_quant.core.errors import RuntimeFailure, UsageError
from dgpt2_quant.serve.calls.errors import HTTPError, unavailable
from dgpt2_quant.serve.calls.event_stream import to_json
from dgpt2_quant.serve.calls.models import Models
from dgpt2_quant.serve.calls.settings import Limits, Settings
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from .access_log import AccessLog
from .app import make_app

# A thread waits this long for Python while another one computes. Each step of the engine waits several times, and with
# Python's 5 ms a busy event loop delayed all texts.
_SWITCH_SECONDS = 0.0005
_LAST_SECONDS = 3  # after the texts were cancelled, for their connections to end


def bind(settings: Settings) -> socket.socket:
    """A socket bound to the address. Raises `UsageError` for one that is in use or does not exist."""
    host = settings.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, settings.port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror or error}",
            "Choose another `port` or `host`.",
        ) from error
    return found


class Server(uvicorn.Server):
    """Serves until SIGINT or SIGTERM; then requests in progress have `shutdown_seconds` to end.

    After that all texts are ended, so that each answer has an end.
    """

    def __init__(
        self,
        models: Models,
        settings: Settings,
        *,
        access_log: AccessLog | None = None,
        on_ready: Callable[[], None] | None = None,
    ) -> None:
        self.models, self.settings = models, settings
        app = make_app(models, settings, access_log=access_log, on_ready=on_ready, on_failure=self._fail)
        super().__init__(_config(app, settings))

    def serve_on(self, listener: socket.socket) -> None:
        """Runs until the server is stopped. Raises `DgptQuantError` if a model cannot be loaded."""
        # it would print traces, and lines about what clients send
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        sys.setswitchinterval(_SWITCH_SECONDS)
        try:
            listener.listen(self.config.backlog)
        except OSError as error:
            raise UsageError(
                f"cannot listen on {self.settings.host}: {error.strerror}", "Choose another `port`."
            ) from error
        self.run(sockets=[listener])
        if self.models.failure:
            raise self.models.failure
        if not self.started:
            raise RuntimeFailure("the server did not start", "See the lines above.")

    def _fail(self, error: Exception) -> None:
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, without raising the signal again: the end that it asked for was orderly."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal ends the server after its requests, the second one now."""
        if self.should_exit:
            self.models.end_texts()
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.get_running_loop().call_later(self.settings.shutdown_seconds, self._end)
        try:
            await super().shutdown(sockets)
        finally:
            ending.cancel()

    def _end(self) -> None:
        """Ends all texts, and the connections whose requests have not arrived."""
        self.models.end_texts()
        for connection in list(self.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and cycle.more_body:
                connection.transport.abort()


def _limited(limits: Limits) -> type[asyncio.Protocol]:
    """A protocol that refuses connections above the limit, and aborts those that do nothing."""

    class Protocol(H11Protocol):
        """HTTP/1.1 with limits, which are looked after once a second, or more often for short limits."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.app_state = {**self.app_state, "abort": transport.abort}
            self.idle_since, self.stuck_since, self.unsent = time.monotonic(), math.inf, 0
            if len(self.connections) > limits.connections:
                transport.write(_TOO_MANY)
                transport.close()
                return
            self._look_later()

        def data_received(self, data: bytes) -> None:
            cycle = self.cycle
            if cycle is not None and not cycle.response_complete and not cycle.more_body:
                # one more request before the answer: uvicorn would stop reading, and not notice that the client leaves
                cycle.keep_alive = False
                return
            super().data_received(data)

        def _look_later(self) -> None:
            seconds = min(1.0, limits.idle_seconds / 4, limits.write_seconds / 4)
            self.looking = self.loop.call_later(seconds, self._look)

        def _look(self) -> None:
            """Aborts a connection without a complete request head, or whose client does not read."""
            now, unsent = time.monotonic(), self.transport.get_write_buffer_size()
            if self.cycle is not None and not self.cycle.response_complete:
                self.idle_since = math.inf
            elif self.idle_since == math.inf:
                self.idle_since = now
            if not unsent or unsent < self.unsent:
                self.stuck_since = math.inf
            elif self.stuck_since == math.inf:
                self.stuck_since = now
            self.unsent = unsent
            if now - self.idle_since > limits.idle_seconds or now - self.stuck_since > limits.write_seconds:
                self.transport.abort()
            elif not self.transport.is_closing() or unsent:
                self._look_later()

        def connection_lost(self, exc: Exception | None) -> None:
            if hasattr(self, "looking"):
                self.looking.cancel()
            super().connection_lost(exc)

    return Protocol


def _whole_answer(error: HTTPError) -> bytes:
    """An error as bytes, for a connection that is refused before its request."""
    body = to_json(error.body())
    names = {"content-type": "application/json", "content-length": len(body), "connection": "close", **error.headers}
    head = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}", *(f"{k}: {v}" for k, v in names.items())]
    return "\r\n".join([*head, "", ""]).encode() + body


_TOO_MANY = _whole_answer(unavailable("too many connections; try again later"))


def _config(app: Starlette, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=_limited(settings.limits),
        ws="none",
        lifespan="on",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(settings.limits.idle_seconds) + 1,
        timeout_graceful_shutdown=int(settings.shutdown_seconds) + _LAST_SECONDS,
    )
