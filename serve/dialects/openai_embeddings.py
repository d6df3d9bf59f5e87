"""`POST /v1/embeddings`: the mean of the hidden states after the final norm."""

import asyncio
import base64
from typing import Any, Literal

import numpy as np
from dgpt2_quant.serve.calls.call import Call
from dgpt2_quant.serve.calls.errors import overloaded, refused, timed_out
from dgpt2_quant.serve.calls.json_body import Body, Prompts
from dgpt2_quant.serve.calls.prompts import read_prompts
from pydantic import Field


class EmbeddingBody(Body):
    """OpenAI's embedding request."""

    model: str | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1, description="Keep that many, scaled to length 1 again.")
    user: str | None = None


async def embed(call: Call, body: EmbeddingBody) -> dict[str, Any]:
    """Answers an embedding request. Raises `HTTPError`."""
    served = call.models.find(body.model)
    if body.dimensions is not None and body.dimensions > served.model.width:
        raise refused(f"`dimensions` must be 1-{served.model.width}, not {body.dimensions}", "dimensions")
    if body.input == "" or (isinstance(body.input, list) and ("" in body.input or [] in body.input)):
        raise refused("`input` must not have an empty text", "input")
    prompts = await read_prompts(call, served, body.input, name="input")
    call.model = served.id
    call.prompt_tokens += sum(len(prompt.tokens) for prompt in prompts)
    if served.embedding + len(prompts) > call.limits.prompts:
        raise overloaded()
    served.embedding += len(prompts)
    try:
        async with asyncio.timeout_at(call.deadline):
            vectors = [await served.features(prompt.tokens) for prompt in prompts]
    except TimeoutError:
        raise timed_out(call.limits.request_seconds) from None
    finally:
        served.embedding -= len(prompts)
    data = []
    for index, vector in enumerate(vectors):
        if body.dimensions is not None:
            vector = vector[: body.dimensions]
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
        as_bytes = vector.astype("<f4").tobytes()
        shown = base64.b64encode(as_bytes).decode() if body.encoding_format == "base64" else vector.tolist()
        data.append({"object": "embedding", "index": index, "embedding": shown})
    usage = {"prompt_tokens": call.prompt_tokens, "total_tokens": call.prompt_tokens}
    return {"object": "list", "data": data, "model": served.id, "usage": usage}
