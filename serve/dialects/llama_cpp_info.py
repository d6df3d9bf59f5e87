"""llama.cpp's routes that generate nothing: tokenize, detokenize, props, slots; and vLLM's tokenizer_info."""

import asyncio
from typing import Any

from dgpt2_quant.core.versions import tool_version
from dgpt2_quant.runtime.token_text import TokenTexts
from dgpt2_quant.serve.calls.call import Call
from dgpt2_quant.serve.calls.errors import refused, unavailable
from dgpt2_quant.serve.calls.json_body import Body, Ids
from dgpt2_quant.serve.calls.models import ServedModel
from dgpt2_quant.serve.calls.prompts import check_ids, text_of
from pydantic import Field
from starlette.requests import Request

_MOST_PIECES = 10_000


class TokenizeBody(Body):
    """A text to tokenize: llama.cpp calls it `content`, vLLM `prompt`."""

    content: str | None = None
    prompt: str | None = None
    model: str | None = None
    add_special: bool = False
    add_special_tokens: bool | None = None
    parse_special: bool = Field(True, description="Read `<|endoftext|>` as the special token.")
    with_pieces: bool = False
    return_token_strs: bool = False


async def tokenize(call: Call, body: TokenizeBody) -> dict[str, Any]:
    """Token ids of a text, in the shapes of llama.cpp and vLLM together."""
    served = call.models.find(body.model)
    text = body.prompt if body.content is None else body.content
    if text is None:
        raise refused("you must provide `content` or `prompt`", "content", "missing_required_parameter")
    first = body.add_special if body.add_special_tokens is None else body.add_special_tokens
    tokens = await served.tokenize(text, special=body.parse_special, add_special=first)
    if (body.with_pieces or body.return_token_strs) and len(tokens) > _MOST_PIECES:
        raise refused(f"a text with more than {_MOST_PIECES} tokens is answered without their texts", "content")
    found: dict[str, Any] = {"tokens": tokens, "count": len(tokens), "max_model_len": served.scheduler.positions}
    texts = TokenTexts(served.model)
    if body.with_pieces:
        found["tokens"] = [{"id": token, "piece": _piece(served, token)} for token in tokens]
    if body.return_token_strs:
        found["token_strs"] = [texts.string(token) for token in tokens]
    return found


def _piece(served: ServedModel, token: int) -> str | list[int]:
    """A token's text, or its bytes where they are not a text."""
    data = served.model.token_bytes(token, special=True)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return list(data)


class DetokenizeBody(Body):
    """Token ids to turn into text."""

    tokens: Ids
    model: str | None = None


async def detokenize(call: Call, body: DetokenizeBody) -> dict[str, Any]:
    """The text of tokens, special tokens by name; llama.cpp calls it `content`, vLLM `prompt`."""
    served = call.models.find(body.model)
    check_ids(served, body.tokens, "tokens")
    text = await asyncio.to_thread(text_of, served, body.tokens)
    return {"content": text, "prompt": text}


async def tokenizer_info(call: Call, request: Request) -> dict[str, Any]:
    """The tokenizer's facts that lm-evaluation-harness asks for, in vLLM's shape."""
    served = call.models.find(None)
    model = served.model
    return {
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": served.start_text,
        "eos_token": served.end_text,
        "unk_token": served.end_text,
        "pad_token": served.end_text,
        "add_bos_token": model.first_token is not None,
        "model_max_length": served.scheduler.positions,
        "vocab_size": model.real_vocabulary,
        "chat_template": served.chat_template,
    }


async def props(call: Call, request: Request) -> dict[str, Any]:
    """Facts about the default model."""
    served = call.models.find(None)
    return {
        "default_generation_settings": {"n_ctx": served.scheduler.positions},
        "total_slots": served.scheduler.parallel,
        "model_path": served.id,
        "model_alias": served.id,
        "chat_template": served.chat_template or "",
        "bos_token": served.start_text,
        "eos_token": served.end_text,
        "build_info": f"dgpt2-quant {tool_version()}",
        "models": [one["id"] for one in call.models.list()],
    }


async def slots(call: Call, request: Request) -> list[dict[str, Any]]:
    """The slots of each model, and whether they are in use; never a prompt. Raises `HTTPError` 503 if none is free."""
    call.models.find(None)
    found = []
    for served in call.models.loaded.values():
        active = served.scheduler.stats.active
        found += [
            {"id": number, "model": served.id, "n_ctx": served.scheduler.positions, "is_processing": number < active}
            for number in range(served.scheduler.parallel)
        ]
    if request.query_params.get("fail_on_no_slot") == "1" and all(slot["is_processing"] for slot in found):
        raise unavailable("no slot is free")
    return found
