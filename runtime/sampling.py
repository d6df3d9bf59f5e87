"""How the next token is chosen: settings in the field's names, turned into llama.cpp's sampler chain."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from dgpt2_quant.quantize.errors import UsageError

PENALTY_WINDOW = 64  # tokens that the repetition penalty looks back on, as in llama.cpp


@dataclass(frozen=True)
class Sampling:
    """Sampling settings. `temperature` 0 takes the likeliest token (greedy); the defaults are llama.cpp's.

    `top_k` 0 and `top_p` 1, `min_p` 0 and `repeat_penalty` 1 switch these off. Raises `UsageError` for a value out of
    range.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0, 100)
        _check("top_k", self.top_k, 0, 2**31 - 1)
        if type(self.top_k) is not int:
            raise UsageError(f"top_k is {self.top_k}, not a whole number")
        _check("top_p", self.top_p, 0, 1)
        _check("min_p", self.min_p, 0, 1)
        _check("repeat_penalty", self.repeat_penalty, 0.01, 100)

    def steps(self, vocabulary: int, seed: int) -> Sequence[tuple[Any, ...]]:
        """The chain for `NativeSampler`, in llama.cpp's order; what changes nothing is left out."""
        steps: list[tuple[Any, ...]] = []
        if self.repeat_penalty != 1:
            steps.append(("penalties", vocabulary, PENALTY_WINDOW, self.repeat_penalty, 0.0, 0.0))
        if self.temperature == 0:
            return [*steps, ("greedy",)]
        if self.top_k:
            steps.append(("top_k", self.top_k))
        if self.top_p < 1:
            steps.append(("top_p", self.top_p, 1))
        if self.min_p > 0:
            steps.append(("min_p", self.min_p, 1))
        return [*steps, ("temp", self.temperature), ("dist", seed)]


def _check(name: str, value: float, low: float, high: float) -> None:
    if type(value) not in (int, float) or not isfinite(value) or not low <= value <= high:
        raise UsageError(f"{name} is {value}; it goes from {low} to {high}")
