"""Lines of OpenAI's batch format for /v1/completions and /v1/embeddings. Fields mean what they mean over HTTP.

https://platform.openai.com/docs/guides/batch describes the format. Nothing in an answer depends on the time, so that an
interrupted job gives the same bytes: `created` is 0.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from dgpt2_quant.runtime import Completion, Model
from dgpt2_quant.runtime.token_text import TokenTexts, prompt_offsets

from .requests import (
    FLAG,
    INTEGER,
    LIST,
    NUMBER,
    OBJECT,
    TEXT,
    TEXT_OR_LIST,
    BadLineError,
    Kinds,
    Request,
    Text,
    biases,
    take_fields,
)

MOST_TEXTS = 256  # of a line: all of a slice are in memory
_DEFAULTS: dict[str, Any] = {  # of OpenAI; the library's are those of llama.cpp
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repeat_last_n": -1,
    "max_tokens": 16,
}
_OPTIONS: Kinds = {  # with the library's name and meaning
    "max_tokens": INTEGER,
    "temperature": NUMBER,
    "top_p": NUMBER,
    "top_k": INTEGER,
    "min_p": NUMBER,
    "typical_p": NUMBER,
    "frequency_penalty": NUMBER,
    "presence_penalty": NUMBER,
    "repeat_penalty": NUMBER,
    "repeat_last_n": INTEGER,
    "logit_bias": OBJECT,
    "stop": TEXT_OR_LIST,
    "stop_token_ids": LIST,
    "seed": INTEGER,
    "min_tokens": INTEGER,
    "ignore_eos": FLAG,
    "logprobs": INTEGER,
    "mirostat": INTEGER,
    "mirostat_tau": NUMBER,
    "mirostat_eta": NUMBER,
    "dry_multiplier": NUMBER,
    "dry_base": NUMBER,
    "dry_allowed_length": INTEGER,
    "dry_penalty_last_n": INTEGER,
    "dry_sequence_breakers": LIST,
    "grammar": TEXT,
}
_COMPLETION: Kinds = {
    "model": TEXT,
    "prompt": TEXT_OR_LIST,
    **_OPTIONS,
    "repetition_penalty": NUMBER,
    "n": INTEGER,
    "echo": FLAG,
    "user": TEXT,
    "skip_special_tokens": FLAG,
    "add_special_tokens": FLAG,
    "parse_special": FLAG,
    "stream": FLAG,
}
_EMBEDDING: Kinds = {
    "model": TEXT,
    "input": TEXT_OR_LIST,
    "encoding_format": TEXT,
    "dimensions": INTEGER,
    "user": TEXT,
}
_REFUSED = {
    "suffix": "",
    "best_of": ": use `n`",
    "stream_options": "",
    "prompt_logprobs": ": use `echo` with `logprobs`",
    "truncate_prompt_tokens": ": shorten the prompt",
    "token_healing": ": use a plain line",
}
_ENVELOPE: Kinds = {"custom_id": TEXT, "method": TEXT, "url": TEXT, "body": OBJECT}


@dataclass
class OpenAICompletion:
    """A body for /v1/completions."""

    body: dict[str, Any]
    prompts: list[tuple[list[int], str, bool]] = field(default_factory=list)  # tokens, text, adds a first token

    def texts(self, model: Model) -> Sequence[Text]:
        body = self.body
        self.prompts = [
            _prompt(model, given, body.get("parse_special", False), body.get("add_special_tokens", True))
            for given in _each(body.get("prompt", ""), "prompt")
        ]
        options = {**_DEFAULTS, **{name: body[name] for name in _OPTIONS if name in body}}
        options["top_k"] = max(0, options["top_k"]) if options["top_k"] >= -1 else options["top_k"]
        if "repetition_penalty" in body:
            options["repeat_penalty"] = body["repetition_penalty"]
        if "logit_bias" in options:
            options["logit_bias"] = biases(options["logit_bias"])
        options["show_special"] = not body.get("skip_special_tokens", True)
        if body.get("echo") and "logprobs" in body:
            options["prompt_logprobs"] = body["logprobs"]
        count = body.get("n", 1)
        if not 1 <= count <= MOST_TEXTS // len(self.prompts):
            message = f"`n` must be 1 or more, and a line may have at most {MOST_TEXTS} texts, not {count} for each of"
            raise BadLineError(f"{message} {len(self.prompts)} prompts", param="n")
        seed = options.pop("seed", -1)
        seeds = [{"seed": seed + number} if seed != -1 else {} for number in range(count)]
        return [(tokens, {**options, **own}) for tokens, _, _ in self.prompts for own in seeds]

    def answer(self, model: Model, found: Sequence[Completion]) -> dict[str, Any]:
        count = self.body.get("n", 1)
        choices = []
        for index, text in enumerate(found):
            choices.append({"index": index, **self._choice(model, self.prompts[index // count], text)})
        used, written = sum(len(tokens) for tokens, _, _ in self.prompts), sum(text.tokens for text in found)
        usage = {"prompt_tokens": used, "completion_tokens": written, "total_tokens": used + written}
        return {"object": "text_completion", "choices": choices, "usage": usage}

    def _choice(self, model: Model, prompt: tuple[list[int], str, bool], found: Completion) -> dict[str, Any]:
        tokens, before, adds_first = prompt
        echo, shown = self.body.get("echo", False), None
        if "logprobs" in self.body:
            texts = TokenTexts(model)
            offsets = prompt_offsets(texts, tokens, skips_first=adds_first)
            texts.end_character()
            texts.offset = len(before)
            special = not self.body.get("skip_special_tokens", True)
            own = [texts.add(token, special=special) for token in found.token_ids]
            entries = [*(found.prompt_logprobs or ())] if echo else []
            entries += found.logprobs or ()
            before_own = [min(offset, len(before)) for offset in offsets] if echo else []
            shown = texts.logprobs(entries, [*before_own, *own])
        reason = "length" if found.finish_reason == "length" else "stop"
        return {"text": before + found.text if echo else found.text, "logprobs": shown, "finish_reason": reason}


@dataclass
class OpenAIEmbedding:
    """A body for /v1/embeddings: the mean of the hidden states after the final norm, scaled to length 1."""

    body: dict[str, Any]

    def texts(self, model: Model) -> Sequence[Text]:
        return ()

    def answer(self, model: Model, found: Sequence[Completion]) -> dict[str, Any]:
        body = self.body
        size, encoding = body.get("dimensions", model.width), body.get("encoding_format", "float")
        if not 1 <= size <= model.width:
            raise BadLineError(f"`dimensions` must be 1-{model.width}, not {size}", param="dimensions")
        if encoding not in ("float", "base64"):
            raise BadLineError(f"`encoding_format` must be float or base64, not {encoding!r}", param="encoding_format")
        if "input" not in body:
            raise BadLineError("the body must have the field `input`", "missing_field", "input")
        data: list[dict[str, Any]] = []
        used = 0
        for given in _each(body["input"], "input"):
            if not given:
                raise BadLineError("`input` must not have an empty text", param="input")
            tokens, _, _ = _prompt(model, given, special=False, add_special=True)
            used += len(tokens)
            vector = model.features(tokens, pooling="mean")[:size]
            vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
            as_bytes = vector.astype("<f4").tobytes()
            shown = base64.b64encode(as_bytes).decode() if encoding == "base64" else vector.tolist()
            data.append({"object": "embedding", "index": len(data), "embedding": shown})
        return {"object": "list", "data": data, "usage": {"prompt_tokens": used, "total_tokens": used}}


def is_openai(given: Mapping[str, Any]) -> bool:
    """Whether a line has a field of OpenAI's format."""
    return any(name in given for name in _ENVELOPE)


