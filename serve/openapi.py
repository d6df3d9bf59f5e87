"""The OpenAPI document, from the table of routes and the schemas of their bodies."""

import json
import re
from collections.abc import Sequence
from typing import Any, Literal

from dgpt2_quant.core.versions import tool_version
from pydantic import TypeAdapter

from .routes import Route

_STATUSES = {  # of every route
    "400": "the request is wrong; the error names the field",
    "401": "a key is needed",
    "403": "the host or origin is not allowed",
    "404": "there is no such model",
    "405": "another method is needed",
    "500": "an error of the server, whose log has its place",
    "503": "the models are loading, or the server is shutting down",
}
_WITH_BODY = {
    "408": "the body arrived too slowly, or the answer took too long",
    "413": "the body is too large",
    "415": "the body is not JSON",
    "429": "the queue is full",
}
_UNTYPED: dict[str, dict[str, Any]] = {"text/plain": {"type": "string"}, "text/event-stream": {}}  # events have several
_REFERENCE = "#/components/schemas/{model}"


def document(routes: Sequence[Route]) -> bytes:
    """The document as JSON."""
    given: list[tuple[str, Literal["validation"], TypeAdapter[Any]]] = []
    for route in routes:
        if route.body:
            given.append((f"{route.method} {route.path} takes", "validation", TypeAdapter(route.body)))
        if route.answer:
            given.append((f"{route.method} {route.path} answers", "validation", TypeAdapter(route.answer)))
    schemas, definitions = TypeAdapter.json_schemas(given, ref_template=_REFERENCE)
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        name = f"{route.method} {route.path}"
        operation = _operation(route, schemas.get((f"{name} answers", "validation"), _UNTYPED.get(route.answers, {})))
        if route.body:
            schema = schemas[f"{name} takes", "validation"]
            operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths.setdefault(re.sub(r":\w+}", "}", route.path), {})[route.method.lower()] = operation
    components = {
        "schemas": {
            **definitions.get("$defs", {}),
            "Error": _ERROR,
            "AzureError": _AZURE_ERROR,
            "TgiError": _TGI_ERROR,
        },
        "securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
        },
    }
    found = {
        "openapi": "3.1.0",
        "info": {"title": "dgpt2-quant", "version": tool_version(), "license": {"name": "Apache-2.0"}},
        "security": [{"bearer": []}, {"header": []}, {}],
        "paths": paths,
        "components": components,
    }
    return json.dumps(found).encode()


def _operation(route: Route, schema: dict[str, Any]) -> dict[str, Any]:
    answers = {route.answers: {"schema": schema}}
    if route.streams:
        answers["text/event-stream"] = {"schema": _UNTYPED["text/event-stream"]}
    error = {"azure": "AzureError", "tgi": "TgiError"}.get(route.dialect, "Error")
    statuses = _STATUSES | (_WITH_BODY if route.body else {})
    failures = {
        status: {
            "description": what,
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{error}"}}},
        }
        for status, what in statuses.items()
    }
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "responses": {"200": {"description": "the answer", "content": answers}, **failures},
    }
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)", route.path)
    ] + [{"name": name, "in": "query", "schema": {"type": "string"}} for name in route.query]
    return operation | ({"parameters": parameters} if parameters else {})


_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}
_AZURE_ERROR = {"type": "object", "required": ["message"], "properties": {"message": {"type": "string"}}}
_TGI_ERROR = {
    "type": "object",
    "required": ["error", "error_type"],
    "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
}
