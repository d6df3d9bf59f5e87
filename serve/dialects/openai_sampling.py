"""The sampling fields that completions and chat completions share, and what they mean for the scheduler."""

from typing import Annotated, Any

from dgpt2_quant.serve.calls.errors import refused, unsupported
from dgpt2_quant.serve.calls.json_body import Body, Ids, Items
from dgpt2_quant.serve.calls.models import ServedModel
from dgpt2_quant.serve.calls.settings import Settings
from pydantic import Field

MOST_STOPS, MOST_BIASES = 64, 300  # each is looked at for each token, while the other texts wait
Stop = Annotated[str, Field(max_length=1000)]
Stops = Stop | Annotated[Items[Stop], Field(max_length=MOST_STOPS)]


class StreamOptions(Body):
    """What a stream sends in addition to text."""

    include_usage: bool = False
    continuous_usage_stats: bool = False


class SamplingBody(Body):
    """OpenAI's sampling fields, and those that vLLM and llama.cpp's server accept in addition."""

    model: str | None = Field(None, description="An id of /v1/models; by default the first.")
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1)
    seed: int | None = Field(None, ge=-1, description="-1: a random one.")
    stop: Stops | None = None
    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, ge=0, le=1)
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: dict[str, float] | None = Field(
        None, max_length=MOST_BIASES, description="Numbers to add to logits, by token id."
    )
    user: str | None = None
    top_k: int = Field(0, ge=-1, description="0 or -1: all tokens.")
    min_p: float = Field(0.0, ge=0, le=1)
    typical_p: float = Field(1.0, ge=0, le=1)
    repetition_penalty: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int = Field(-1, ge=-1, description="Tokens for the penalties; -1: all.")
    min_tokens: int = Field(0, ge=0)
    ignore_eos: bool = False
    stop_token_ids: Ids | None = Field(None, max_length=MOST_STOPS)
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: Items[str] | None = None
    grammar: str | None = None
    cache_prompt: bool = True
    request_id: Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")] | None = None


NAMES = {"repeat_penalty": "repetition_penalty"}
"""The library's names of settings to those of a request, where they differ."""


def options(body: SamplingBody, served: ServedModel, settings: Settings) -> dict[str, Any]:
    """The keyword arguments of `Scheduler.submit`, without `max_tokens`, `seed` and `logprobs`.

    Raises `HTTPError` for what is not supported.
    """
    if body.include_stop_str_in_output:
        raise unsupported("include_stop_str_in_output")
    if body.stream_options and not body.stream:
        raise refused("`stream_options` needs `stream`", "stream_options")
    if body.grammar and not settings.allow_grammar:
        raise unsupported("grammar", "start the server with --allow-grammar")
    given = (body.repetition_penalty, body.repeat_penalty)
    penalty = next((value for value in given if value is not None), 1.0)
    found: dict[str, Any] = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": max(0, body.top_k),
        "min_p": body.min_p,
        "typical_p": body.typical_p,
        "repeat_penalty": penalty,
        "frequency_penalty": body.frequency_penalty,
        "presence_penalty": body.presence_penalty,
        "repeat_last_n": body.repeat_last_n,
        "logit_bias": _biases(body, served),
        "stop": body.stop,
        "stop_token_ids": body.stop_token_ids,
        "min_tokens": body.min_tokens,
        "ignore_eos": body.ignore_eos,
        "show_special": not body.skip_special_tokens,
        "mirostat": body.mirostat,
        "mirostat_tau": body.mirostat_tau,
        "mirostat_eta": body.mirostat_eta,
        "dry_multiplier": body.dry_multiplier,
        "dry_base": body.dry_base,
        "dry_allowed_length": body.dry_allowed_length,
        "dry_penalty_last_n": body.dry_penalty_last_n,
        "grammar": body.grammar or "",
    }
    if body.dry_sequence_breakers is not None:
        found["dry_sequence_breakers"] = body.dry_sequence_breakers
    return found


def _biases(body: SamplingBody, served: ServedModel) -> dict[int, float]:
    found = {}
    for name, bias in (body.logit_bias or {}).items():
        if not (name.isascii() and name.isdecimal()) or len(name) > 9 or int(name) >= served.model.vocabulary:
            most = served.model.vocabulary - 1
            raise refused(f"`logit_bias` must map token ids, 0-{most}, to numbers, not {name[:40]!r}", "logit_bias")
        found[int(name)] = bias
    return found
