"""The routes of llama.cpp's server that other programs use: completion, tokenize, detokenize, props, slots."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from dgpt2_quant.runtime import Completion, Event, TokenLogprob
from dgpt2_quant.runtime.token_text import TokenTexts, finite
from dgpt2_quant.serve.calls.call import Call
from dgpt2_quant.serve.calls.errors import HTTPError, refused, unsupported
from dgpt2_quant.serve.calls.event_stream import EventStream
from dgpt2_quant.serve.calls.json_body import Body, Items, Prompts
from dgpt2_quant.serve.calls.models import ServedModel
from dgpt2_quant.serve.calls.prompts import PromptText, read_prompts
from dgpt2_quant.serve.calls.running import Running, require_count, tokens_to_generate
from pydantic import Field

from .openai_sampling import MOST_BIASES, Stops

_BIASED_TEXT = 100  # characters
NAMES = {"max_tokens": "n_predict", "logprobs": "n_probs"}
_UNSUPPORTED: dict[str, Any] = {  # fields that the scheduler lacks, with the value that switches them off
    "xtc_probability": 0.0,
    "dynatemp_range": 0.0,
    "top_n_sigma": -1.0,
    "n_keep": 0,
    "n_indent": 0,
    "min_keep": 0,
    "json_schema": None,
    "id_slot": -1,
    "n_cmpl": 1,
    "post_sampling_probs": False,
    "return_progress": False,
    "lora": [],
    "t_max_predict_ms": None,
}


class CompletionBody(Body):
    """llama.cpp's completion request."""

    prompt: Prompts | Items[str | int]
    model: str | None = None
    n_predict: int = Field(-1, ge=-1, description="Tokens to generate; -1: up to the end of the context.")
    max_tokens: int | None = Field(None, ge=-1, description="The same as `n_predict`.")
    temperature: float = 0.8
    top_k: int = Field(40, ge=-1)
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: Items[str] | None = None
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    grammar: str = ""
    seed: int = Field(-1, ge=-1, description="-1: a random one.")
    ignore_eos: bool = False
    logit_bias: Items[Items[int | float | bool | str]] | dict[str, float] | None = Field(None, max_length=MOST_BIASES)
    n_probs: int = Field(0, ge=0)
    stop: Stops | None = None
    stream: bool = False
    cache_prompt: bool = True
    return_tokens: bool = False
    timings_per_token: bool = False
    t_max_predict_ms: float | None = None
    response_fields: Items[str] | None = None
    samplers: Items[str] | str | None = Field(None, description="Accepted; the order of the samplers is fixed.")
    parse_special: bool = False
    token_healing: bool = Field(False, description="The text may begin with the rest of the prompt's last word.")
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    top_n_sigma: float = -1.0
    n_keep: int = 0
    n_indent: int = 0
    n_discard: int = 0
    min_keep: int = 0
    json_schema: dict[str, Any] | None = None
    id_slot: int = -1
    n_cmpl: int = 1
    post_sampling_probs: bool = False
    return_progress: bool = False
    lora: Items[Any] = Field(default_factory=list)


async def complete(call: Call, body: CompletionBody) -> Any:
    """Answers llama.cpp's `/completion`: one object, or a list for several prompts. Raises `HTTPError`."""
    served = call.models.find(body.model)
    for name, value in _UNSUPPORTED.items():
        if getattr(body, name) != value:
            raise unsupported(name)
    if body.grammar and not call.settings.allow_grammar:
        raise unsupported("grammar", "start the server with --allow-grammar")
    if body.n_probs > call.limits.logprobs:
        raise refused(f"`n_probs` must be 0-{call.limits.logprobs}, not {body.n_probs}", "n_probs")
    prompts = await _prompts(call, served, body)
    require_count(call, served, len(prompts), "prompt")
    if body.stream and len(prompts) > 1:
        raise refused("`stream` needs a single prompt", "stream")
    settings = _options(body, served)
    settings["max_tokens"] = tokens_to_generate(
        call, body, "n_predict" if body.max_tokens is None else "max_tokens", -1
    )
    running = Running(call, served, [(prompt.tokens, settings) for prompt in prompts], NAMES)
    if body.stream:
        chunks = _stream(running, served, body, prompts[0])
        return EventStream(chunks, write_seconds=call.limits.write_seconds, end=b"", error_body=error_body)
    with running:
        found = await running.results()
        answers = [
            _final(running, served, body, number, prompts[number], one, one.text) for number, one in enumerate(found)
        ]
    return answers if len(answers) > 1 else answers[0]


async def _stream(
    running: Running, served: ServedModel, body: CompletionBody, prompt: PromptText
) -> AsyncGenerator[dict[str, Any], None]:
    with running:
        async for number, event in running.events():
            if event.completion:
                if event.text:
                    yield _chunk(running, served, body, event)
                yield _final(running, served, body, number, prompt, event.completion, "")
            elif event.text or event.token_ids:
                yield _chunk(running, served, body, event)


def _chunk(running: Running, served: ServedModel, body: CompletionBody, event: Event) -> dict[str, Any]:
    found = {
        "index": 0,
        "content": event.text,
        "tokens": list(event.token_ids),
        "stop": False,
        "id_slot": -1,
        "tokens_predicted": running.generated[0],
        "tokens_evaluated": running.handles[0].timing.prompt_tokens,
    }
    if body.n_probs:
        found["completion_probabilities"] = _probabilities(served, event.logprobs)
    if body.timings_per_token:
        found["timings"] = _timings(running, 0)
    return found


