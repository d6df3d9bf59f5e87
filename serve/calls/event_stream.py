"""Server-sent events: one `data:` line of JSON each, pings while nothing comes, no waiting for slow readers."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import HTTPError

DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"
_PING_SECONDS = 15.0


def to_json(data: Any) -> bytes:
    """JSON as it is sent: compact, UTF-8. Raises `ValueError` for NaN and infinity."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


class EventStream(Response):
    """Sends the JSON values of a generator as they come, then `end`.

    The generator is closed when the client leaves, and when it does not read for `write_seconds`; the connection is
    then aborted. An `HTTPError` after the first byte is sent as an event, because the status is sent already.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[Any, None],
        *,
        write_seconds: float,
        end: bytes = DONE,
        error_body: Callable[[HTTPError], Any] = HTTPError.body,
    ) -> None:
        self.chunks, self.write_seconds, self.end, self.error_body = chunks, write_seconds, end, error_body
        self.status_code = 200
        self.background = None
        self.sent = 0.0  # when something was sent
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self.raw_headers.append((b"content-type", b"text/event-stream; charset=utf-8"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.create_task(self._write(send))
        others = [asyncio.create_task(until_disconnect(receive)), asyncio.create_task(self._ping(send))]
        try:
            await asyncio.wait({writing, *others}, return_when=asyncio.FIRST_COMPLETED)
            if not writing.done() or isinstance(writing.exception(), TimeoutError):
                scope["state"]["call"].left_early = True
                scope["state"]["abort"]()
        finally:
            for task in (writing, *others):
                task.cancel()
            await asyncio.gather(writing, *others, return_exceptions=True)
        if not (writing.cancelled() or isinstance(writing.exception(), TimeoutError)):
            writing.result()

    async def _write(self, send: Send) -> None:
        self.sent = time.monotonic()
        async with asyncio.timeout(self.write_seconds):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self.chunks):
            try:
                async for chunk in self.chunks:
                    await self._put(send, b"data: " + to_json(chunk) + b"\n\n")
            except HTTPError as error:
                await self._put(send, b"data: " + to_json(self.error_body(error)) + b"\n\n")
        await self._put(send, self.end)
        await self._put(send, b"", more=False)

    async def _put(self, send: Send, body: bytes, *, more: bool = True) -> None:
        """Raises `TimeoutError` for a client that does not read."""
        self.sent = time.monotonic()
        async with asyncio.timeout(self.write_seconds):
            await send({"type": "http.response.body", "body": body, "more_body": more})

    async def _ping(self, send: Send) -> None:
        """Sends a comment whenever nothing was sent for some seconds, so that proxies keep the connection."""
        while True:
            await asyncio.sleep(_PING_SECONDS)
            if time.monotonic() - self.sent >= _PING_SECONDS:
                await self._put(send, _PING)


async def until_disconnect(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
