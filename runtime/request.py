"""What is asked for one text, checked before anything is computed."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict, Unpack

from dgpt2_quant.quantize.errors import UsageError

from .library import NativeModel
from .sampling import Sampling

DEFAULT_MAX_TOKENS = 128
_SEEDS = 2**32 - 1  # llama.cpp takes the last number of 32 bits (LLAMA_DEFAULT_SEED) for "draw one yourself"


class Options(TypedDict, total=False):
    """What every way to generate takes by keyword; the second half are the fields of `Sampling`.

    - `max_tokens`: how many at the most (default 128; a text also ends where the context does).
    - `seed`: fixes the text, with the settings (default: a random one).
    - `stop`: a text, or several, before which the generation ends.
    - `min_tokens`: before that many, no end-of-text token comes.
    - `ignore_eos`: goes on behind an end-of-text token.
    - `truncate`: keeps the end of a prompt that is too long for the context: as much as leaves room for `max_tokens`,
      but at least half of the context.
    - `echo`: the result begins with the prompt's text.
    - `logprobs`: adds each token's log-probability, and those of that many likeliest ones, to the completion; with
      `echo` the prompt's too.
    """

    max_tokens: int
    seed: int | None
    stop: str | Sequence[str] | None
    min_tokens: int
    ignore_eos: bool
    truncate: bool
    echo: bool
    logprobs: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    repeat_penalty: float
    frequency_penalty: float
    presence_penalty: float
    repeat_last_n: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: Sequence[str]
    logit_bias: Mapping[int, float]
    mirostat: int
    mirostat_tau: float
    mirostat_eta: float
    grammar: str


@dataclass(frozen=True)
class Request:
    """`prompt` are token ids, at least one, that fit the context; `echo` is the text to begin with, or None."""

    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    seed: int
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    echo: str | None = None

    @property
    def scores_prompt(self) -> bool:
        """Whether the log-probabilities of the prompt's tokens are wanted."""
        return self.echo is not None and self.logprobs is not None


def random_seed() -> int:
    return secrets.randbelow(_SEEDS)


def check_seed(seed: object) -> int | None:
    """Raises `UsageError` for what is neither a whole number nor None."""
    if seed is None or type(seed) is int:
        return seed
    raise UsageError(f"the seed is {seed!r}, not a whole number")


def make_request(
    model: NativeModel, positions: int, prompt: str | Sequence[int], **options: Unpack[Options]
) -> Request:
    """Checks what is asked of a context of `positions`; an empty prompt becomes the token that begins a text.

    Raises `UsageError` that names the value: a prompt that does not fit, a setting out of range.
    """
    settings = dict(options)
    max_tokens = _count("max_tokens", settings.pop("max_tokens", DEFAULT_MAX_TOKENS))
    min_tokens = _count("min_tokens", settings.pop("min_tokens", 0))
    seed = check_seed(settings.pop("seed", None))
    wanted = settings.pop("logprobs", None)
    logprobs = None if wanted is None else _count("logprobs", wanted)
    if logprobs is not None and logprobs > model.real_vocabulary:
        raise UsageError(f"logprobs is {logprobs}; this vocabulary has {model.real_vocabulary} tokens")
    stops = _stops(settings.pop("stop", None))
    ignore_eos, truncate, echo = (bool(settings.pop(name, False)) for name in ("ignore_eos", "truncate", "echo"))
    tokens, is_cut = _prompt(model, positions, prompt, max_tokens if truncate else None)
    text = None
    if echo:
        text = prompt if isinstance(prompt, str) and not is_cut else model.detokenize(tokens)
    return Request(
        tokens,
        max_tokens,
        Sampling(**settings),  # type: ignore[arg-type]
        random_seed() if seed is None else seed % _SEEDS,
        stops,
        ignore_eos,
        min_tokens,
        logprobs,
        text,
    )


def _prompt(
    model: NativeModel, positions: int, prompt: str | Sequence[int], truncated_for: int | None
) -> tuple[list[int], bool]:
    """Token ids of a prompt, and whether they are cut so that `truncated_for` tokens have room behind them."""
    if isinstance(prompt, str):
        tokens = model.tokenize(prompt, special=True)
    elif isinstance(prompt, Iterable):
        model.check_tokens(prompt)
        tokens = [int(token) for token in prompt]  # NumPy's integers are none to C
    else:
        raise UsageError(f"the prompt is {prompt!r}; it is a text, or a list of token ids")
    tokens = tokens or [model.bos]
    is_cut = len(tokens) > positions and truncated_for is not None
    if len(tokens) > positions and truncated_for is not None:
        # the last token that is sampled needs no position
        tokens = tokens[-max(positions - truncated_for + 1, -(-positions // 2)) :][-positions:]
    if len(tokens) > positions:
        raise UsageError(
            f"the prompt has {len(tokens)} tokens; this model has {positions} positions",
            "Shorten the prompt, or let it be truncated to its end.",
        )
    return tokens, is_cut


def _stops(stop: object) -> tuple[str, ...]:
    if stop is None:
        return ()
    stops = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Iterable) else (stop,)
    if not all(isinstance(text, str) for text in stops):
        raise UsageError(f"stop is {stop!r}; it is a text, or several")
    return stops


def _count(name: str, value: object) -> int:
    if type(value) is not int or value < 0:
        raise UsageError(f"{name} is {value!r}; it is a number, 0 or more")
    return value
