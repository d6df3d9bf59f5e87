"""One generation: an iterator of text that knows, when it is through, how it went."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from .library import NativeSampler
from .sampling import PENALTY_WINDOW, Sampling
from .text_stream import TextStream

if TYPE_CHECKING:
    from .model import Model

FinishReason = Literal["length", "stop", "eos"]


@dataclass
class Timing:
    """Of a generation: counts, and seconds by the clock.

    The prompt's time is that of computing it. The first token is sampled from the prompt's last logits and costs no
    decode of its own, so `decode_tps` counts from the second one on. `first_token_ms` includes the prompt.
    """

    prompt_tokens: int = 0
    prompt_computed: int = 0
    prompt_seconds: float = 0.0
    decode_tokens: int = 0
    decode_steps: int = 0
    decode_seconds: float = 0.0
    first_token_ms: float | None = None

    @property
    def prompt_tps(self) -> float | None:
        return self.prompt_computed / self.prompt_seconds if self.prompt_computed else None

    @property
    def decode_tps(self) -> float | None:
        return self.decode_steps / self.decode_seconds if self.decode_steps else None

    def to_json(self) -> dict[str, Any]:
        names = ("prompt_tokens", "prompt_tps", "decode_tokens", "decode_tps", "first_token_ms")
        return {name: getattr(self, name) for name in names}


def total_timing(timings: Sequence[Timing]) -> Timing:
    """Of several generations from one prompt: decoding in sum, the prompt and the first token of the first."""
    total = replace(timings[0])
    for timing in timings[1:]:
        total.decode_tokens += timing.decode_tokens
        total.decode_steps += timing.decode_steps
        total.decode_seconds += timing.decode_seconds
    return total


@dataclass(frozen=True)
class Completion:
    """A finished text (without the prompt): `tokens` counts what was sampled."""

    text: str
    tokens: int
    finish_reason: FinishReason


@dataclass
class Generation(Iterator[str]):
    """Iterate for the pieces of text as they come; afterwards `completion` and `timing` are there.

    Starting a second generation of the same model ends this one: they share the context.
    """

    model: "Model"
    prompt: Sequence[int]
    max_tokens: int
    sampling: Sampling
    seed: int
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    timing: Timing = field(default_factory=Timing)
    completion: Completion | None = None

    def __post_init__(self) -> None:
        self._pieces = self._run()

    def __next__(self) -> str:
        return next(self._pieces)

    def _run(self) -> Iterator[str]:
        model, timing = self.model, self.timing
        context = model._begin(self)
        sampler = NativeSampler(self.sampling.steps(model.vocabulary, self.seed))
        stream = TextStream(self.stop)
        shown: list[str] = []
        reason: FinishReason = "length"
        token = -1  # nothing is decoded before the first one is sampled
        try:
            for earlier in self.prompt[-PENALTY_WINDOW:]:
                sampler.accept(earlier)
            position = timing.prompt_tokens = len(self.prompt)
            started = time.perf_counter()
            logits, timing.prompt_computed = model._feed(list(self.prompt))
            timing.prompt_seconds = time.perf_counter() - started
            # the last position's output can be sampled, but a token there has no position of its own to be fed at
            room = min(self.max_tokens, model.positions - position + 1)
            for number in range(room):
                model._check_turn(self)
                step_started = time.perf_counter()
                if number == 0:
                    token = sampler.sample_from(logits)
                    timing.first_token_ms = 1000 * (time.perf_counter() - started)
                else:
                    context.decode((token,), position)
                    position += 1
                    token = sampler.sample(context)
                    timing.decode_steps += 1
                    timing.decode_seconds += time.perf_counter() - step_started
                timing.decode_tokens += 1
                if model.is_end(token) and not self.ignore_eos:
                    reason = "eos"
                    break
                if piece := stream.feed(model.token_bytes(token)):
                    shown.append(piece)
                    yield piece
                if stream.stopped:
                    reason = "stop"
                    break
            if rest := stream.finish():
                shown.append(rest)
                yield rest
            if stream.stopped:
                reason = "stop"
            self.completion = Completion("".join(shown), timing.decode_tokens, reason)
        finally:
            sampler.close()
