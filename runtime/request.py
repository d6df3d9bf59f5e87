"""What is asked for one text, checked before anything is computed."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal, TypedDict, Unpack

import numpy as np
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime.native.batch_token import token_ids
from dgpt2_quant.runtime.native.model_context import NativeModel
from dgpt2_quant.runtime.sampling.settings import Sampling, whole

from .prompt_lookup import GUESSES, MOST_GUESSES

DEFAULT_MAX_TOKENS = 128
_SEEDS = 2**32 - 1  # llama.cpp takes the last number of 32 bits (LLAMA_DEFAULT_SEED) for "draw one yourself"


class Options(TypedDict, total=False):
    """What every way to generate takes by keyword; the second half are the fields of `Sampling`.

    - `max_tokens`: how many at most (default 128); None or -1 for all up to the end of the context, where every text
      ends.
    - `seed`: fixes the text, together with the settings (default, and -1: a random one).
    - `stop`: a text, or several, before which the generation ends. The name of a special token, such as `<sep>`, stops
      at that token.
    - `stop_token_ids`: tokens at which the generation ends; like a stop text, they are not part of the text.
    - `min_tokens`: the tokens before which none comes that ends the text.
    - `ignore_eos`: goes on after an end-of-text token.
    - `show_special`: special tokens, which otherwise have no text, appear in it by their names.
    - `truncate`: keeps the end of a prompt that is too long for the context: as much as leaves room for `max_tokens`,
      but at least half of the context.
    - `echo`: the result begins with the prompt's text.
    - `logprobs`: adds each token's log-probability, and those of that many likeliest ones, to the completion; with
      `echo` the prompt's too.
    - `lookup`: how many tokens are guessed at a time, where the text's last ones were there before, which makes texts
      faster that repeat themselves (default: 3 where the likeliest token is taken, otherwise 0).
    """

    max_tokens: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    min_tokens: int
    ignore_eos: bool
    show_special: bool
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
    stop_token_ids: frozenset[int] = frozenset()
    show_special: bool = False

    @property
    def scores_prompt(self) -> bool:
        """Whether the log-probabilities of the prompt's tokens are wanted."""
        return self.echo is not None and self.logprobs is not None


def random_seed() -> int:
    return secrets.randbelow(_SEEDS)


def check_seed(seed: object) -> int | None:
    """A seed as Python's number; None for one to be drawn, which -1 asks for as in llama.cpp. Raises `UsageError`."""
    number = whole(seed)
    if (number is None and seed is not None) or (number is not None and number < -1):
        raise UsageError(f"seed is {seed!r}; it is a whole number, 0 or more, or -1 for a random one")
    return None if number == -1 else number


def make_request(
    model: NativeModel, positions: int, prompt: str | Sequence[int], **options: Unpack[Options]
) -> Request:
    """Checks what is asked of a context of `positions`; an empty prompt becomes the token that begins a text.

    Raises `UsageError` that names the value: a prompt that does not fit, a setting out of range.
    """
    settings = dict(options)
    wanted = settings.pop("max_tokens", DEFAULT_MAX_TOKENS)
    max_tokens = positions if wanted is None else check_count("max_tokens", wanted, -1)
    if max_tokens < 0:
        max_tokens = positions
    min_tokens = check_count("min_tokens", settings.pop("min_tokens", 0))
    seed = check_seed(settings.pop("seed", None))
    wanted = settings.pop("logprobs", None)
    logprobs = None if wanted is None else check_count("logprobs", wanted)
    if logprobs is not None and logprobs > model.real_vocabulary:
        raise UsageError(f"logprobs is {logprobs}; this vocabulary has {model.real_vocabulary} tokens")
    ignore_eos, truncate, echo, show_special = (
        check_flag(name, settings.pop(name, False)) for name in ("ignore_eos", "truncate", "echo", "show_special")
    )
    stops, stop_ids = _stops(model, settings.pop("stop", None), settings.pop("stop_token_ids", None), show_special)
    tokens, is_cut = _prompt(model, positions, prompt, max_tokens if truncate else None)
    lookup = settings.pop("lookup", None)
    sampling = _sampling(settings)
    if lookup is None:
        guesses = GUESSES if sampling.is_greedy else 0
    elif (guesses := check_count("lookup", lookup)) > MOST_GUESSES:
        raise UsageError(f"lookup is {lookup}; at most {MOST_GUESSES} tokens can be guessed at a time")
    text = None
    if echo:
        text = prompt if isinstance(prompt, str) and not is_cut else _text_of(model, tokens, show_special)
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
        stop_ids,
        show_special,
    )