def _final(
    running: Running,
    served: ServedModel,
    body: CompletionBody,
    number: int,
    prompt: PromptText,
    found: Completion,
    text: str,
) -> dict[str, Any]:
    prompt_tokens = running.handles[number].timing.prompt_tokens
    kinds = {"eos": "eos", "length": "limit", "stop": "word"}
    answer = {
        "index": number,
        "content": text,
        "tokens": list(found.token_ids) if body.return_tokens and not body.stream else [],
        "id_slot": -1,
        "stop": True,
        "model": served.id,
        "tokens_predicted": found.tokens,
        "tokens_evaluated": prompt_tokens,
        "generation_settings": {
            "seed": running.handles[number].seed,
            **body.model_dump(exclude={"prompt", "stream", "model", "seed", *_UNSUPPORTED}),
        },
        "prompt": prompt.text,
        "has_new_line": "\n" in found.text,
        "truncated": False,
        "stop_type": kinds.get(found.finish_reason, "none"),
        "stopping_word": found.stop_reason if isinstance(found.stop_reason, str) else "",
        "tokens_cached": prompt_tokens + found.tokens - 1,
        "timings": _timings(running, number),
    }
    if body.n_probs and not body.stream:
        answer["completion_probabilities"] = _probabilities(served, found.logprobs or ())
    if body.response_fields:
        answer = {name: answer[name] for name in body.response_fields if name in answer}
    return answer


def _probabilities(served: ServedModel, entries: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    texts = TokenTexts(served.model)

    def shown(token: int, value: float | None) -> dict[str, Any]:
        data = served.model.token_bytes(token, special=True)
        return {"id": token, "token": texts.string(token), "bytes": list(data), "logprob": finite(value)}

    return [
        {**shown(entry.token, entry.logprob), "top_logprobs": [shown(*pair) for pair in entry.top.items()]}
        for entry in entries
    ]


def _timings(running: Running, number: int) -> dict[str, Any]:
    timing = running.handles[number].timing
    prompt_ms, predicted_ms = 1000 * timing.prompt_seconds, 1000 * timing.decode_seconds
    prompt, predicted = timing.prompt_computed, running.generated[number]
    return {
        "cache_n": timing.prompt_cached,
        "prompt_n": prompt,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": prompt_ms / max(1, prompt),
        "prompt_per_second": 1000 * prompt / prompt_ms if prompt_ms else 0.0,
        "predicted_n": predicted,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": predicted_ms / max(1, predicted),
        "predicted_per_second": 1000 * predicted / predicted_ms if predicted_ms else 0.0,
    }


async def _prompts(call: Call, served: ServedModel, body: CompletionBody) -> list[PromptText]:
    prompt: Any = body.prompt
    if isinstance(prompt, list) and {type(part) for part in prompt} == {int, str}:
        tokens: list[int] = []
        if len(prompt) > 2 * served.scheduler.positions:
            raise refused("`prompt` has too many parts", "prompt", "context_length_exceeded")
        for part in prompt:
            is_text = isinstance(part, str)
            tokens += await served.tokenize(part, special=body.parse_special, add_special=False) if is_text else [part]
        prompt = tokens
    return await read_prompts(call, served, prompt, special=body.parse_special)


def _options(body: CompletionBody, served: ServedModel) -> dict[str, Any]:
    names = (
        *("temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "repeat_last_n", "presence_penalty"),
        *("frequency_penalty", "dry_multiplier", "dry_base", "dry_allowed_length", "dry_penalty_last_n", "mirostat"),
        *("mirostat_tau", "mirostat_eta", "grammar", "ignore_eos", "stop", "token_healing"),
    )
    found: dict[str, Any] = {name: getattr(body, name) for name in names}
    found["top_k"] = max(0, body.top_k)
    found["seed"] = None if body.seed in (-1, 2**32 - 1) else body.seed
    found["logprobs"] = body.n_probs or None
    found["logit_bias"] = _biases(body, served)
    if body.dry_sequence_breakers is not None:
        found["dry_sequence_breakers"] = body.dry_sequence_breakers
    return found


def _biases(body: CompletionBody, served: ServedModel) -> dict[int, float]:
    """llama.cpp's [[id or text, bias or false], ...], or an object by id."""
    given = body.logit_bias or []
    pairs = [(name, bias) for name, bias in given.items()] if isinstance(given, dict) else given
    found: dict[int, float] = {}
    for pair in pairs:
        if len(pair) != 2:
            raise refused("each entry of `logit_bias` must be [token id or text, number or false]", "logit_bias")
        what, bias = pair
        if isinstance(bias, str) or bias is True:
            raise refused("a bias must be a number or false", "logit_bias")
        added = float("-inf") if bias is False else float(bias)
        text = isinstance(what, str) and not (isinstance(given, dict) and what.isdecimal())
        if isinstance(what, bool | float) or (text and len(str(what)) > _BIASED_TEXT):
            raise refused(f"`logit_bias` must have token ids or texts of up to {_BIASED_TEXT} characters", "logit_bias")
        tokens = served.model.tokenize(str(what), special=False) if text else [int(what)]
        for token in tokens:
            if not 0 <= token < served.model.vocabulary:
                raise refused(f"`logit_bias` must have token ids 0-{served.model.vocabulary - 1}", "logit_bias")
            found[token] = added
    return found


def error_body(error: HTTPError) -> dict[str, Any]:
    """The error object with llama.cpp's code, which is the status."""
    return {"error": {**error.body()["error"], "code": error.status}}
