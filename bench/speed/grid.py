"""The settings at which speed is measured: prompt sizes, context depths, batch sizes, thread counts.

One setting changes at a time. The others are the common case: all threads, one sequence, an empty cache. All
combinations, which llama-bench times, would take hours for a large model on two cores.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime.model import check_parallel
from dgpt2_quant.runtime.threads import MOST_THREADS

TOKENS = 32  # decoded at each point, per sequence
PROMPT_TOKENS = 128  # of the points that change the number of threads

_PROMPT_SIZES = (16, 128)
_DEPTHS = (0, 256)
_BATCHES = (1, 4, 8)
_THREAD_COUNTS = (1,)  # in addition to the usual number


@dataclass(frozen=True)
class Point:
    """One setting: `tokens` per sequence, after `depth` tokens that are in its cache already."""

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
    """The values of each setting. None means the usual values that fit the model, an empty sequence none."""

    prompt_sizes: Sequence[int] | None = None
    depths: Sequence[int] | None = None
    batches: Sequence[int] | None = None
    thread_counts: Sequence[int] | None = None

    @classmethod
    def none(cls) -> "Grid":
        """A grid without points."""
        return cls((), (), (), ())

    def points(self, positions: int, threads: int) -> list[Point]:
        """The points for a model with these positions and the usual number of threads, without duplicates.

        Raises `UsageError` for a given value out of range; prompts and depths must fit the positions.
        """
        tokens = min(TOKENS, positions // 2)
        sizes = _chosen("prompt_sizes", self.prompt_sizes, _PROMPT_SIZES, 1, positions)
        depths = _chosen("depths", self.depths, _DEPTHS, 0, positions - tokens)
        batches = _BATCHES if self.batches is None else self.batches
        for batch in batches:
            check_parallel(batch, "batches")
        counts = _chosen("thread_counts", self.thread_counts, _THREAD_COUNTS, 1, MOST_THREADS)
        found = [Point("prompt", size, 0, 1, threads) for size in sizes]
        found += [Point("decode", tokens, depth, 1, threads) for depth in depths]
        found += [Point("decode", tokens, 0, batch, threads) for batch in batches]
        for count in counts:
            found.append(Point("decode", tokens, 0, 1, count))
            found.append(Point("prompt", min(PROMPT_TOKENS, positions), 0, 1, count))
        return list(dict.fromkeys(found))


USUAL = Grid()


def parse_counts(text: str | None, name: str, *, least: int = 1) -> tuple[int, ...] | None:
    """Parses whole numbers from `least` with commas between them, such as "1,4,8"; `name` is the keyword, for errors.

    None stays None. Raises `UsageError` for anything else, and for a number that is given twice.
    """
    if text is None:
        return None
    hint = f"Write `{name}` as {least},{least + 4},{least + 16}."
    found: list[int] = []
    for part in text.split(","):
        if not re.fullmatch(r"\s*[0-9]{1,9}\s*", part):
            raise UsageError(f"`{name}` must be whole numbers with commas between them, not {text!r}", hint)
        number = int(part)
        if number < least:
            raise UsageError(f"`{name}` must be {least} or more, not {number}", hint)
        if number in found:
            raise UsageError(f"`{name}` has {number} twice", hint)
        found.append(number)
    return tuple(found)


def _chosen(name: str, given: Sequence[int] | None, usual: Sequence[int], least: int, most: int) -> Sequence[int]:
    """The given values, or the usual ones that fit."""
    if given is None:
        return [value for value in usual if value <= most]
    for value in given:
        if not least <= value <= most:
            raise UsageError(f"`{name}` must be {least}-{most}, not {value}")
    return given
