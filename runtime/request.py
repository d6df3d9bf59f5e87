"""The request for one text: its options, checked before anything is computed."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TypedDict, Unpack

import numpy as np
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime.native.batch_token import TokenIds, token_ids
from dgpt2_quant.runtime.native.model import NativeModel
from dgpt2_quant.runtime.sampling.settings import Sampling, whole

from .prompt_lookup import DRAFT_TOKENS, MAX_DRAFT_TOKENS
from .token_healing import Cut, heal

DEFAULT_MAX_TOKENS = 128
_SEEDS = 2**32 - 1  # llama.cpp treats the last 32-bit number (LLAMA_DEFAULT_SEED) as "choose a random one"

Prompt = str | TokenIds


class Options(TypedDict, total=False):
    """Keyword arguments of every method that generates text. Those from `temperature` on are fields of `Sampling`.

    - `max_tokens`: most tokens to write (default 128); None or -1 for all up to the end of the context.
    - `seed`: with the same settings, the same seed gives the same text (default, and -1: a random seed).
    - `stop`: one text or several, before which the generation ends. The name of a special token, such as `<sep>`, stops
      at that token.
    - `stop_token_ids`: tokens at which the generation ends; like a stop text, they are not part of the text.
    - `min_tokens`: the number of tokens before the text may end.
    - `ignore_eos`: continues after an end-of-text token.
    - `show_special`: shows special tokens by their names; otherwise they have no text.
    - `truncate`: keeps the end of a prompt that is too long for the context: as much as leaves room for `max_tokens`,
      but at least half of the context.
    - `token_healing`: the text may begin with the rest of a word whose beginning ends the prompt: "The weath" continues
      with "er", and a prompt that ends with a blank with a word. The first token has the prompt's part of the word too.
    - `echo`: the result begins with the prompt's text.
    - `logprobs`: adds to the completion each token's log-probability, and those of the N most likely tokens; with
      `echo` the prompt's too.
    - `prompt_logprobs`: adds those of the prompt's tokens, and of the N most likely ones there.
    - `lookup`: the number of draft tokens to take from earlier in the text where it repeats itself, which is faster
      (default: 3 for greedy sampling, otherwise 0).
    """

    max_tokens: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    min_tokens: int
    ignore_eos: bool
    show_special: bool
    truncate: bool
    token_healing: bool
    echo: bool
    logprobs: int | None
    prompt_logprobs: int | None
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
    """A checked request. `prompt` has at least one token id and fits the context; `echo` is its text, or None.

    The text begins after one of the `cuts`, of which the last one keeps all of `prompt`. `incomplete` are the bytes of
    a character that the prompt ends in.
    `stop_token_ids` maps each to what the caller named: the token, or a text of `stop`.
    """

    prompt: list[int]
    cuts: tuple[Cut, ...]
    max_tokens: int
    sampling: Sampling
    seed: int
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    echo: str | None = None
    lookup: int = 0
    stop_token_ids: Mapping[int, int | str] = field(default_factory=dict)
    show_special: bool = False
    prompt_logprobs: int | None = None
    incomplete: bytes = b""

    @property
    def key(self) -> tuple[list[int], tuple[Cut, ...]]:
        """What the choice of the cut, and the logits there, depend on."""
        return self.prompt, self.cuts if len(self.cuts) > 1 else ()

    @property
    def scores_prompt(self) -> bool:
        """Whether the log-probabilities of the prompt's tokens are requested."""
        return self.prompt_logprobs is not None


def random_seed() -> int:
    return secrets.randbelow(_SEEDS)


def check_seed(seed: object) -> int | None:
    """The seed as a Python integer; None for a random one, which is -1 in llama.cpp too. Raises `UsageError`."""
    number = whole(seed)
    if (number is None and seed is not None) or (number is not None and number < -1):
        raise UsageError(f"`seed` must be an integer, 0 or more, or -1 for a random one, not {seed!r}")
    return None if number == -1 else number


def make_request(model: NativeModel, positions: int, prompt: Prompt, **options: Unpack[Options]) -> Request:
    """Checks a request to a context of `positions`. An empty prompt becomes the token that begins a text.

    Raises `UsageError` for a prompt that does not fit, or a setting out of range.
    """
    settings = dict(options)
    wanted = settings.pop("max_tokens", DEFAULT_MAX_TOKENS)
    max_tokens = positions if wanted is None else check_count("max_tokens", wanted, -1)
    if max_tokens < 0:
        max_tokens = positions
    min_tokens = check_count("min_tokens", settings.pop("min_tokens", 0))
    seed = check_seed(settings.pop("seed", None))
    logprobs = _alternatives(model, "logprobs", settings.pop("logprobs", None))
    prompt_logprobs = _alternatives(model, "prompt_logprobs", settings.pop("prompt_logprobs", None))
    ignore_eos, truncate, echo, show_special, heals = (
        check_flag(name, settings.pop(name, False))
        for name in ("ignore_eos", "truncate", "echo", "show_special", "token_healing")
    )
    stops, stop_ids = _stops(model, settings.pop("stop", None), settings.pop("stop_token_ids", None), show_special)
    tokens, is_cut = _prompt(model, positions, prompt, max_tokens if truncate else None)
    lookup = settings.pop("lookup", None)
    sampling = _sampling(settings)
    if lookup is None:
        lookup = DRAFT_TOKENS if sampling.is_greedy else 0
    else:
        lookup = check_count("lookup", lookup, 0, MAX_DRAFT_TOKENS)
    if echo and prompt_logprobs is None:
        prompt_logprobs = logprobs
    text = None
    if echo:
        text = prompt if isinstance(prompt, str) and not is_cut else _text_of(model, tokens, show_special)
    cuts: tuple[Cut, ...] = (Cut(len(tokens)),)
    incomplete = b""
    if heals and sampling.grammar:
        raise UsageError(
            "`token_healing` cannot be combined with `grammar`: the first token has a part of the prompt",
            "Omit one of them.",
        )
    if heals and max_tokens:
        tokens, cuts, incomplete = heal(model, tokens, positions)
        if text and incomplete:
            text = text[:-1]  # the first token completes this character
    return Request(
        tokens,
        cuts,
        max_tokens,
        sampling,
        random_seed() if seed is None else seed % _SEEDS,
        stops,
        ignore_eos,
        min_tokens,
        logprobs,
        text,
        lookup,
        stop_ids,
        show_special,
        prompt_logprobs,
        incomplete,
    )


