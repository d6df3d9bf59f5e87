"""Times a prompt and decoding with one file, for a text or at one point of the grid.

A model keeps the cells of a prompt for an equal prompt that follows. So a text is generated twice: to its first token,
which times the prompt, and to its end, which times only decoding. A small model does both in some hundredths of a
second, which is too short to time on a shared machine, so they are repeated, with another prompt each time.

On a busy machine threads wait for each other at every barrier, and a text can take a hundred times as long. A disturbed
turn is marked in any case, so it ends early.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dgpt2_quant.bench.data.open_models import using_threads
from dgpt2_quant.runtime.generation import Generation
from dgpt2_quant.runtime.model import Model

from .disturbance import Usage, Watch
from .energy import EnergyMeter
from .grid import Point

TEXT_SECONDS = 0.3  # that a turn of a contestant takes at least
POINT_SECONDS = 0.06  # the same for a point of the grid
_DISTURBED = 4.0  # times these seconds, after which a disturbed turn ends
_LEAST_TOKENS = 4  # of each sequence, in a disturbed turn too
_LOOK_SECONDS = 0.25  # between checks for disturbance, in a turn that takes longer


@dataclass(frozen=True)
class Sample:
    """One measurement. Speeds are in tokens per second; a point measures one of them, and the other is 0."""

    prompt_tps: float
    decode_tps: float
    joules_per_token: float | None
    usage: Usage


class _Sums:
    """Tokens, seconds and joules of the repetitions; the joules are None if one reading is."""

    def __init__(self, meter: EnergyMeter) -> None:
        self.prompt_tokens = self.decode_tokens = 0
        self.prompt_seconds = self.decode_seconds = 0.0
        self._meter = meter
        self._joules: float | None = 0.0

    def read_prompt(self, model: Model, prompt: Sequence[int]) -> None:
        generation = _finished(model, prompt, 1)
        self.prompt_tokens += generation.timing.prompt_computed
        self.prompt_seconds += generation.timing.prompt_seconds

    def decode(
        self, model: Model, prompt: Sequence[int], tokens: int, give_up: Callable[[], bool], batch: int = 1
    ) -> None:
        """Decodes the same text `batch` times in parallel, to its end or until `give_up()`."""
        before = self._meter.read()
        texts = model.batch(
            [prompt],
            num_return_sequences=batch,
            parallel=batch,
            max_tokens=tokens,
            seed=0,
            temperature=0,
            lookup=0,  # one token per decode, whatever the text
            ignore_eos=True,
        )
        for pieces, _ in enumerate(texts, 1):
            if pieces > _LEAST_TOKENS * batch and give_up():
                break
        texts.close()
        joules = self._meter.joules(before, self._meter.read())
        self._joules = None if self._joules is None or joules is None else self._joules + joules
        self.decode_tokens += texts.timing.decoded  # the first token of each costs no decode
        self.decode_seconds += texts.timing.decode_seconds

    def sample(self, usage: Usage) -> Sample:
        return Sample(
            self.prompt_tokens / self.prompt_seconds if self.prompt_tokens else 0.0,
            self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0,
            None if self._joules is None or not self.decode_tokens else self._joules / self.decode_tokens,
            usage,
        )


def give_up_if_disturbed(watch: Watch, seconds: float) -> Callable[[], bool]:
    """Whether a turn that takes `seconds` on a quiet machine is disturbed and has taken long enough."""
    look = time.perf_counter() + _DISTURBED * seconds

    def give_up() -> bool:
        nonlocal look
        if (now := time.perf_counter()) < look:
            return False
        look = now + _LOOK_SECONDS
        return watch.so_far().disturbed is True

    return give_up


def time_text(model: Model, prompt: Sequence[int], tokens: int, threads: int, meter: EnergyMeter) -> Sample:
    """Times a prompt, then `tokens` tokens after it; the model has `threads` threads."""
    sums, repetition = _Sums(meter), 0
    with Watch(threads) as watch:
        end, give_up = time.perf_counter() + TEXT_SECONDS, give_up_if_disturbed(watch, TEXT_SECONDS)
        while not repetition or time.perf_counter() < end:
            fresh = _varied(model, prompt, repetition)
            sums.read_prompt(model, fresh)
            sums.decode(model, fresh, tokens, give_up)
            repetition += 1
    return sums.sample(watch.usage)


def time_point(model: Model, point: Point, prompt: Sequence[int], threads: int, meter: EnergyMeter) -> Sample:
    """Times a point of the grid; the prompt is the one to time, or fills the cache to the point's depth."""
    if point.threads != threads:
        with using_threads(model, point.threads):
            _finished(model, [prompt[0]], 2)  # starts or ends the threads
            return time_point(model, point, prompt, point.threads, meter)
    sums, repetition = _Sums(meter), 0
    if point.measure == "decode" and point.batch == 1:
        # two tokens: after a deep prompt the first step copies the cache to another context
        _finished(model, prompt, 2)
    with Watch(threads) as watch:
        end, give_up = time.perf_counter() + POINT_SECONDS, give_up_if_disturbed(watch, POINT_SECONDS)
        while not repetition or time.perf_counter() < end:
            if point.measure == "prompt":
                sums.read_prompt(model, _varied(model, prompt, repetition))
            else:
                sums.decode(model, prompt, point.tokens, give_up, point.batch)
            repetition += 1
    return sums.sample(watch.usage)


def _finished(model: Model, prompt: Sequence[int], tokens: int) -> Generation:
    generation = model.stream(prompt, max_tokens=tokens, seed=0, temperature=0, lookup=0, ignore_eos=True)
    for _ in generation:
        pass
    return generation


def _varied(model: Model, prompt: Sequence[int], repetition: int) -> list[int]:
    """The prompt with another first token, so that no cached prompt can be reused."""
    return [(prompt[0] + repetition) % model.vocabulary, *prompt[1:]]
