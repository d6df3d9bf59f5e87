"""Sampling settings (temperature, top-k, penalties, ...) and their bounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from numbers import Integral, Real
from typing import Any

from dgpt2_quant.core.errors import UsageError

from .grammar import check_grammar

_BIAS = 1_000_000  # beyond it a sum divided by a temperature would overflow
_COLDEST = 1e-30  # a lower temperature overflows; sampling is greedy long before
_LONGEST_BREAKER = 40  # bytes of a DRY breaker that llama.cpp reads
_MOST_BREAKERS = 32  # llama.cpp searches the vocabulary for each: 10 ms at GPT-2's


@dataclass(frozen=True)
class Sampling:
    """Sampling settings. `temperature` 0 is greedy; the defaults are llama.cpp's.

    They apply in this order, each to the result of the one before: `logit_bias` (maps token ids to numbers that are
    added to their logits; -inf forbids a token), the penalties (`repeat_penalty` divides, `frequency_penalty` subtracts
    for each occurrence and `presence_penalty` once, over the last `repeat_last_n` tokens; -1 for all), DRY
    (`dry_multiplier` above 0 enables it: a token that continues a repetition longer than `dry_allowed_length` loses
    `dry_multiplier * dry_base ** (length - dry_allowed_length)`), `top_k`, `typical_p`, `top_p`, `min_p`,
    `temperature`. `mirostat` 2 replaces those from `top_k` to `min_p`, and aims at a surprise of `mirostat_tau` bits a
    token. `grammar` (GBNF, with a rule `root`) allows only tokens that fit it.

    These values switch a setting off: `top_k` 0; `typical_p` and `top_p` 1; `min_p` 0; `repeat_penalty` 1; the other
    penalties 0. Raises `UsageError` for a value out of range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    typical_p: float = 1.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: Sequence[str] = ("\n", ":", '"', "*")
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    mirostat: int = 0
    mirostat_tau: float = 5.0
    mirostat_eta: float = 0.1
    grammar: str = ""

    def __post_init__(self) -> None:
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if value is getattr(Sampling, name):  # the default; checks delay a text's first token
                continue
            number = whole(value) if name in _WHOLE else _number(value)
            if number is None and _number(value) is not None:
                raise UsageError(f"`{name}` must be an integer, not {value!r}")
            if number is None or not low <= number <= high:
                raise UsageError(f"`{name}` must be {low} to {high}, not {value!r}")
            object.__setattr__(self, name, number)
        if self.mirostat not in (0, 2):
            raise UsageError(f"`mirostat` must be 0 (off) or 2, not {self.mirostat}")
        if not isinstance(self.logit_bias, Mapping):
            raise UsageError(f"`logit_bias` must map token ids to numbers, not be {self.logit_bias!r}")
        object.__setattr__(self, "logit_bias", dict(_bias(*pair) for pair in self.logit_bias.items()))
        breakers = self.dry_sequence_breakers
        if isinstance(breakers, str) or not isinstance(breakers, Sequence) or not all(map(_is_breaker, breakers)):
            raise UsageError(f"`dry_sequence_breakers` must be texts of 1-{_LONGEST_BREAKER} bytes, not {breakers!r}")
        if len(breakers) > _MOST_BREAKERS:
            raise UsageError(f"`dry_sequence_breakers` must be at most {_MOST_BREAKERS} texts, not {len(breakers)}")
        if not isinstance(self.grammar, str):
            raise UsageError(f"`grammar` must be a text in GBNF, not {self.grammar!r}")
        if self.grammar:
            if _c_text(self.grammar) is None:
                raise UsageError("`grammar` must not contain a zero byte or a lone surrogate")
            check_grammar(self.grammar)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always chosen."""
        return self.temperature < _COLDEST or (self.top_k == 1 and not self.mirostat)

    def penalties(self, vocabulary: int, positions: int) -> Sequence[tuple[Any, ...]]:
        """The steps of a `NativeSampler` that change the logits of earlier tokens."""
        steps: list[tuple[Any, ...]] = []
        if self.repeat_last_n and (self.repeat_penalty, self.frequency_penalty, self.presence_penalty) != (1, 0, 0):
            last = positions if self.repeat_last_n < 0 else min(self.repeat_last_n, positions)
            steps.append(
                ("penalties", vocabulary, last, self.repeat_penalty, self.frequency_penalty, self.presence_penalty)
            )
        if self.dry_multiplier and self.dry_penalty_last_n:
            last = positions if self.dry_penalty_last_n < 0 else min(self.dry_penalty_last_n, positions)
            breakers = tuple(self.dry_sequence_breakers)
            steps.append(
                ("dry", self.dry_multiplier, self.dry_base, self.dry_allowed_length, last, breakers, len(breakers))
            )
        return steps


# (lowest, highest)
_BOUNDS = {
    "temperature": (0, 100),
    "top_k": (0, 2**31 - 1),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "typical_p": (0, 1),
    "repeat_penalty": (0.01, 100),
    "frequency_penalty": (-100, 100),
    "presence_penalty": (-100, 100),
    "repeat_last_n": (-1, 2**31 - 1),
    "dry_multiplier": (0, 100),
    "dry_base": (1, 100),
    "dry_allowed_length": (0, 2**31 - 1),
    "dry_penalty_last_n": (-1, 2**31 - 1),
    "mirostat": (0, 2),
    "mirostat_tau": (0, 100),
    "mirostat_eta": (0, 1),
}
_WHOLE = ("top_k", "repeat_last_n", "dry_allowed_length", "dry_penalty_last_n", "mirostat")


def whole(value: object) -> int | None:
    """A Python integer from any integer type, also NumPy's; None for other values."""
    if type(value) is int:  # nearly always; isinstance takes ten times as long
        return value
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def _number(value: object) -> float | None:
    number = whole(value)
    return float(value) if number is None and isinstance(value, Real) and not isinstance(value, bool) else number


def _bias(token: object, bias: object) -> tuple[int, float]:
    number, added = whole(token), _number(bias)
    if number is None or added is None or not (abs(added) <= _BIAS or added == -inf):
        raise UsageError(
            f"`logit_bias` must map token ids to -{_BIAS} to {_BIAS}, or -inf (never), not {token!r} to {bias!r}"
        )
    return number, added


def _is_breaker(text: object) -> bool:
    data = _c_text(text)
    return data is not None and 0 < len(data) <= _LONGEST_BREAKER


def _c_text(text: object) -> bytes | None:
    """A text as a C string; None for other types, a lone surrogate, or a zero byte."""
    try:
        data = text.encode("utf-8") if isinstance(text, str) else b"\0"
    except UnicodeEncodeError:
        return None
    return None if b"\0" in data else data