def _alternatives(model: NativeModel, name: str, value: object) -> int | None:
    count = None if value is None else check_count(name, value)
    if count is not None and count > model.real_vocabulary:
        raise UsageError(f"`{name}` must be 0-{model.real_vocabulary}, the size of this vocabulary, not {count}")
    return count


def _prompt(model: NativeModel, positions: int, prompt: Prompt, truncated_for: int | None) -> tuple[list[int], bool]:
    """Token ids of a prompt, and whether they were truncated to leave room for `truncated_for` tokens."""
    if isinstance(prompt, str):
        tokens = model.tokenize(prompt, special=True, add_special=True)
    else:
        tokens = token_ids(prompt, model.vocabulary)
    tokens = tokens or [model.bos]
    is_cut = len(tokens) > positions and truncated_for is not None
    if len(tokens) > positions and truncated_for is not None:
        # the last sampled token needs no position
        tokens = tokens[-max(positions - truncated_for + 1, -(-positions // 2)) :][-positions:]
        if model.adds_bos and isinstance(prompt, str):
            tokens[0] = model.bos
    if len(tokens) > positions:
        raise UsageError(
            f"the prompt must have at most {positions} tokens to fit the context, not {len(tokens)}",
            "Shorten the prompt, or keep only its end with `truncate`.",
        )
    return tokens, is_cut


def _text_of(model: NativeModel, tokens: TokenIds, show_special: bool) -> str:
    if show_special:
        return b"".join(map(model.special_text, tokens)).decode("utf-8", "replace")
    return model.detokenize(tokens)


def _stops(
    model: NativeModel, stop: object, stop_token_ids: object, show_special: bool
) -> tuple[tuple[str, ...], dict[int, int | str]]:
    """The texts and the tokens at which to stop. The name of a special token becomes that token: it has no text."""
    ids: dict[int, int | str] = {}
    if stop_token_ids is not None:
        ids.update((token, token) for token in token_ids(stop_token_ids, model.real_vocabulary))
    given = () if stop is None else (stop,) if isinstance(stop, str) else stop
    if not isinstance(given, Iterable) or isinstance(given, Mapping | bytes):
        raise UsageError(f"`stop` must be a text or a list of texts, not {stop!r}")
    texts = []
    for text in given:
        if not isinstance(text, str) or not text:
            raise UsageError(f"each text of `stop` must be a str of at least one character, not {text!r}")
        tokens = model.tokenize(text, special=True)
        hidden = [token for token in tokens if not model.piece(token)[0]]
        if len(tokens) == len(hidden) == 1:
            ids[tokens[0]] = text
        elif hidden and not show_special:
            name = model.special_text(hidden[0]).decode("utf-8", "replace")
            raise UsageError(
                f"the `stop` text {text!r} never occurs: the special token {name} in it has no text",
                f"Stop at {name} alone, or use `show_special`.",
            )
        else:
            texts.append(text)
    return tuple(texts), ids


def check_flag(name: str, value: object) -> bool:
    """The value as a Python bool; None, 0 and 1 are allowed. Raises `UsageError` for others, such as "off"."""
    if value is None or isinstance(value, bool) or (whole(value) in (0, 1)) or isinstance(value, np.bool_):
        return bool(value)
    raise UsageError(f"`{name}` must be True or False, not {value!r}")


def check_count(name: str, value: object, low: int = 0, high: int | None = None) -> int:
    """A Python integer from any integer type. Raises `UsageError` for other values, and outside of `low` to `high`."""
    number = whole(value)
    if number is None or number < low or (high is not None and number > high):
        allowed = f"{low} or more" if high is None else f"{low}-{high}"
        raise UsageError(f"`{name}` must be an integer, {allowed}, not {value!r}")
    return number


def _sampling(settings: Mapping[str, object]) -> Sampling:
    for name in settings:
        if name not in Options.__annotations__:
            near = get_close_matches(name, Options.__annotations__, 1)
            raise UsageError(
                f"there is no option `{name}`",
                f"Did you mean `{near[0]}`?" if near else f"The options are {', '.join(Options.__annotations__)}.",
            )
    return Sampling(**settings)  # type: ignore[arg-type]
