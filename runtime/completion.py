"""Results of a generation: events while a text is written, its completion, log-probabilities and timing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

FinishReason = Literal["length", "stop", "eos", "cancelled"]


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its log-probability in nats, before any sampling setting; None for the first token of a text.

    `top` has the most likely tokens at that position with theirs, the most likely first.
    """

    token: int
    logprob: float | None
    top: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """A finished text. `tokens` counts the sampled tokens; `token_ids` and `logprobs` list them.

    Only the first three fields are compared. `logprobs` and `prompt_logprobs` are None unless requested.
    """

    text: str
    tokens: int
    finish_reason: FinishReason
    token_ids: tuple[int, ...] = field(default=(), compare=False, repr=False)
    logprobs: tuple[TokenLogprob, ...] | None = field(default=None, compare=False, repr=False)
    prompt_logprobs: tuple[TokenLogprob, ...] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, eq=False, init=False)
class Event(str):
    """A piece of text with the tokens since the previous event, from `Model.stream`, `Model.batch` or a `Scheduler`.

    It is a `str`, equal to its `text`: print it, join it, compare it. `number` is that of the text in its batch (0 in
    a stream or a scheduler). `logprobs` are those of `token_ids`, if requested. The last event of a text has the
    `completion`, perhaps without text. Text comes later than its tokens while a character or a stop string is
    incomplete.
    """

    text: str
    number: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    completion: Completion | None = None

    def __new__(
        cls,
        text: str,
        number: int = 0,
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
        completion: Completion | None = None,
    ) -> Self:
        event = super().__new__(cls, text)
        # the dataclass's own __init__ takes twice as long, between two decodes
        event.__dict__.update(text=text, number=number, token_ids=token_ids, logprobs=logprobs, completion=completion)
        return event


@dataclass
class Timing:
    """Counts of a generation, and wall-clock times in seconds.

    The prompt's time is that of computing it. The first token is sampled from the prompt's last logits and needs no
    decode, so `decoded` and `decode_tps` count from the second token on. `first_token_ms` includes the prompt. Each of
    several sequences that decode together counts the whole step. `waited_seconds` is the time before the prompt's turn.
    """

    waited_seconds: float = 0.0
    prompt_tokens: int = 0
    prompt_cached: int = 0
    prompt_computed: int = 0
    prompt_seconds: float = 0.0
    decode_tokens: int = 0
    decoded: int = 0
    decode_seconds: float = 0.0
    first_token_ms: float | None = None

    @property
    def prompt_tps(self) -> float | None:
        return self.prompt_computed / self.prompt_seconds if self.prompt_computed else None

    @property
    def decode_tps(self) -> float | None:
        return self.decoded / self.decode_seconds if self.decode_seconds else None

    def to_json(self) -> dict[str, Any]:
        names = ("prompt_tokens", "prompt_tps", "decode_tokens", "decode_tps", "first_token_ms")
        return {name: getattr(self, name) for name in names}


def total_timing(timings: Sequence[Timing]) -> Timing:
    """Timing of sequences with one prompt: the sum of tokens, the longest time, the first prompt."""
    if not timings:
        return Timing()
    return replace(
        timings[0],
        decode_tokens=sum(timing.decode_tokens for timing in timings),
        decoded=sum(timing.decoded for timing in timings),
        decode_seconds=max(timing.decode_seconds for timing in timings),
    )
