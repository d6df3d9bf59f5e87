"""`POST /v1/completions`: continues prompts, and scores them with `echo` and `logprobs`."""

import codecs
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from dgpt2_quant.runtime import Completion, Event, RequestHandle, TokenLogprob
from dgpt2_quant.runtime.token_text import TokenTexts, finite, prompt_offsets
from dgpt2_quant.serve.calls.call import Call
from dgpt2_quant.serve.calls.errors import refused, unsupported
from dgpt2_quant.serve.calls.event_stream import EventStream
from dgpt2_quant.serve.calls.json_body import Prompts
from dgpt2_quant.serve.calls.models import ServedModel
from dgpt2_quant.serve.calls.prompts import PromptText, read_prompts
from dgpt2_quant.serve.calls.running import Running, require_count, tokens_to_generate, with_seed
from pydantic import Field

from .openai_sampling import NAMES, SamplingBody, options


class CompletionBody(SamplingBody):
    """OpenAI's completion request."""

    prompt: Prompts = Field("", description="A text, token ids, or a list of either; an empty one begins a new text.")
    max_tokens: int = Field(16, ge=0)
    echo: bool = Field(False, description="Begin the answer with the prompt.")
    logprobs: int | None = Field(None, ge=0, description="Add log-probabilities, and those of the N likeliest tokens.")
    best_of: int | None = Field(None, ge=1)
    suffix: str | None = None
    prompt_logprobs: int | None = Field(None, ge=0)
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, description="Keep only that many at the prompt's end; -1: as many as fit."
    )
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    add_special_tokens: bool = True
    token_healing: bool = Field(False, description="The text may begin with the rest of the prompt's last word.")
    parse_special: bool = Field(False, description="Read `<|endoftext|>` in the prompt as the special token.")


async def complete(call: Call, body: CompletionBody) -> dict[str, Any] | EventStream:
    """Answers a completion request. Raises `HTTPError`."""
    served = call.models.find(body.model)
    count = _checked(call, body)
    prompts = await read_prompts(
        call,
        served,
        body.prompt,
        special=body.parse_special,
        add_special=body.add_special_tokens,
        keep=body.truncate_prompt_tokens,
    )
    require_count(call, served, len(prompts) * count, "n" if body.best_of is None else "best_of")
    settings = options(body, served, call.settings)
    settings["token_healing"] = body.token_healing
    settings["max_tokens"] = tokens_to_generate(call, body, "max_tokens", 16)
    settings["logprobs"] = 0 if body.logprobs is None and count > body.n else body.logprobs
    before = [body.prompt_logprobs, body.logprobs if body.echo else None]
    settings["prompt_logprobs"] = max((value for value in before if value is not None), default=None)
    texts = [(prompt.tokens, with_seed(settings, body.seed, number)) for prompt in prompts for number in range(count)]
    running = Running(call, served, texts, NAMES)
    if body.token_healing and settings["max_tokens"] != 0:
        prompts = [_without_incomplete(served, prompt) for prompt in prompts]
    answer = _Answer(call, served, body, prompts, count)
    if body.stream:
        return EventStream(answer.stream(running), write_seconds=call.limits.write_seconds)
    with running:
        return answer.whole(await running.results(), running)


def _checked(call: Call, body: CompletionBody) -> int:
    """The number of texts to generate for each prompt. Raises `HTTPError` for what does not fit together."""
    if body.suffix is not None:
        raise unsupported("suffix")
    count = body.best_of or body.n
    if count < body.n:
        raise refused(f"`best_of` must be at least `n`, {body.n}, not {count}", "best_of")
    if body.stream and count > body.n:
        raise refused("`best_of` above `n` cannot be streamed", "best_of")
    for name in ("logprobs", "prompt_logprobs"):
        if (getattr(body, name) or 0) > call.limits.logprobs:
            raise refused(f"`{name}` must be 0-{call.limits.logprobs}, not {getattr(body, name)}", name)
    return count