def read_openai(given: Mapping[str, Any], names: Sequence[str]) -> Request:
    """The request of an OpenAI line; `names` are those of the model. Raises `BadLineError`."""
    fields = take_fields(given, _ENVELOPE, "OpenAI's batch line")
    for name in _ENVELOPE:
        if name not in fields:
            raise BadLineError(f"OpenAI's batch line must have the field `{name}`", "missing_field", name)
    if fields["method"] != "POST":
        raise BadLineError(f"`method` must be POST, not {fields['method'][:60]!r}", "invalid_method", "method")
    url = fields["url"]
    if url == "/v1/completions":
        body = take_fields(fields["body"], _COMPLETION, f"the body for {url}", _REFUSED)
        if body.get("stream"):
            raise BadLineError("`stream` is not supported in a batch", "unsupported_value", "stream")
        found: Request = OpenAICompletion(body)
    elif url == "/v1/embeddings":
        body = take_fields(fields["body"], _EMBEDDING, f"the body for {url}")
        found = OpenAIEmbedding(body)
    else:
        raise BadLineError(f"`url` must be /v1/completions or /v1/embeddings, not {url[:60]!r}", "invalid_url", "url")
    wanted = body.get("model")
    if wanted is not None and wanted.lower() not in map(str.lower, names):
        message = f"the model {wanted[:100]!r} does not exist; this job runs {names[0]}"
        raise BadLineError(message, "model_not_found", "model")
    return found


def openai_answer(given: Mapping[str, Any], line: int, result: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The answer to a line, in OpenAI's format with the number of the line in addition."""
    body = {**result, "model": model}
    if body["object"] == "text_completion":
        body = {"id": f"cmpl-{line}", "created": 0, **body}
    response = {"status_code": 200, "request_id": f"req_{line}", "body": body}
    return {**_head(given, line), "response": response, "error": None}


def openai_error(given: Mapping[str, Any], line: int, error: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a line that failed."""
    return {**_head(given, line), "response": None, "error": error}


def _head(given: Mapping[str, Any], line: int) -> dict[str, Any]:
    return {"line": line, "id": f"batch_req_{line}", "custom_id": given.get("custom_id")}


def _each(given: Any, name: str) -> list[str | list[int]]:
    """The texts or lists of token ids of a field."""
    if isinstance(given, str) or all(type(item) is int for item in given):
        if given == []:
            raise BadLineError(f"`{name}` must not be an empty list", param=name)
        return [given]
    texts = all(isinstance(item, str) for item in given)
    if not texts and not all(isinstance(item, list) and all(type(token) is int for token in item) for item in given):
        raise BadLineError(f"`{name}` must be a text, token ids, or a list of either", param=name)
    return list(given)


def _prompt(model: Model, given: str | list[int], special: bool, add_special: bool) -> tuple[list[int], str, bool]:
    """(token ids, text, whether the first token is not part of the text)."""
    if isinstance(given, str):
        tokens = model.tokenize(given, special=special, add_special=add_special)
        if not tokens:
            return [model.start_token], given, True
        return tokens, given, add_special and tokens[0] == model.first_token
    wrong = [token for token in given if not 0 <= token < model.vocabulary]
    if wrong:
        raise BadLineError(f"token ids must be 0-{model.vocabulary - 1}, not {wrong[0]}")
    text = b"".join(model.token_bytes(token, special=True) for token in given).decode("utf-8", "replace")
    return (given, text, False) if given else ([model.start_token], text, True)
