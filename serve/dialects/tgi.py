"""Text Generation Inference's routes, which `huggingface_hub.InferenceClient.text_generation` speaks."""

from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Any

from dgpt2_quant.runtime import Completion, TokenLogprob
from dgpt2_quant.runtime.token_text import TokenTexts, finite
from dgpt2_quant.serve.calls.call import Call
from dgpt2_quant.serve.calls.errors import HTTPError, refused, unsupported
from dgpt2_quant.serve.calls.event_stream import EventStream
from dgpt2_quant.serve.calls.json_body import Body, Items
from dgpt2_quant.serve.calls.models import ServedModel
from dgpt2_quant.serve.calls.prompts import read_prompts
from dgpt2_quant.serve.calls.running import Running, tokens_to_generate
from pydantic import Field

from .openai_sampling import MOST_STOPS, Stop

NAMES = {"max_tokens": "max_new_tokens", "repeat_penalty": "repetition_penalty", "logprobs": "top_n_tokens"}
_REASONS = {"length": "length", "eos": "eos_token", "stop": "stop_sequence"}


class Parameters(Body):
    """Generation parameters. Without `do_sample` or a sampling field, the likeliest token is taken."""

    max_new_tokens: int = Field(100, ge=1)
    do_sample: bool = False
    temperature: float | None = Field(None, gt=0, le=100)
    top_k: int | None = Field(None, ge=1)
    top_p: float | None = Field(None, gt=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0)
    frequency_penalty: float | None = None
    seed: int | None = Field(None, ge=0)
    stop: Annotated[Items[Stop], Field(max_length=MOST_STOPS)] = Field(default_factory=list)
    truncate: int | None = Field(None, ge=1, description="Keep only that many tokens at the prompt's end.")
    return_full_text: bool = False
    details: bool = False
    decoder_input_details: bool = False
    top_n_tokens: int | None = Field(None, ge=1)
    best_of: int | None = None
    watermark: bool = False
    grammar: dict[str, Any] | None = None
    adapter_id: str | None = None


class GenerateBody(Body):
    """Text Generation Inference's request."""

    inputs: str
    parameters: Parameters = Field(default_factory=Parameters)
    stream: bool = False
    model: str | None = Field(None, description="An id of /v1/models; by default the first.")


async def generate(call: Call, body: GenerateBody) -> dict[str, Any]:
    """Text Generation Inference's `/generate`: one text. Raises `HTTPError`."""
    running, _ = await _start(call, body)
    with running:
        (found,) = await running.results()
        return _whole(running, body, found)


async def generate_stream(call: Call, body: GenerateBody) -> EventStream:
    """Text Generation Inference's `/generate_stream`: an event for each token."""
    running, length = await _start(call, body)
    chunks = _stream(running, body, length)
    return EventStream(chunks, write_seconds=call.limits.write_seconds, end=b"", error_body=error_body)


async def root(call: Call, body: GenerateBody) -> list[dict[str, Any]] | EventStream:
    """The same at `/`, where `huggingface_hub` asks: a stream, or a list with one text."""
    return await generate_stream(call, body) if body.stream else [await generate(call, body)]


async def _start(call: Call, body: GenerateBody) -> tuple[Running, int]:
    served, given = call.models.find(body.model), body.parameters
    for name in ("watermark", "grammar", "adapter_id"):
        if getattr(given, name):
            raise unsupported(name)
    if (given.best_of or 1) != 1:
        raise unsupported("best_of", "use /v1/completions")
    if (given.top_n_tokens or 0) > call.limits.logprobs:
        raise refused(f"`top_n_tokens` must be 1-{call.limits.logprobs}, not {given.top_n_tokens}", "top_n_tokens")
    (prompt,) = await read_prompts(call, served, body.inputs, keep=given.truncate, name="inputs")
    samples = given.do_sample or any((given.temperature, given.top_k, given.top_p, given.typical_p))
    options = {
        "max_tokens": tokens_to_generate(call, given, "max_new_tokens", 100),
        "temperature": (given.temperature or 1.0) if samples else 0.0,
        "top_k": given.top_k or 0,
        "top_p": given.top_p or 1.0,
        "typical_p": given.typical_p or 1.0,
        "min_p": 0.0,
        "repeat_penalty": given.repetition_penalty or 1.0,
        "frequency_penalty": given.frequency_penalty or 0.0,
        "repeat_last_n": -1,
        "seed": given.seed,
        "stop": given.stop,
        "logprobs": (given.top_n_tokens or 0) if given.details or body.stream else None,
        "prompt_logprobs": 0 if given.decoder_input_details else None,
    }
    return Running(call, served, [(prompt.tokens, options)], NAMES), len(prompt.tokens)


def _whole(running: Running, body: GenerateBody, found: Completion) -> dict[str, Any]:
    text = body.inputs + found.text if body.parameters.return_full_text else found.text
    answer: dict[str, Any] = {"generated_text": text}
    if body.parameters.details:
        served = running.served
        answer["details"] = {
            "finish_reason": _REASONS[found.finish_reason],
            "generated_tokens": found.tokens,
            "seed": running.handles[0].seed,
            "prefill": [
                {
                    "id": entry.token,
                    "text": TokenTexts(served.model).string(entry.token),
                    "logprob": finite(entry.logprob),
                }
                for entry in found.prompt_logprobs or ()
            ],
            "tokens": [_token(served, entry.token, entry.logprob) for entry in found.logprobs or ()],
        }
        if body.parameters.top_n_tokens:
            answer["details"]["top_tokens"] = [_top(served, entry) for entry in found.logprobs or ()]
    return answer


async def _stream(running: Running, body: GenerateBody, length: int) -> AsyncGenerator[dict[str, Any], None]:
    served, index = running.served, 0
    with running:
        async for _, event in running.events():
            done, entries = event.completion, event.logprobs
            parts = [_part(served, body, entry) for entry in entries]
            shown = [part["token"] for part in parts if not part["token"]["special"]]
            if shown and "".join(token["text"] for token in shown) != event.text:  # parts of characters, or of a stop
                for token in shown:
                    token["text"] = ""
                shown[-1]["text"] = event.text
            for part in parts[: len(parts) - 1 if done else None]:
                index += 1
                yield {"index": index, **part, "generated_text": None, "details": None}
            if done:
                text = body.inputs + done.text if body.parameters.return_full_text else done.text
                details = {
                    "finish_reason": _REASONS[done.finish_reason],
                    "generated_tokens": done.tokens,
                    "input_length": length,
                    "seed": running.handles[0].seed,
                }
                part = parts[-1] if parts else _part(served, body, TokenLogprob(served.model.end_token, 0.0))
                yield {"index": index + 1, **part, "generated_text": text, "details": details}


def _part(served: ServedModel, body: GenerateBody, entry: TokenLogprob) -> dict[str, Any]:
    found: dict[str, Any] = {"token": _token(served, entry.token, entry.logprob)}
    if body.parameters.top_n_tokens:
        found["top_tokens"] = _top(served, entry)
    return found


def _top(served: ServedModel, entry: TokenLogprob) -> Sequence[dict[str, Any]]:
    return [_token(served, token, value) for token, value in entry.top.items()]


def _token(served: ServedModel, token: int, logprob: float | None) -> dict[str, Any]:
    is_special = not served.model.token_bytes(token)
    text = TokenTexts(served.model).string(token)
    return {"id": token, "text": text, "logprob": finite(logprob), "special": is_special}


def error_body(error: HTTPError) -> dict[str, Any]:
    kinds = {400: "validation", 429: "overloaded"}
    return {"error": error.message, "error_type": kinds.get(error.status, "generation")}
