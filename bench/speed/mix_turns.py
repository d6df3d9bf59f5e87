"""Mixes timed in turns with one file that is always the same, so that the machine's drift cancels.

A file is written, loaded, and its name removed at once: whatever happens, nothing is left behind. A few files are in
memory at a time. In each round the base file is timed before and after the others, and a mix's time is told as a ratio
to the mean of the two: a machine that is slower for a while is slower for all of them.
"""

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.runtime.model import Model

from .disturbance import Watch
from .mixes import Mix, MixWriter

GROUP = 6  # mixes in memory at a time, beside the base
ROUNDS = 8
LEAST_ROUNDS = 2  # of a machine so slow that the time is over
TOKENS = 24  # of one turn
POSITIONS = 2 * TOKENS  # that a mix has to have
_TURN_SECONDS = 0.2  # after which a turn ends early
_LEAST_TOKENS = 4


@dataclass(frozen=True)
class Turns:
    """A mix's rounds: its time as a ratio to the base's, and the base's in seconds a token; whether something disturbed
    them (None where the system does not tell)."""

    ratios: tuple[float, ...]
    base: tuple[float, ...]
    disturbed: bool | None = None


class Timer(Protocol):
    """How mixes are timed; the tests have one that knows the answer."""

    def __call__(
        self, base: Mix, mixes: Sequence[Mix], *, threads: int, seconds: float, progress: Progress | None = None
    ) -> list[Turns]: ...


def time_mixes(
    base: Mix, mixes: Sequence[Mix], *, threads: int, seconds: float, progress: Progress | None = None
) -> list[Turns]:
    """Each mix's rounds, in `seconds` for all of them together or little more: fewer rounds where time is short.

    Raises `DgptQuantError` when a file can not be written.
    """
    found: list[Turns] = []
    end = time.perf_counter() + seconds
    with tempfile.TemporaryDirectory(prefix="dgpt2-quant-") as folder, ExitStack() as stack:
        files = _Files(Path(folder), threads)
        clock = stack.enter_context(files.load(base))
        groups = [mixes[start : start + GROUP] for start in range(0, len(mixes), GROUP)]
        for number, group in enumerate(groups):
            left = end - time.perf_counter()
            with ExitStack() as loaded:
                models = [loaded.enter_context(files.load(mix)) for mix in group]
                found += _rounds(clock, models, threads, time.perf_counter() + left / (len(groups) - number))
            if progress:
                progress(len(found), len(mixes), "kernel times")
    return found


class _Files:
    def __init__(self, folder: Path, threads: int) -> None:
        self._folder = folder
        self._threads = threads
        self._writer = MixWriter()

    def load(self, mix: Mix) -> Model:
        """The model in memory; its file has no name any more."""
        path = self._folder / "mix.gguf"
        try:
            self._writer.write(mix, path)
            return Model.load(path, threads=self._threads)
        finally:
            path.unlink(missing_ok=True)


def _rounds(clock: Model, models: Sequence[Model], threads: int, end: float) -> list[Turns]:
    for model in (clock, *models):
        _turn(model, 3)  # the first token of a model sets up more than itself
    with Watch(threads) as watch:
        base = [_turn(clock)]
        taken: list[list[float]] = []
        while len(taken) < LEAST_ROUNDS or (len(taken) < ROUNDS and time.perf_counter() < end):
            # every other round backwards, so that a steady drift favours nobody
            order = models if len(taken) % 2 else models[::-1]
            seconds = {id(model): _turn(model) for model in order}
            taken.append([seconds[id(model)] for model in models])
            base.append(_turn(clock))
    beside = [(before + after) / 2 for before, after in pairwise(base)]
    return [
        Turns(tuple(one / other for one, other in zip(own, beside, strict=True)), tuple(beside), watch.usage.disturbed)
        for own in zip(*taken, strict=True)
    ]


def _turn(model: Model, tokens: int = TOKENS) -> float:
    """Seconds a token, the choice of it included: the lower quartile of one turn's.

    Where threads lose their cores to others, some tokens take ten times as long; the quartile is one that did not.
    """
    clocks = []
    for _ in model.stream([1], max_tokens=tokens + 1, seed=0, temperature=0, lookup=0, ignore_eos=True):
        clocks.append(time.perf_counter())
        if len(clocks) > _LEAST_TOKENS and clocks[-1] - clocks[0] > _TURN_SECONDS:
            break
    return float(np.quantile(np.diff(clocks), 0.25))
