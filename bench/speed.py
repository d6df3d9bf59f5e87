"""Prompt and decode speed, with the contestants interleaved.

On a shared machine a timing says little by itself. So in every round each file is timed once, in turn (A B C A B C),
after a warm-up; a median over rounds, with minimum and maximum, and above all the ratio between files then mean
something. Where other processes used the cores meanwhile, that is marked.
"""

import os
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path

from dgpt2_quant.quantize.cores import threads_or_all
from dgpt2_quant.quantize.errors import UsageError
from dgpt2_quant.quantize.progress import Progress
from dgpt2_quant.runtime.model import Model

PROMPT_TOKENS = 128
DECODE_TOKENS = 64
_DISTURBED = 0.10  # of the machine's CPU time, used by others


@dataclass(frozen=True)
class Rate:
    """Tokens per second over the rounds."""

    median: float
    min: float
    max: float
    rounds: int


@dataclass(frozen=True)
class Speed:
    """`disturbed`: others used more than a tenth of the machine in this file's rounds; None where unknown."""

    prompt_tps: Rate
    decode_tps: Rate
    disturbed: bool | None


def measure(
    files: Sequence[Path],
    *,
    rounds: int = 5,
    threads: int | None = None,
    prompt_tokens: int = PROMPT_TOKENS,
    decode_tokens: int = DECODE_TOKENS,
    progress: Progress | None = None,
) -> list[Speed]:
    """Times each file in each round: a prompt, then greedy decoding behind it, both at batch 1.

    An end-of-text token does not end it: every file decodes the same number of tokens. Raises `UsageError` for a
    model with too few positions for that.
    """
    prompts: list[list[float]] = [[] for _ in files]
    decodes: list[list[float]] = [[] for _ in files]
    meters = [_OthersMeter() for _ in files]
    with ExitStack() as stack:
        count = threads_or_all(threads)  # a governor's trials are none of a file's speed
        models = [stack.enter_context(Model.load(path, threads=count)) for path in files]
        for number in range(-1, rounds):
            for index, model in enumerate(models):
                prompt = _prompt(model, prompt_tokens, number)
                generation = model.stream(prompt, max_tokens=decode_tokens, seed=0, temperature=0, ignore_eos=True)
                with meters[index] if number >= 0 else nullcontext():  # the first round warms up
                    for _ in generation:
                        pass
                prompt_tps, decode_tps = generation.timing.prompt_tps, generation.timing.decode_tps
                if prompt_tps is None or decode_tps is None:
                    raise UsageError(f"{files[index]} has {model.positions} positions, too few to measure speed with")
                if number >= 0:
                    prompts[index].append(prompt_tps)
                    decodes[index].append(decode_tps)
            if progress:
                progress(number + 2, rounds + 1, "speed")
    return [
        Speed(_rate(prompt), _rate(decode), meter.disturbed())
        for prompt, decode, meter in zip(prompts, decodes, meters, strict=True)
    ]


def _prompt(model: Model, length: int, number: int) -> list[int]:
    """Token ids that differ from round to round, so that nothing is kept from the round before."""
    length = min(length, model.positions // 2)
    return [(7 + 31 * index + 1009 * (number + 2)) % model.vocabulary for index in range(length)]


def _rate(values: Sequence[float]) -> Rate:
    return Rate(statistics.median(values), min(values), max(values), len(values))


class _OthersMeter:
    """The share of the machine's CPU time that others, or the hypervisor, used in the blocks that it watched."""

    def __init__(self) -> None:
        self._others = 0.0
        self._available = 0.0
        self._known = _busy_seconds() is not None

    def __enter__(self) -> None:
        self._busy, self._own, self._clock = _busy_seconds(), time.process_time(), time.monotonic()

    def __exit__(self, *_: object) -> None:
        busy = _busy_seconds()
        if busy is None or self._busy is None:
            return
        # the kernel counts in ticks of 10 ms; over the blocks the error averages out
        self._others += busy - self._busy - (time.process_time() - self._own)
        self._available += (time.monotonic() - self._clock) * (os.cpu_count() or 1)

    def disturbed(self) -> bool | None:
        """None where the system does not tell."""
        return self._others > _DISTURBED * self._available if self._known else None


def _busy_seconds() -> float | None:
    """CPU seconds that all processes together have used, steal included (`man 5 proc_stat`); None where unknown."""
    try:
        with open("/proc/stat", encoding="ascii") as file:  # noqa: PTH123  the hot path of a measurement
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return None
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
