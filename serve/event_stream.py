"""Server-sent events: one `data:` line of JSON each, pings while nothing comes, no waiting for slow readers."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
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
        self.left_early = False
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self.raw_headers.append((b"content-type", b"text/event-stream; charset=utf-8"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.create_task(self._write(scope, send))
        leaving = asyncio.create_task(_until_disconnect(receive))
        try:
            await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
            self.left_early = not writing.done()
        finally:
            leaving.cancel()
            writing.cancel()
            with suppress(asyncio.CancelledError):
                await writing

    async def _write(self, scope: Scope, send: Send) -> None:
        async def put(body: bytes, more: bool = True) -> None:
            async with asyncio.timeout(self.write_seconds):
                await send({"type": "http.response.body", "body": body, "more_body": more})

        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            async with aclosing(_with_pings(self.chunks)) as chunks:
                try:
                    async for chunk in chunks:
                        await put(_PING if chunk is None else b"data: " + to_json(chunk) + b"\n\n")
                except HTTPError as error:
                    await put(b"data: " + to_json(self.error_body(error)) + b"\n\n")
            await put(self.end)
            await put(b"", more=False)
        except TimeoutError:
            self.left_early = True
            if abort := scope.get("state", {}).get("abort"):
                abort()


async def _with_pings(chunks: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """The chunks, and None whenever nothing has come for some seconds."""
    pending: asyncio.Future[Any] | None = None
    async with aclosing(chunks):
        try:
            while True:
                pending = pending or asyncio.ensure_future(anext(chunks))
                done, _ = await asyncio.wait({pending}, timeout=_PING_SECONDS)
                if not done:
                    yield None
                    continue
                finished, pending = pending, None
                try:
                    chunk = finished.result()
                except StopAsyncIteration:
                    return
                yield chunk
        finally:
            if pending is not None:
                pending.cancel()
                with suppress(asyncio.CancelledError, StopAsyncIteration):
                    await pending


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
