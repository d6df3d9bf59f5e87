"""Which settings the speed is measured at: prompt sizes, context depths, batch sizes, thread counts.

One of them changes at a time. The others stay at the common case: all threads, one sequence, no text before it. All
combinations, as llama-bench times them, would be some dozens, and hours for a large model on two cores.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime.model import check_parallel
from dgpt2_quant.runtime.threads import check_threads

TOKENS = 32  # decoded at each point, by each sequence
PROMPT_TOKENS = 128  # where the number of threads changes

_PROMPT_SIZES = (16, 128)
_DEPTHS = (0, 256)
_BATCHES = (1, 4, 8)
_THREAD_COUNTS = (1,)  # besides the usual number


@dataclass(frozen=True)
class Point:
    """One setting. `tokens` of each sequence, behind `depth` tokens that are in its cache already."""

    measure: Literal["prompt", "decode"]
    tokens: int
    depth: int
    batch: int
    threads: int

    def __str__(self) -> str:
        where = f", depth {self.depth}" * (self.depth > 0) + f", batch {self.batch}" * (self.batch > 1)
        return f"{self.measure} of {self.tokens} tokens{where}, {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass(frozen=True)
class Grid:
    """What to change, and to which values. None is for the usual values, as far as the model has positions for them;
    an empty sequence for none."""

    prompt_sizes: Sequence[int] | None = None
    depths: Sequence[int] | None = None
    batches: Sequence[int] | None = None
    thread_counts: Sequence[int] | None = None

    @classmethod
    def none(cls) -> "Grid":
        """No points at all."""
        return cls((), (), (), ())

    def points(self, positions: int, threads: int) -> list[Point]:
        """Each once, for a model of that many positions and the usual number of threads.

        Raises `UsageError` for a value that was asked for and that the model has no positions for.
        """
        tokens = min(TOKENS, positions // 2)
        sizes = _chosen(self.prompt_sizes, _PROMPT_SIZES, 1, positions, "a prompt of {} tokens", positions)
        depths = _chosen(self.depths, _DEPTHS, 0, positions - tokens, f"{tokens} tokens behind {{}}", positions)
        batches = _BATCHES if self.batches is None else self.batches
        for batch in batches:
            check_parallel(batch)
        counts = _THREAD_COUNTS if self.thread_counts is None else self.thread_counts
        for count in counts:
            check_threads(count)
        found = [Point("prompt", size, 0, 1, threads) for size in sizes]
        found += [Point("decode", tokens, depth, 1, threads) for depth in depths]
        found += [Point("decode", tokens, 0, batch, threads) for batch in batches]
        for count in counts:
            found.append(Point("decode", tokens, 0, 1, count))
            found.append(Point("prompt", min(PROMPT_TOKENS, positions), 0, 1, count))
        return list(dict.fromkeys(found))


USUAL = Grid()


def parse_counts(text: str, name: str, *, least: int = 1) -> tuple[int, ...]:
    """Whole numbers from `least` on, with commas between them: "1,4,8". `name` is the flag's, for the error.

    Raises `UsageError` for anything else, or for a number that is there twice.
    """
    hint = f"Write it like {name} {least},{least + 4},{least + 16}."
    found: list[int] = []
    for part in text.split(","):
        if not re.fullmatch(r"\s*[0-9]{1,9}\s*", part):
            raise UsageError(f"{name} is {text!r}; it takes whole numbers with commas between them", hint)
        number = int(part)
        if number < least:
            raise UsageError(f"{name} has {number}; it takes numbers from {least} on", hint)
        if number in found:
            raise UsageError(f"{name} has {number} twice", hint)
        found.append(number)
    return tuple(found)


def _chosen(
    asked: Sequence[int] | None, usual: Sequence[int], least: int, most: int, what: str, positions: int
) -> Sequence[int]:
    """The values that were asked for, or the usual ones that fit."""
    if asked is None:
        return [value for value in usual if value <= most]
    for value in asked:
        if not least <= value <= most:
            raise UsageError(
                f"{what.format(value)} can not be timed: the model has {positions} positions",
                f"Take numbers from {least} to {most}.",
            )
    return asked
