"""A real server in a thread, and a client for it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import httpx2
import pytest
from dgpt2_quant.serve.access_log import AccessLog
from dgpt2_quant.serve.calls.models import ModelFile, Models
from dgpt2_quant.serve.calls.settings import Settings
from dgpt2_quant.serve.routes import ROUTES
from dgpt2_quant.serve.server import Server, bind
from pydantic import TypeAdapter

from ..waiting import wait_for


@dataclass
class Running:
    """A server that runs, a client for it, and its access log."""

    server: Server
    client: httpx2.Client
    log: StringIO
    port: int

    @property
    def models(self) -> Models:
        return self.server.models

    def post(self, path: str, **body: Any) -> httpx2.Response:
        return self.client.post(path, json=body)


def check_shape(response: httpx2.Response) -> None:
    """Checks each answer of JSON against the OpenAPI document's type of it."""
    if response.status_code != 200 or response.headers.get("content-type") != "application/json":
        return
    request = response.request
    for route in ROUTES:
        if (route.method, route.path) == (request.method, request.url.path) and route.answer:
            TypeAdapter(route.answer).validate_json(response.read(), strict=True)


@contextmanager
def running(files: list[ModelFile], settings: Settings | None = None, **options: Any) -> Iterator[Running]:
    settings = settings or Settings(port=0)
    options = {"parallel": 3, "queue": 4, "threads": 1} | options
    log = StringIO()
    with bind(settings) as listener:
        server = Server(Models(files, **options), settings, access_log=AccessLog(stream=log))
        thread = threading.Thread(target=server.serve_on, args=[listener])
        thread.start()
        port = listener.getsockname()[1]
        headers = {"Authorization": f"Bearer {settings.keys[0]}"} if settings.keys else {}
        with httpx2.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=30, headers=headers, event_hooks={"response": [check_shape]}
        ) as client:
            try:
                wait_for(lambda: server.models.ready)
                yield Running(server, client, log, port)
            finally:
                server.should_exit = True
                thread.join(30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def files(short_files: dict[str, Path]) -> list[ModelFile]:
    return [ModelFile("storybook", name, short_files[name], ("tales",)) for name in ("F32", "Q8_0")]


@pytest.fixture(scope="module")
def served(files: list[ModelFile]) -> Iterator[Running]:
    with running(files) as found:
        yield found
