"""`GET /v1/models` and `GET /v1/models/{id}`."""

from typing import Any

from dgpt2_quant.serve.call import Call


async def list_models(call: Call) -> dict[str, Any]:
    """The models that the server has."""
    return {"object": "list", "data": call.models.list()}


async def show_model(call: Call, name: str) -> dict[str, Any]:
    """One of them. Raises `HTTPError` 404."""
    return call.models.describe(call.models.find(name))
