"""What is asked for one text, checked before anything is computed."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypedDict, Unpack

from dgpt2_quant.quantize.errors import UsageError

from .decoding import token_ids
from .library import NativeModel
from .lookup import GUESSES, MOST_GUESSES
from .sampling import Sampling, whole

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
    - `lookup`: how many tokens are guessed at a time, where the text's last ones were there before, which makes texts
      faster that repeat themselves (default: 3 where the likeliest token is taken, otherwise 0).
    """

    max_tokens: int
    seed: int | None
    stop: str | Sequence[str] | None
    min_tokens: int
    ignore_eos: bool
    truncate: bool
    echo: bool
    logprobs: int | None
    lookup: int | None
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
    lookup: int = 0

    @property
    def scores_prompt(self) -> bool:
        """Whether the log-probabilities of the prompt's tokens are wanted."""
        return self.echo is not None and self.logprobs is not None


def random_seed() -> int:
    return secrets.randbelow(_SEEDS)


def check_seed(seed: object) -> int | None:
    """A seed as Python's number. Raises `UsageError` for what is neither a whole number nor None."""
    number = whole(seed)
    if number is None and seed is not None:
        raise UsageError(f"the seed is {seed!r}, not a whole number")
    return number


def make_request(
    model: NativeModel, positions: int, prompt: str | Sequence[int], **options: Unpack[Options]
) -> Request:
    """Checks what is asked of a context of `positions`; an empty prompt becomes the token that begins a text.

    Raises `UsageError` that names the value: a prompt that does not fit, a setting out of range.
    """
    settings = dict(options)
    max_tokens = check_count("max_tokens", settings.pop("max_tokens", DEFAULT_MAX_TOKENS))
    min_tokens = check_count("min_tokens", settings.pop("min_tokens", 0))
    seed = check_seed(settings.pop("seed", None))
    wanted = settings.pop("logprobs", None)
    logprobs = None if wanted is None else check_count("logprobs", wanted)
    if logprobs is not None and logprobs > model.real_vocabulary:
        raise UsageError(f"logprobs is {logprobs}; this vocabulary has {model.real_vocabulary} tokens")
    stops = _stops(settings.pop("stop", None))
    ignore_eos, truncate, echo = (bool(settings.pop(name, False)) for name in ("ignore_eos", "truncate", "echo"))
    tokens, is_cut = _prompt(model, positions, prompt, max_tokens if truncate else None)
    lookup = settings.pop("lookup", None)
    sampling = _sampling(settings)
    if lookup is None:
        guesses = GUESSES if sampling.is_greedy else 0
    elif (guesses := check_count("lookup", lookup)) > MOST_GUESSES:
        raise UsageError(f"lookup is {lookup}; at most {MOST_GUESSES} tokens can be guessed at a time")
    text = None
    if echo:
        text = prompt if isinstance(prompt, str) and not is_cut else model.detokenize(tokens)
    return Request(
        tokens,
        max_tokens,
        sampling,
        random_seed() if seed is None else seed % _SEEDS,
        stops,
        ignore_eos,
        min_tokens,
        logprobs,
        text,
        guesses,
    )


def _prompt(
    model: NativeModel, positions: int, prompt: str | Sequence[int], truncated_for: int | None
) -> tuple[list[int], bool]:
    """Token ids of a prompt, and whether they are cut so that `truncated_for` tokens have room behind them."""
    if isinstance(prompt, str):
        tokens = model.tokenize(prompt, special=True)
    else:
        tokens = token_ids(prompt, model.vocabulary)
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


def check_count(name: str, value: object, least: int = 0) -> int:
    """A whole number as Python's. Raises `UsageError` for what is none, or less than `least`."""
    number = whole(value)
    if number is None or number < least:
        raise UsageError(f"{name} is {value!r}; it is a whole number, {least} or more")
    return number


def _sampling(settings: Mapping[str, object]) -> Sampling:
    for name in settings:
        if name not in Options.__annotations__:
            near = get_close_matches(name, Options.__annotations__, 1)
            raise UsageError(
                f"there is no option {name!r}",
                f"Did you mean {near[0]}?" if near else f"There are {', '.join(Options.__annotations__)}.",
            )
    return Sampling(**settings)  # type: ignore[arg-type]
