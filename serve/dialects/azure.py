"""`POST /score` in the four shapes of Azure ML's text-generation endpoints, which differ in their keys.

{"input_data": [...], "params": {...}}                              -> ["text", ...]
{"input_data": {"input_string": [...], "parameters": {...}}}        -> [{"0": "text"}, ...]
{"inputs": {"input_string": [...]}, "parameters": {...}}            -> [[{"generated_text": "text"}, ...], ...]
{"inputs": {"input_string": [...]}}                                 -> [{"0": "text"}, ...]

Parameters are those of Transformers' text-generation pipeline, which samples up to 50 tokens by default. Texts are read
as Transformers does, with `<|endoftext|>` as the special token.
"""

from collections.abc import Mapping
from typing import Any

from dgpt2_quant.serve.calls.call import Call
from dgpt2_quant.serve.calls.errors import HTTPError, refused
from dgpt2_quant.serve.calls.json_body import Body, Items
from dgpt2_quant.serve.calls.prompts import read_prompts
from dgpt2_quant.serve.calls.running import Running, require_count, tokens_to_generate, with_seed
from pydantic import Field


class Parameters(Body):
    """Generation parameters by Transformers' names."""

    temperature: float = Field(1.0, ge=0, le=100)
    top_p: float = Field(1.0, ge=0, le=1)
    top_k: int = Field(50, ge=0)
    typical_p: float = Field(1.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, gt=0)
    do_sample: bool = True
    max_new_tokens: int | None = Field(None, ge=0, description="50, unless `max_length` is given.")
    min_new_tokens: int | None = Field(None, ge=0)
    max_length: int | None = Field(None, ge=1, description="Of the prompt and the new text together.")
    min_length: int | None = Field(None, ge=0, description="Of the prompt and the new text together.")
    num_return_sequences: int = Field(1, ge=1)
    return_full_text: bool = True
    seed: int | None = Field(None, ge=0)


class InputData(Body):
    """Texts, and perhaps their parameters."""

    input_string: str | Items[str]
    parameters: Parameters | None = None
    params: Parameters | None = None


class ScoreBody(Body):
    """One of the four shapes."""

    input_data: Items[str] | InputData | str | None = None
    inputs: InputData | Items[str] | str | None = None
    parameters: Parameters | None = None
    params: Parameters | None = None
    model: str | None = Field(None, description="An id of /v1/models; by default the first.")


NAMES = {"repeat_penalty": "repetition_penalty", "max_tokens": "max_new_tokens", "min_tokens": "min_new_tokens"}
_NEW_TOKENS = 50
_CARD_TEMPERATURE = 0.8  # the default of DistilGPT2's endpoint, which takes the first shape


async def score(call: Call, body: ScoreBody) -> list[Any]:
    """Answers in the shape that the request's keys ask for. Raises `HTTPError`."""
    if (body.input_data is None) == (body.inputs is None):
        raise refused("give one of `input_data` and `inputs`", "input_data")
    given = body.input_data if body.inputs is None else body.inputs
    inside = [given.parameters, given.params] if isinstance(given, InputData) else []
    parameters = [found for found in (*inside, body.parameters, body.params) if found is not None]
    if len(parameters) > 1:
        raise refused("the parameters are given twice", "parameters")
    texts = given.input_string if isinstance(given, InputData) else given
    texts = [texts] if isinstance(texts, str) else list(texts or ())
    is_list = body.input_data is not None and not isinstance(given, InputData)
    chosen = parameters[0] if parameters else Parameters()
    if is_list and "temperature" not in chosen.model_fields_set:
        chosen = chosen.model_copy(update={"temperature": _CARD_TEMPERATURE})
    found = await _generate(call, body.model, texts, chosen)
    if is_list:
        return [text for group in found for text in group]
    if body.inputs is not None and parameters:
        return [[{"generated_text": text} for text in group] for group in found]
    return [{str(number): text for number, text in enumerate(group)} for group in found]


async def _generate(call: Call, model: str | None, texts: list[str], given: Parameters) -> list[list[str]]:
    served = call.models.find(model)
    prompts = await read_prompts(call, served, texts, special=True, name="input_string")
    count = given.num_return_sequences
    require_count(call, served, len(prompts) * count, "num_return_sequences")
    if count > 1 and not given.do_sample:
        raise refused("`num_return_sequences` above 1 needs `do_sample`: all texts would be the same", "do_sample")
    jobs = [
        (prompt.tokens, with_seed(options, given.seed, number))
        for prompt in prompts
        for options in [_options(call, given, len(prompt.tokens))]
        for number in range(count)
    ]
    with Running(call, served, jobs, NAMES) as running:
        found = [one.text for one in await running.results()]
    before = [prompt.text if given.return_full_text else "" for prompt in prompts]
    return [
        [text + one for one in found[first : first + count]]
        for text, first in zip(before, range(0, len(found), count), strict=True)
    ]


def error_body(error: HTTPError) -> dict[str, Any]:
    return {"message": error.message}


def _options(call: Call, given: Parameters, length: int) -> Mapping[str, Any]:
    """The scheduler's options for a prompt of `length` tokens. As in Transformers, new tokens go before lengths."""
    if given.max_new_tokens is None and given.max_length is not None:
        most = given.max_length - length
        if most < 1:
            raise refused(f"`max_length` must be more than the {length} tokens of the prompt", "max_length")
        if call.limits.tokens is not None and most > call.limits.tokens:
            raise refused(f"`max_length` may add at most {call.limits.tokens} tokens on this server", "max_length")
    else:
        most = tokens_to_generate(call, given, "max_new_tokens", _NEW_TOKENS) or 0
    least = given.min_new_tokens
    if least is None:
        least = max(0, (given.min_length or 0) - length)
    if least > most:
        name = "min_length" if given.min_new_tokens is None else "min_new_tokens"
        raise refused(f"`{name}` asks for {least} new tokens, and at most {most} are generated", name)
    return {
        "max_tokens": most,
        "min_tokens": least,
        "temperature": given.temperature if given.do_sample else 0.0,
        "top_p": given.top_p if given.do_sample else 1.0,
        "top_k": given.top_k if given.do_sample else 0,
        "typical_p": given.typical_p if given.do_sample else 1.0,
        "min_p": 0.0,
        "repeat_penalty": given.repetition_penalty,
        "repeat_last_n": -1,
    }
