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

    `stop_reason` is the stop text or the stop token that ended the text, otherwise None. `logprobs` and
    `prompt_logprobs` are None unless requested. Only the first three fields are compared.
    """

    text: str
    tokens: int
    finish_reason: FinishReason
    token_ids: tuple[int, ...] = field(default=(), compare=False, repr=False)
    logprobs: tuple[TokenLogprob, ...] | None = field(default=None, compare=False, repr=False)
    prompt_logprobs: tuple[TokenLogprob, ...] | None = field(default=None, compare=False, repr=False)
    stop_reason: str | int | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, eq=False, init=False)
class Event(str):
    """A piece of text with the tokens since the previous event, from `Model.stream`, `Model.batch` or a `Scheduler`.

    It is a `str`, equal to its `text`: print it, join it, compare it. `number` is that of the text in its batch (0 in
    a stream or a scheduler). `logprobs` are those of `token_ids`, if requested. The first event has the
    `prompt_logprobs`, if requested, and the last one the `completion`, perhaps without text. Tokens whose text is held
    back, because a character or a stop string is incomplete, are part of a later event.
    """

    text: str
    number: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    completion: Completion | None = None
    prompt_logprobs: tuple[TokenLogprob, ...] = ()

    def __new__(
        cls,
        text: str,
        number: int = 0,
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
        completion: Completion | None = None,
        prompt_logprobs: tuple[TokenLogprob, ...] = (),
    ) -> Self:
        event = super().__new__(cls, text)
        # the dataclass's own __init__ takes twice as long, between two decodes
        event.__dict__.update(
            text=text,
            number=number,
            token_ids=token_ids,
            logprobs=logprobs,
            completion=completion,
            prompt_logprobs=prompt_logprobs,
        )
        return event


@dataclass
class Timing:
    """Counts of a generation, and wall-clock times in seconds.

    `submitted`, `started` (the prompt's turn), `first_token` and `finished` are readings of `time.perf_counter`; None
    for what has not happened. `prompt_cached` tokens of the prompt were reused, `prompt_computed` computed in
    `prompt_seconds`. The first token is sampled from the prompt's last logits and needs no decode, so `decoded` and
    `decode_tps` count from the second token on. Each of several sequences that decode together counts the whole step.
    """

    submitted: float = 0.0
    started: float | None = None
    first_token: float | None = None
    finished: float | None = None
    prompt_tokens: int = 0
    prompt_cached: int = 0
    prompt_computed: int = 0
    prompt_seconds: float = 0.0
    decode_tokens: int = 0
    decoded: int = 0
    decode_seconds: float = 0.0

    @property
    def waited_seconds(self) -> float:
        """The time before the prompt's turn."""
        return 0.0 if self.started is None else self.started - self.submitted

    @property
    def first_token_ms(self) -> float | None:
        """The time from the prompt's turn to the first token."""
        if self.started is None or self.first_token is None:
            return None
        return 1000 * (self.first_token - self.started)

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
