"""Prompt lookup: draft tokens taken from earlier in the text (Saxena 2023, "Prompt Lookup Decoding").

A draft changes nothing in the text: draft tokens are decoded together with the token before them, and dropped from the
first one that the model does not choose itself. llama.cpp computes four tokens together in the time of about 2.4 single
ones, so correct drafts save time, and greedy texts of small models repeat themselves often.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MAX_DRAFT_TOKENS = 31
DRAFT_TOKENS = 3  # default for greedy texts: llama.cpp's kernels compute rows by fours
_RUN = 5  # tokens in a row that must have occurred before; shorter runs are wrong too often


@dataclass(slots=True)
class DraftToken:
    """A guessed token as a `BatchToken`."""

    token: int
    next_position: int
    slot: int


class Lookup:
    """An index of where each run of tokens last occurred, in a prompt and the text after it."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._prompt = len(prompt)
        self._tokens: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}  # a run -> the index after it
        self._found: int | None = None  # the index after the previous occurrence of the last run
        self._append(prompt)

    def draft(self, chosen: Sequence[int], count: int) -> Sequence[int]:
        """Up to `count` tokens that may follow; empty if the last run has not occurred before.

        `chosen` are all tokens after the prompt so far; they extend those of the previous call.
        """
        self._append(chosen[len(self._tokens) - self._prompt :])
        found = self._found
        if found is None:
            return ()
        following = self._tokens[found : found + count]  # up to the end of the text, then again from its beginning
        return [following[index % len(following)] for index in range(count)]

    def _append(self, new: Sequence[int]) -> None:
        tokens = self._tokens
        for token in new:
            tokens.append(token)
            run = tuple(tokens[-_RUN:])
            self._found = self._next.get(run)
            self._next[run] = len(tokens)
