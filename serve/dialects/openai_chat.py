"""`POST /v1/chat/completions`, for models that have a chat template."""

import secrets
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Annotated, Any, Literal

from dgpt2_quant.runtime import Completion, TokenLogprob
from dgpt2_quant.runtime.token_text import TokenTexts, finite
from dgpt2_quant.serve.calls.call import Call
from dgpt2_quant.serve.calls.errors import refused
from dgpt2_quant.serve.calls.event_stream import EventStream
from dgpt2_quant.serve.calls.json_body import Body, Items
from dgpt2_quant.serve.calls.models import ServedModel
from dgpt2_quant.serve.calls.prompts import too_long
from dgpt2_quant.serve.calls.running import Running, require_count, tokens_to_generate, with_seed
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field

from .openai_completions import limited, reason_of
from .openai_sampling import NAMES, SamplingBody, options


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: str


class Message(Body):
    """A message of a chat."""

    role: str = Field(pattern="^[a-z_]{1,32}$")
    content: str | Items[TextPart] = ""
    name: str | None = None

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatBody(SamplingBody):
    """OpenAI's chat request."""

    messages: Annotated[Items[Message], Field(min_length=1)]
    max_tokens: int | None = Field(None, ge=0, description="By default as many as the context has room for.")
    max_completion_tokens: int | None = Field(None, ge=0)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0)


async def chat(call: Call, body: ChatBody) -> dict[str, Any] | EventStream:
    """Answers a chat request. Raises `HTTPError`."""
    served = call.models.find(body.model)
    if not served.chat_template:
        raise refused(
            f"{served.id} has no chat template, it only continues text: use /v1/completions", "messages", "no_chat"
        )
    require_count(call, served, body.n, "n")
    if body.top_logprobs > call.limits.logprobs:
        raise refused(f"`top_logprobs` must be 0-{call.limits.logprobs}, not {body.top_logprobs}", "top_logprobs")
    if body.top_logprobs and not body.logprobs:
        raise refused("`top_logprobs` needs `logprobs`", "top_logprobs")
    tokens = await _tokens(served, body.messages)
    if len(tokens) > served.scheduler.positions:
        raise too_long(served, len(tokens), "messages")
    settings = options(body, served, call.settings)
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    settings["max_tokens"] = tokens_to_generate(call, body, name)
    settings["logprobs"] = body.top_logprobs if body.logprobs else None
    texts = [(tokens, with_seed(settings, body.seed, number)) for number in range(body.n)]
    running = Running(call, served, texts, NAMES)
    head = {
        "id": f"chatcmpl-{body.request_id or call.id}",
        "created": int(time.time()),
        "model": served.id,
        "system_fingerprint": served.fingerprint,
    }
    if body.stream:
        return EventStream(_stream(running, body, head), write_seconds=call.limits.write_seconds)
    with running:
        found = await running.results()
        choices = [_choice(served, body, number, one) for number, one in enumerate(found)]
        return {**head, "object": "chat.completion", "choices": choices, "usage": _usage(running)}


async def _stream(running: Running, body: ChatBody, head: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    head = {**head, "object": "chat.completion.chunk"}
    usage = body.stream_options
    began: set[int] = set()
    with running:
        async for number, event in running.events():
            delta: dict[str, Any] = {} if number in began else {"role": "assistant"}
            began.add(number)
            if event.text or delta:
                delta["content"] = event.text
            done = event.completion
            choice = {"index": number, "delta": delta, "logprobs": _logprobs(running.served, body, event.logprobs)}
            chunk = {**head, "choices": [{**choice, "finish_reason": done and reason_of(done)}]}
            if usage and (usage.include_usage or usage.continuous_usage_stats):
                chunk["usage"] = _usage(running) if usage.continuous_usage_stats else None
            yield chunk
        if usage and usage.include_usage:
            yield {**head, "choices": [], "usage": _usage(running)}


def _choice(served: ServedModel, body: ChatBody, number: int, found: Completion) -> dict[str, Any]:
    return {
        "index": number,
        "message": {"role": "assistant", "content": found.text, "refusal": None},
        "logprobs": _logprobs(served, body, found.logprobs or ()),
        "finish_reason": reason_of(found),
    }


def _logprobs(served: ServedModel, body: ChatBody, entries: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    if not body.logprobs:
        return None
    texts = TokenTexts(served.model)

    def shown(token: int, value: float | None) -> dict[str, Any]:
        data = served.model.token_bytes(token, special=True)
        return {"token": texts.string(token), "logprob": finite(value), "bytes": list(data)}

    content = [
        {
            **shown(entry.token, entry.logprob),
            "top_logprobs": [shown(*pair) for pair in limited(entry, body.top_logprobs).top.items()],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def _usage(running: Running) -> dict[str, Any]:
    prompt, generated = running.handles[0].timing.prompt_tokens, sum(running.generated)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": running.handles[0].timing.prompt_cached},
    }


async def _tokens(served: ServedModel, messages: Sequence[Message]) -> list[int]:
    """The chat as the template writes it. Names of special tokens in a message stay text, as in any prompt."""
    marks: dict[str, str] = {}  # for the texts that have such names
    for content in dict.fromkeys(message.text for message in messages):
        plain, parsed = [await served.tokenize(content, special=which, add_special=False) for which in (False, True)]
        if plain != parsed:
            marks[content] = secrets.token_hex(16)
    text = _rendered(served, messages, marks)
    pieces: list[tuple[str, bool]] = [(text, True)]  # text, and whether names in it are special tokens
    for content, mark in marks.items():
        split: list[tuple[str, bool]] = []
        for piece, special in pieces:
            parts = piece.split(mark) if special else [piece]
            for index, part in enumerate(parts):
                split += [(content, False)] if index else []
                split.append((part, special))
        pieces = split
    found: list[int] = []
    for piece, special in pieces:
        if piece:
            found += await served.tokenize(piece, special=special, add_special=False)
    return found


def _rendered(served: ServedModel, messages: Sequence[Message], marks: Mapping[str, str]) -> str:
    """The template's text, with marks in place of some contents."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    environment.globals["raise_exception"] = raise_exception
    chat = [
        {"role": message.role, "content": marks.get(message.text, message.text)}
        | ({} if message.name is None else {"name": message.name})
        for message in messages
    ]
    try:
        return environment.from_string(served.chat_template or "").render(
            messages=chat,
            add_generation_prompt=True,
            bos_token=served.start_text,
            eos_token=served.end_text,
        )
    except TemplateError as error:
        raise refused(f"the chat template of {served.id} refuses these messages: {error}", "messages") from None
