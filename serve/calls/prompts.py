"""The prompts of a request: texts or token ids, checked against the limits."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from .call import Call
from .errors import HTTPError, refused
from .json_body import Prompts
from .models import ServedModel


@dataclass(frozen=True)
class PromptText:
    """A prompt's token ids, at least one, and its text. With `adds_first` the first token is not part of the text."""

    tokens: list[int]
    text: str
    adds_first: bool = False


async def read_prompts(
    call: Call,
    served: ServedModel,
    given: Prompts,
    *,
    special: bool = False,
    add_special: bool = True,
    keep: int | None = None,
    name: str = "prompt",
) -> list[PromptText]:
    """The prompts in order. With `special`, names such as `<|endoftext|>` in a text are special tokens.

    `keep` is the number of tokens to keep at a prompt's end. Raises `HTTPError` 400 for too many or too long ones.
    """
    texts = _each(given, name)
    if len(texts) > call.limits.prompts:
        raise refused(f"`{name}` must have at most {call.limits.prompts} texts, not {len(texts)}", name)
    if keep == -1:
        keep = served.scheduler.positions
    found: list[PromptText] = []
    for text in texts:
        prompt = await _read(served, text, special, add_special, keep, name)
        if len(prompt.tokens) > served.scheduler.positions:
            raise too_long(served, len(prompt.tokens), name)
        found.append(prompt)
        await asyncio.sleep(0)  # others may have their turn
    return found


def _each(given: Prompts, name: str) -> Sequence[str | Sequence[int]]:
    if isinstance(given, str):
        return [given]
    if not given:
        raise refused(f"`{name}` must not be an empty list", name)
    if isinstance(given[0], int):
        return [given]
    return given


async def _read(
    served: ServedModel, text: str | Sequence[int], special: bool, add_special: bool, keep: int | None, name: str
) -> PromptText:
    model = served.model
    if isinstance(text, str):
        tokens = await served.tokenize(text, special=special, add_special=add_special)
        adds_first = add_special and bool(tokens) and tokens[0] == model.first_token
    else:
        check_ids(served, text, name)
        tokens, adds_first = list(text), False
        text = text_of(served, tokens)
    if keep is not None and len(tokens) > keep:
        tokens, adds_first = tokens[-keep:], False
        text = text_of(served, tokens)
    if not tokens:
        tokens, adds_first = [model.start_token], True
    return PromptText(tokens, text, adds_first)


def check_ids(served: ServedModel, tokens: Sequence[int], name: str) -> None:
    """Raises `HTTPError` 400 for what is not the id of a token."""
    most = served.model.vocabulary - 1
    wrong = [token for token in tokens if not 0 <= token <= most]
    if wrong:
        raise refused(f"`{name}` must have token ids 0-{most}, not {wrong[0]}", name)


def text_of(served: ServedModel, tokens: Sequence[int]) -> str:
    """The text of tokens, special tokens by their names."""
    return b"".join(served.model.token_bytes(token, special=True) for token in tokens).decode("utf-8", "replace")


def too_long(served: ServedModel, count: int, name: str) -> HTTPError:
    most = served.scheduler.positions
    message = f"`{name}` must have at most {most} tokens to fit the context of {served.id}, not {count}"
    return refused(message, name, "context_length_exceeded")
