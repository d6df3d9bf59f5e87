"""The table of all routes: path, what it takes, what it answers. The OpenAPI document is made from it."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from dgpt2_quant.serve.calls.call import Call
from dgpt2_quant.serve.calls.errors import HTTPError, of_library
from dgpt2_quant.serve.calls.event_stream import to_json, until_disconnect
from dgpt2_quant.serve.calls.json_body import parse, read_body, require_json
from dgpt2_quant.serve.calls.metrics import CONTENT_TYPE
from dgpt2_quant.serve.dialects import (
    answers,
    azure,
    comparison,
    llama_cpp,
    llama_cpp_info,
    measurements,
    openai_chat,
    openai_completions,
    openai_embeddings,
    tgi,
)
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from .web_files import file_response, wants_page


@dataclass(frozen=True)
class Route:
    """`handle(call, body)` answers with JSON, an `EventStream` or a `Response`; without a `body` it gets the request.

    `answer` is the type of the JSON, `dialect` whose error body it has: openai, llama_cpp, azure or tgi.
    """

    method: str
    path: str
    handle: Callable[..., Awaitable[Any]]
    body: type[BaseModel] | None = None
    answer: Any = None
    dialect: str = "openai"
    answers: str = "application/json"
    query: tuple[str, ...] = ()

    @property
    def streams(self) -> bool:
        return self.body is not None and "stream" in self.body.model_fields and self.path != "/generate"

    @property
    def summary(self) -> str:
        return (self.handle.__doc__ or "").strip().split("\n")[0]


async def health(call: Call, request: Request) -> dict[str, str]:
    """Whether all models are loaded: 200, or 503 while they are loading."""
    call.models.list()
    return {"status": "ok"}


async def metrics(call: Call, request: Request) -> Response:
    """Counters and histograms for Prometheus."""
    text = await asyncio.to_thread(call.metrics.text)
    return Response(
        text, headers={"content-type": CONTENT_TYPE, "process-start-time-unix": str(int(call.metrics.started))}
    )


async def show_model(call: Call, request: Request) -> dict[str, Any]:
    """One model."""
    return call.models.describe(call.models.find(request.path_params["name"]))


async def list_models(call: Call, request: Request) -> dict[str, Any]:
    """The models that the server has."""
    return {"object": "list", "data": call.models.list()}


async def score_options(call: Call, request: Request) -> Response:
    """The methods of `/score`, which Azure ML's clients ask for."""
    return Response("", headers={"allow": "OPTIONS, POST"}, media_type="text/plain")


async def root(call: Call, request: Request) -> Response:
    """The liveness text of Azure ML's inference server; for a browser the writing page."""
    page = file_response("index.html", request.headers) if wants_page(request.headers) else None
    return page or Response("Healthy", headers={"vary": "Accept"}, media_type="text/plain")


ROUTES = (
    Route("GET", "/health", health, answer=answers.Status, dialect="llama_cpp"),
    Route("GET", "/v1/models", list_models, answer=answers.ModelList),
    Route("GET", "/v1/models/{name:path}", show_model, answer=answers.ModelEntry),
    Route(
        "POST",
        "/v1/completions",
        openai_completions.complete,
        openai_completions.CompletionBody,
        answers.CompletionAnswer,
    ),
    Route("POST", "/v1/chat/completions", openai_chat.chat, openai_chat.ChatBody, answers.ChatAnswer),
    Route("POST", "/v1/embeddings", openai_embeddings.embed, openai_embeddings.EmbeddingBody, answers.EmbeddingList),
    Route("POST", "/v1/compare", comparison.compare, comparison.ComparisonBody, answers.Comparison),
    Route("GET", "/v1/measurements", measurements.known, answer=answers.Measurements),
    Route("POST", "/v1/measurements", measurements.measure, measurements.MeasureBody, answers="text/event-stream"),
    Route("POST", "/completion", llama_cpp.complete, llama_cpp.CompletionBody, answers.LlamaAnswer, "llama_cpp"),
    Route("POST", "/completions", llama_cpp.complete, llama_cpp.CompletionBody, answers.LlamaAnswer, "llama_cpp"),
    Route("POST", "/tokenize", llama_cpp_info.tokenize, llama_cpp_info.TokenizeBody, answers.Tokens, "llama_cpp"),
    Route("POST", "/detokenize", llama_cpp_info.detokenize, llama_cpp_info.DetokenizeBody, answers.Text, "llama_cpp"),
    Route("GET", "/tokenizer_info", llama_cpp_info.tokenizer_info, answer=answers.TokenizerInfo, dialect="llama_cpp"),
    Route("GET", "/props", llama_cpp_info.props, answer=answers.Props, dialect="llama_cpp"),
    Route(
        "GET",
        "/slots",
        llama_cpp_info.slots,
        answer=list[answers.Slot],
        dialect="llama_cpp",
        query=("fail_on_no_slot",),
    ),
    Route("GET", "/metrics", metrics, answers="text/plain"),
    Route("POST", "/score", azure.score, azure.ScoreBody, answers.AzureAnswer, "azure"),
    Route("POST", "/", tgi.root, tgi.GenerateBody, list[answers.GeneratedText], "tgi"),
    Route("POST", "/generate", tgi.generate, tgi.GenerateBody, answers.GeneratedText, "tgi"),
    Route(
        "POST", "/generate_stream", tgi.generate_stream, tgi.GenerateBody, dialect="tgi", answers="text/event-stream"
    ),
    Route("OPTIONS", "/score", score_options, dialect="azure", answers="text/plain"),
    Route("GET", "/", root, answers="text/plain"),
)


async def answer(route: Route, request: Request) -> Response:
    """Runs a route. Never raises an `HTTPError`: it becomes a response in the route's dialect."""
    call: Call = request.state.call
    call.route = route.path.replace(":path", "")
    try:
        if route.body:
            require_json(request)
            given: Any = parse(route.body, await read_body(request, call.limits))
        else:
            given = request
        found = await _unless_client_leaves(request, call, route.handle(call, given))
    except HTTPError as error:
        return error_response(error, route.dialect)
    except ClientDisconnect:
        call.left_early, found = True, None
    if found is None:
        return Response(status_code=499)
    if isinstance(found, Response):
        return found
    return Response(to_json(found), media_type="application/json", headers=_headers(route, call))


def _headers(route: Route, call: Call) -> dict[str, str]:
    return {"x-ms-run-fn-exec-ms": f"{1000 * call.seconds:.3f}"} if route.dialect == "azure" else {}


async def _unless_client_leaves(request: Request, call: Call, work: Awaitable[Any]) -> Any:
    """The result of `work`, or None: it is cancelled when the client leaves."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(until_disconnect(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            call.left_early = True
            return None
        return working.result()
    except HTTPError:
        raise
    except Exception as error:
        if (found := of_library(error)).status >= 500:
            raise
        raise found from error
    finally:
        leaving.cancel()
        working.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def error_response(error: HTTPError, dialect: str = "openai") -> Response:
    bodies = {"azure": azure.error_body, "llama_cpp": llama_cpp.error_body, "tgi": tgi.error_body}
    body = bodies.get(dialect, HTTPError.body)
    headers = dict(error.headers)
    if dialect == "azure" and error.status >= 500:
        headers["x-ms-run-function-failed"] = "True"
    return Response(to_json(body(error)), error.status, headers, "application/json")
