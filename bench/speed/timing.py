"""How long one of our files takes for one text, or at one point of the grid.

What was computed for a prompt is kept for an equal prompt that follows, so a text is written twice: once to its first
token, which times the prompt, and once to its end, which times nothing but decoding. A small model does both in a few
hundredths of a second, too short for a clock on a shared machine: they are repeated, with another prompt each time.

On a busy machine threads wait for one another at every barrier, and a text can take a hundred times as long. Its speed
is marked as disturbed in any case, so a turn that is disturbed ends early.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dgpt2_quant.runtime.generation import Generation
from dgpt2_quant.runtime.model import Model

from .disturbance import Usage, Watch
from .energy import EnergyMeter
from .grid import Point

TEXT_SECONDS = 0.3  # that a contestant's turn takes at the least
POINT_SECONDS = 0.06  # of which there are many
_DISTURBED = 4.0  # times these seconds: how long a turn lasts that is disturbed
_LEAST_TOKENS = 4  # of each sequence, even then
_LOOK_SECONDS = 0.25  # from one look at the machine to the next, in a turn that takes longer


@dataclass(frozen=True)
class Sample:
    """One measurement. Speeds in tokens per second; a point has the one that it measures, and 0 for the other."""

    prompt_tps: float
    decode_tps: float
    joules_per_token: float | None
    usage: Usage


class _Sums:
    """Tokens, seconds and joules of the repetitions; the joules are None for good where one of them is."""

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
        """Writes `batch` times the same text, all together, to its end or until `give_up()`."""
        before = self._meter.read()
        texts = model.batch(
            [prompt],
            num_return_sequences=batch,
            parallel=batch,
            max_tokens=tokens,
            seed=0,
            temperature=0,
            lookup=0,  # a token for each decode, whatever the text
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


def _give_up(watch: Watch, seconds: float) -> Callable[[], bool]:
    """Whether a turn, which takes `seconds` on a quiet machine, has gone on for long enough and is disturbed."""
    look = time.perf_counter() + _DISTURBED * seconds

    def give_up() -> bool:
        nonlocal look
        if (now := time.perf_counter()) < look:
            return False
        look = now + _LOOK_SECONDS
        return watch.so_far().disturbed is True

    return give_up


def time_text(model: Model, prompt: Sequence[int], tokens: int, threads: int, meter: EnergyMeter) -> Sample:
    """A prompt and then `tokens` tokens, on the model's `threads`."""
    sums, repetition = _Sums(meter), 0
    with Watch(threads) as watch:
        end, give_up = time.perf_counter() + TEXT_SECONDS, _give_up(watch, TEXT_SECONDS)
        while not repetition or time.perf_counter() < end:
            fresh = _varied(model, prompt, repetition)
            sums.read_prompt(model, fresh)
            sums.decode(model, fresh, tokens, give_up)
            repetition += 1
    return sums.sample(watch.usage)


def time_point(model: Model, point: Point, prompt: Sequence[int], threads: int, meter: EnergyMeter) -> Sample:
    """What the point says, behind a prompt of its depth or of it; the model has the usual number of `threads`."""
    if point.threads != threads:
        with Model.load(model.path, threads=point.threads, huge_pages=model.huge_pages) as other:
            _finished(other, [prompt[0]], 2)  # the first token of a model sets up more than itself
            return time_point(other, point, prompt, point.threads, meter)
    sums, repetition = _Sums(meter), 0
    if point.measure == "decode" and point.batch == 1:
        # with one step behind it: behind a deep prompt the cache is first carried over to another context
        _finished(model, prompt, 2)
    with Watch(threads) as watch:
        end, give_up = time.perf_counter() + POINT_SECONDS, _give_up(watch, POINT_SECONDS)
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
    """The prompt with another beginning, so that nothing of the last repetition's serves for it."""
    return [(prompt[0] + repetition) % model.vocabulary, *prompt[1:]]