def _prompt(
    model: NativeModel, positions: int, prompt: str | Sequence[int], truncated_for: int | None
) -> tuple[list[int], bool]:
    """Token ids of a prompt, and whether they are cut so that `truncated_for` tokens have room behind them."""
    if isinstance(prompt, str):
        tokens = model.tokenize(prompt, special=True, add_special=True)
    else:
        tokens = token_ids(prompt, model.vocabulary)
    tokens = tokens or [model.bos]
    is_cut = len(tokens) > positions and truncated_for is not None
    if len(tokens) > positions and truncated_for is not None:
        # the last token that is sampled needs no position
        tokens = tokens[-max(positions - truncated_for + 1, -(-positions // 2)) :][-positions:]
        if model.adds_bos and isinstance(prompt, str):
            tokens[0] = model.bos
    if len(tokens) > positions:
        raise UsageError(
            f"the prompt has {len(tokens)} tokens; this model has {positions} positions",
            "Shorten the prompt, or let it be truncated to its end.",
        )
    return tokens, is_cut


def _text_of(model: NativeModel, tokens: Sequence[int], show_special: bool) -> str:
    if show_special:
        return b"".join(map(model.special_text, tokens)).decode("utf-8", "replace")
    return model.detokenize(tokens)


def _stops(
    model: NativeModel, stop: object, stop_token_ids: object, show_special: bool
) -> tuple[tuple[str, ...], frozenset[int]]:
    """The texts and the tokens that end a text. The name of a special token is a token, for it has no text."""
    ids = set() if stop_token_ids is None else set(token_ids(stop_token_ids, model.real_vocabulary))
    given = () if stop is None else (stop,) if isinstance(stop, str) else stop
    if not isinstance(given, Iterable) or isinstance(given, Mapping | bytes):
        raise UsageError(f"stop is {stop!r}; it is a text, or several")
    texts = []
    for text in given:
        if not isinstance(text, str) or not text:
            raise UsageError(f"stop is {stop!r}; it is a text of at least one character, or several")
        tokens = model.tokenize(text, special=True)
        hidden = [token for token in tokens if not model.piece(token)[0]]
        if len(tokens) == len(hidden) == 1:
            ids.add(tokens[0])
        elif hidden and not show_special:
            name = model.special_text(hidden[0]).decode("utf-8", "replace")
            raise UsageError(
                f"the stop text {text!r} never comes: the special token {name} in it has no text",
                f"Stop at {name} alone, or set show_special=True.",
            )
        else:
            texts.append(text)
    return tuple(texts), frozenset(ids)


def check_flag(name: str, value: object) -> bool:
    """As Python's, also None, 0 and 1. Raises `UsageError` for what is neither, such as "off"."""
    if value is None or isinstance(value, bool) or (whole(value) in (0, 1)) or isinstance(value, np.bool_):
        return bool(value)
    raise UsageError(f"{name} is {value!r}; it is True or False")


def check_flash_attention(value: object) -> bool | Literal["auto"]:
    """Raises `UsageError` for anything else."""
    if isinstance(value, str) and value == "auto":
        return "auto"
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise UsageError(f"flash_attention is {value!r}; it is True, False or 'auto'")


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
