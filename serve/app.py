"""The ASGI application: its routes, its middleware, and the loading of the models."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from dgpt2_quant.serve.calls.errors import HTTPError
from dgpt2_quant.serve.calls.metrics import Metrics
from dgpt2_quant.serve.calls.models import Models
from dgpt2_quant.serve.calls.settings import Settings
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route as StarletteRoute

from .access_log import AccessLog
from .gate import Gate
from .openapi import document
from .routes import ROUTES, Route, answer, error_response
from .web_files import PREFIX, file_response, web_files


def make_app(
    models: Models,
    settings: Settings,
    *,
    access_log: AccessLog | None = None,
    on_ready: Callable[[], None] | None = None,
    on_failure: Callable[[Exception], None] | None = None,
) -> Starlette:
    """The application. It loads the models after its start, and answers 503 until they are loaded."""
    metrics = Metrics(models)
    web_files()  # before the first request

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        loading = asyncio.create_task(load())
        yield
        await loading
        await asyncio.to_thread(models.close)

    async def load() -> None:
        try:
            await asyncio.to_thread(models.load)
        except Exception as error:
            models.failure = error
            if on_failure:
                on_failure(error)
        else:
            if on_ready:
                on_ready()

    async def openapi(request: Request) -> Response:
        request.state.call.route = "/openapi.json"
        return Response(openapi_document(), media_type="application/json")

    async def web_file(request: Request) -> Response:
        request.state.call.route = f"{PREFIX}{{name}}"
        if (found := file_response(request.path_params["name"], request.headers)) is None:
            raise HTTPException(404)
        return found

    async def not_found(request: Request, error: Any) -> Response:
        assert isinstance(error, HTTPException)
        allowed = dict(error.headers or {})
        message = f"{request.method[:20]} is not allowed here" if error.status_code == 405 else "there is no such route"
        return error_response(HTTPError(error.status_code, message, headers=allowed))

    gate = Middleware(Gate, models=models, settings=settings, metrics=metrics, access_log=access_log)
    app = Starlette(
        routes=[
            *_routed(ROUTES),
            StarletteRoute("/openapi.json", openapi),
            StarletteRoute(f"{PREFIX}{{name}}", web_file),
        ],
        middleware=[gate],
        exception_handlers={404: not_found, 405: not_found},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # it would answer with the name that the client sent
    return app


@cache
def openapi_document() -> bytes:
    return document(ROUTES)


def _routed(routes: Sequence[Route]) -> Iterator[StarletteRoute]:
    """One of Starlette's routes for each path, so that a wrong method is answered with all that are allowed."""
    for path in dict.fromkeys(route.path for route in routes):
        by_method = {route.method: route for route in routes if route.path == path}

        async def endpoint(request: Request, by_method: dict[str, Route] = by_method) -> Response:
            method = "GET" if request.method == "HEAD" else request.method
            return await answer(by_method[method], request)

        yield StarletteRoute(path, endpoint, methods=list(by_method))