@dataclass
class _Answer:
    """Makes the answer's parts. Text i of prompt p has the number p * count + i, and in the answer p * n + i."""

    call: Call
    served: ServedModel
    body: CompletionBody
    prompts: Sequence[PromptText]
    count: int

    def __post_init__(self) -> None:
        self.head = {
            "id": f"cmpl-{self.body.request_id or self.call.id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.served.id,
            "system_fingerprint": self.served.fingerprint,
        }

    def whole(self, found: Sequence[Completion], running: Running) -> dict[str, Any]:
        choices: list[dict[str, Any]] = []
        for first, prompt in zip(range(0, len(found), self.count), self.prompts, strict=True):
            group = found[first : first + self.count]
            if self.count > self.body.n:
                group = sorted(group, key=_mean_logprob, reverse=True)[: self.body.n]
            handle = running.handles[first]  # the prompt of all texts of the group
            choices += [
                {"index": len(choices) + at, **_Choice(self, prompt, handle).whole(one)} for at, one in enumerate(group)
            ]
        return {**self.head, "choices": choices, "usage": self.usage(running)}

    async def stream(self, running: Running) -> AsyncGenerator[dict[str, Any], None]:
        usage = self.body.stream_options or None
        writers = [_Choice(self, self.prompts[at // self.count], handle) for at, handle in enumerate(running.handles)]
        with running:
            async for number, event in running.events():
                choice = writers[number].chunk(event)
                if choice is None:
                    continue
                chunk = {**self.head, "choices": [{"index": number, **choice}]}
                if usage and (usage.include_usage or usage.continuous_usage_stats):
                    chunk["usage"] = self.usage(running) if usage.continuous_usage_stats else None
                yield chunk
            if usage and usage.include_usage:
                yield {**self.head, "choices": [], "usage": self.usage(running)}

    def usage(self, running: Running) -> dict[str, Any]:
        """Each prompt counts once, each text that was generated for it too."""
        timings = [handle.timing for handle in running.handles[:: self.count]]
        prompt_tokens, generated = sum(timing.prompt_tokens for timing in timings), sum(running.generated)
        cached = sum(timing.prompt_cached for timing in timings)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": generated,
            "total_tokens": prompt_tokens + generated,
            "prompt_tokens_details": {"cached_tokens": cached},
        }


class _Choice:
    """Writes one text of an answer, whole or in chunks."""

    def __init__(self, answer: _Answer, prompt: PromptText, handle: RequestHandle) -> None:
        self.body, self.prompt, self.handle = answer.body, prompt, handle
        self.texts = TokenTexts(answer.served.model, as_ids=self.body.return_tokens_as_token_ids)
        self.start_token = answer.served.model.start_token
        self.began = False

    def whole(self, found: Completion) -> dict[str, Any]:
        return self.part(
            found.text, found.token_ids, found.logprobs or (), found.prompt_logprobs or (), reason_of(found)
        )

    def chunk(self, event: Event) -> dict[str, Any] | None:
        """The part for an event; None for one that shows nothing."""
        done = event.completion
        if not (event.text or event.token_ids or event.prompt_logprobs or done):
            return None
        return self.part(
            event.text, event.token_ids, event.logprobs, event.prompt_logprobs, reason_of(done) if done else None
        )

    def part(
        self,
        text: str,
        ids: Sequence[int],
        entries: Sequence[TokenLogprob],
        before: Sequence[TokenLogprob],
        reason: str | None,
    ) -> dict[str, Any]:
        """A part of the text: its tokens with their log-probabilities, and the prompt's with the first part."""
        body, first = self.body, not self.began
        self.began = True
        echoed = first and body.echo
        found: dict[str, Any] = {"text": self.prompt.text + text if echoed else text, "logprobs": None}
        if body.logprobs is not None:
            before_offsets = self._prompt_offsets() if first else []
            offsets = [self.texts.add(token, special=not body.skip_special_tokens) for token in ids]
            shown = [limited(entry, body.logprobs) for entry in entries]
            if echoed:
                shown = [*(limited(entry, body.logprobs) for entry in before), *shown]
                offsets = [*before_offsets, *offsets]
            found["logprobs"] = self.texts.logprobs(shown, offsets)
        found["finish_reason"] = reason
        if first and body.prompt_logprobs is not None:
            found["prompt_logprobs"] = [self._vllm(limited(entry, body.prompt_logprobs)) for entry in before]
        if body.return_token_ids:
            found["token_ids"] = list(ids)
            found["prompt_token_ids"] = list(self.handle.prompt) if first else None
        return found

    def _prompt_offsets(self) -> list[int]:
        """The offsets of the prompt's tokens, after which those of the text begin."""
        prompt, tokens, texts = self.prompt, self.handle.prompt, self.texts
        begins = tokens[0] == self.start_token != prompt.tokens[0]  # token healing put it there
        offsets = prompt_offsets(texts, tokens, skips_first=prompt.adds_first or begins)
        if tokens == prompt.tokens and texts.offset != len(prompt.text):
            texts.end_character()
            texts.offset = len(prompt.text)
        return [min(offset, len(prompt.text)) for offset in offsets]

    def _vllm(self, entry: TokenLogprob) -> dict[str, Any] | None:
        """A token of the prompt in the shape of vLLM's `prompt_logprobs`; the rank is known among the likeliest."""
        if entry.logprob is None:
            return None
        ranks = {token: rank for rank, token in enumerate(entry.top, 1)}
        return {
            str(token): {
                "logprob": finite(value),
                "rank": ranks.get(token),
                "decoded_token": self.texts.string(token),
            }
            for token, value in {**entry.top, entry.token: entry.logprob}.items()
        }


def _without_incomplete(served: ServedModel, prompt: PromptText) -> PromptText:
    """The prompt without an incomplete character at its end: with token healing that is part of the text."""
    data = [served.model.token_bytes(token) for token in prompt.tokens[-4:]]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(b"".join(data))
    return replace(prompt, text=prompt.text[:-1]) if data[-1] and decoder.getstate()[0] else prompt


def limited(entry: TokenLogprob, count: int) -> TokenLogprob:
    """The entry with at most `count` alternatives: the engine was asked for the most that any field needs."""
    return entry if len(entry.top) <= count else replace(entry, top=dict(islice(entry.top.items(), count)))


def reason_of(found: Completion) -> str:
    return "length" if found.finish_reason == "length" else "stop"


def _mean_logprob(found: Completion) -> float:
    values = [entry.logprob or 0.0 for entry in found.logprobs or ()]
    return sum(values) / max(1, len(values))
