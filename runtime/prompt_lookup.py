"""Guesses of how a text goes on, from how it went on before: prompt lookup (Saxena 2023, "Prompt Lookup Decoding").

A guess decides nothing. It is fed together with the token before it, and where the model's own choice is another one,
it is forgotten. But llama.cpp computes four tokens together in the time of some 2.4 that come one by one, so right
guesses save time, and greedily chosen texts of small models say much again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

MOST_GUESSES = 31
GUESSES = 3  # at a time, where a text is written greedily: llama.cpp's kernels take rows by fours
_RUN = 5  # tokens that must have been there before, in a row; fewer are wrong too often


@dataclass(slots=True)
class Guess:
    """A token that is fed on trial, at that position of that slot."""

    token: int
    next_position: int
    slot: int


class Lookup:
    """Where each run of tokens was last, in a prompt and the text behind it."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._prompt = len(prompt)
        self._tokens: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}  # a run -> the index behind it
        self._found: int | None = None  # where the text went on behind the run at its end
        self._append(prompt)

    def guesses(self, chosen: Sequence[int], count: int) -> Sequence[int]:
        """At most `count` tokens that may follow those chosen so far, which go on from those of the last call.

        None where nothing like the text's end was there before.
        """
        self._append(chosen[len(self._tokens) - self._prompt :])
        found = self._found
        if found is None:
            return ()
        following = self._tokens[found : found + count]  # up to the text's end: that may come again and again
        return [following[index % len(following)] for index in range(count)]

    def _append(self, new: Sequence[int]) -> None:
        tokens = self._tokens
        for token in new:
            tokens.append(token)
            run = tuple(tokens[-_RUN:])
            self._found = self._behind.get(run)
            self._behind[run] = len(tokens)
