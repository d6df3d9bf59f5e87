"""Plain lines: `{"prompt": ..., options}`, `{"task": "classify", "text": ...}` and `{"task": "score", "text": ...}`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from dgpt2_quant.runtime import Completion, Model, Options
from dgpt2_quant.runtime.token_text import describe_tokens

from .requests import ANY, FLAG, TEXT, TEXT_OR_LIST, BadLineError, Request, Text, biases, take_fields

_ABOUT = {"id": ANY, "task": TEXT}


@dataclass
class Generation:
    """Continues a prompt; every option of `Model.generate` is a field."""

    prompt: Any
    options: dict[str, Any]

    def texts(self, model: Model) -> Sequence[Text]:
        return [(self.prompt, self.options)]

    def answer(self, model: Model, found: Sequence[Completion]) -> dict[str, Any]:
        (text,) = found
        answer: dict[str, Any] = {"text": text.text, "finish_reason": text.finish_reason, "tokens": text.tokens}
        if text.stop_reason is not None:
            answer["stop_reason"] = text.stop_reason
        for name, entries in (("logprobs", text.logprobs), ("prompt_logprobs", text.prompt_logprobs)):
            if entries is not None:
                answer[name] = describe_tokens(model, entries)
        return answer


@dataclass
class Classification:
    """Labels a text with the model's classification head, or compares choices."""

    fields: dict[str, Any]

    def texts(self, model: Model) -> Sequence[Text]:
        return ()

    def answer(self, model: Model, found: Sequence[Completion]) -> dict[str, Any]:
        options = dict(self.fields)
        (result,) = model.classify([options.pop("text")], **options)
        return result.to_json()


@dataclass
class Score:
    """The log-probability of each token of a text."""

    text: str | list[int]

    def texts(self, model: Model) -> Sequence[Text]:
        return ()

    def answer(self, model: Model, found: Sequence[Completion]) -> dict[str, Any]:
        values = model.score(self.text).astype(np.float64)
        total = float(values[1:].sum())
        perplexity = float(np.exp(-total / (len(values) - 1))) if len(values) > 1 else None
        return {"tokens": len(values), "logprob": total, "perplexity": perplexity, "logprobs": values.tolist()}


def read_plain(given: Mapping[str, Any], defaults: Mapping[str, Any]) -> Request:
    """The request of a plain line; `defaults` are options of generation. Raises `BadLineError`."""
    task = given.get("task") or "generate"
    if task == "classify":
        kinds = {**_ABOUT, "text": TEXT_OR_LIST, "truncate": FLAG, "aggregation": TEXT}
        fields = take_fields(given, kinds, "a line to classify")
        return Classification({"text": _required(fields, "text"), **_without(fields, "id", "task", "text")})
    if task == "score":
        fields = take_fields(given, {**_ABOUT, "text": TEXT_OR_LIST}, "a line to score")
        return Score(_required(fields, "text"))
    if task != "generate":
        raise BadLineError(f"`task` must be generate, classify or score, not {str(task)[:60]!r}", param="task")
    kinds = {**_ABOUT, "prompt": TEXT_OR_LIST, **dict.fromkeys(Options.__annotations__, ANY)}
    fields = take_fields(given, kinds, "a line")
    options = {**defaults, **_without(fields, "id", "task", "prompt")}
    if isinstance(options.get("logit_bias"), dict):
        options["logit_bias"] = biases(options["logit_bias"])
    return Generation(_required(fields, "prompt"), options)


def plain_answer(given: Mapping[str, Any], line: int, result: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a plain line, with its `id` if it has one."""
    return {"line": line, **({"id": given["id"]} if "id" in given else {}), **result}


def plain_error(given: Mapping[str, Any], line: int, error: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a plain line that failed."""
    return plain_answer(given, line, {"error": error})


def _required(fields: Mapping[str, Any], name: str) -> Any:
    if name not in fields:
        raise BadLineError(f"the line must have the field `{name}`", "missing_field", name)
    return fields[name]


def _without(fields: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}
