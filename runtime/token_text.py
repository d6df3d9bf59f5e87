"""The strings of tokens, and where they are in a text: what `logprobs` of OpenAI's completions are made of."""

import codecs
import math
from collections.abc import Iterable, Sequence
from typing import Any

from .completion import TokenLogprob
from .vocabulary import Vocabulary

_LEAST = -9999.0  # stands for minus infinity, which JSON does not have


class TokenTexts:
    """The tokens of one text in order, with their offsets in characters.

    A token that is only a part of a character is written as `bytes:\\xe2\\x80`; its offset is the character's.
    """

    def __init__(self, model: Vocabulary, *, as_ids: bool = False) -> None:
        self.model, self.as_ids = model, as_ids
        self.offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, token: int, *, special: bool = True) -> int:
        """Advances by a token and returns its offset. `special`: a control token's name is part of the text."""
        data = self.model.token_bytes(token, special=special)
        if data and not 0x80 <= data[0] < 0xC0:  # it does not continue a character
            self.end_character()
        offset = self.offset
        self.offset += len(self._decoder.decode(data))
        return offset

    def end_character(self) -> None:
        """An incomplete character becomes U+FFFD, as in the text."""
        self.offset += len(self._decoder.decode(b"", final=True))
        self._decoder.reset()

    def string(self, token: int) -> str:
        """The text of a token; different tokens have different ones, except for a control token and its name."""
        if self.as_ids:
            return f"token_id:{token}"
        data = self.model.token_bytes(token, special=True)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def logprobs(self, entries: Iterable[TokenLogprob], offsets: Sequence[int]) -> dict[str, Any]:
        """OpenAI's `logprobs` object for some tokens, with their ids in addition: two tokens may have one string."""
        tokens, values, tops, ids = [], [], [], []
        for entry in entries:
            tokens.append(self.string(entry.token))
            values.append(finite(entry.logprob))
            tops.append(None if entry.logprob is None else self._top(entry))
            every = entry.top if entry.logprob is None else {**entry.top, entry.token: entry.logprob}
            ids.append([[token, finite(value)] for token, value in every.items()])
        return {
            "tokens": tokens,
            "token_logprobs": values,
            "top_logprobs": tops,
            "text_offset": list(offsets),
            "top_token_ids": ids,
        }

    def _top(self, entry: TokenLogprob) -> dict[str, float | None]:
        """The alternatives by their strings, the likeliest first. Of two with one string, the likelier counts."""
        found: dict[str, float | None] = {}
        for token, value in entry.top.items():
            found.setdefault(self.string(token), finite(value))
        found.setdefault(self.string(entry.token), finite(entry.logprob))
        return found


def finite(value: float | None) -> float | None:
    """A log-probability as JSON has it."""
    return value if value is None or math.isfinite(value) else _LEAST


def prompt_offsets(texts: TokenTexts, tokens: Sequence[int], *, skips_first: bool) -> list[int]:
    """The offsets of a prompt's tokens. With `skips_first` the first is no part of the prompt's text."""
    return [texts.add(token, special=not (skips_first and index == 0)) for index, token in enumerate(tokens)]


def describe_tokens(model: Vocabulary, entries: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """For JSON: each token with its log-probability, and the likeliest ones there (`top`)."""
    return [
        {
            **_described(model, entry.token),
            "logprob": entry.logprob,
            "top": [{**_described(model, token), "logprob": logprob} for token, logprob in entry.top.items()],
        }
        for entry in entries
    ]


def _described(model: Vocabulary, token: int) -> dict[str, Any]:
    """A token's id, text, and bytes, which may be part of a character. Special tokens have neither text nor bytes."""
    data = model.token_bytes(token)
    return {"token": token, "text": model.detokenize([token]), "bytes": list(data)}
