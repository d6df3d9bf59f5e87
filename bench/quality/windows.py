"""How a text is cut into what a model sees at once, and which of its tokens are scored.

`llama.cpp`: chunks of `context` tokens, each a text of its own; the tokens of its second half are scored, so that each
has at least half a context before it (llama.cpp, tools/perplexity/perplexity.cpp).

`strided`: windows of `context` tokens that move on by `stride`; each token is scored once, in the first window that
reaches it, but for those that nothing precedes there: the text's first, and where the stride is the whole context, each
window's first (Transformers' documentation, "Perplexity of fixed-length models"). All tokens count the same; the code
shown there weighs a window by its tokens less one, which leaves none of them where the stride is 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import UsageError

Method = Literal["llama.cpp", "strided"]
METHODS: tuple[Method, ...] = get_args(Method)
CONTEXT = 512
_SHORTEST = 4  # positions of a chunk
_FEWEST_SCORED = 2  # tokens: one has no spread, and so no error


@dataclass(frozen=True)
class Window:
    """Tokens that a model sees at once; the logits of the rows from `first` on, but the last one's, are scored."""

    tokens: Sequence[int]
    first: int

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """The tokens that the scored rows should have predicted."""
        return np.asarray(self.tokens[self.first + 1 :], np.int64)


@dataclass(frozen=True)
class Cut:
    """How to cut: `stride` only for the strided method (None: half of the context)."""

    method: Method = "llama.cpp"
    context: int = CONTEXT
    stride: int | None = None

    def fitted(self, positions: int) -> "Cut":
        """For a model of so many positions: its windows are no longer. Raises `UsageError` for what can not be."""
        context = min(self.context, positions)
        if context < _SHORTEST:
            raise UsageError(f"{context} positions are too few to score a text; at least {_SHORTEST} are needed")
        if self.method not in METHODS:
            raise UsageError(f"the method is {self.method!r}; there are {', '.join(METHODS)}")
        if self.method == "llama.cpp":
            if self.stride is not None:
                raise UsageError("llama.cpp's method has no stride", "Leave --stride out, or take --method strided.")
            return Cut(self.method, context)
        stride = max(1, context // 2) if self.stride is None else self.stride
        if not 1 <= stride <= context:
            raise UsageError(f"the stride is {stride}; with a context of {context} it goes from 1 to {context}")
        return Cut(self.method, context, stride)

    def windows(self, tokens: Sequence[int]) -> list[Window]:
        """The windows of a text, by a cut that is `fitted`. Raises `UsageError` when there is nothing to score."""
        if self.method == "strided":
            if len(tokens) <= _FEWEST_SCORED:
                needed = f"at least {_FEWEST_SCORED + 1} are needed"
                raise UsageError(f"the text has {len(tokens)} tokens; {needed}", "Take a longer text.")
            return list(_strided(tokens, self.context, self.stride or 1))
        if len(tokens) < self.context:
            raise UsageError(
                f"the text has {len(tokens)} tokens; at least one chunk of {self.context} is needed",
                "Take a longer text, a smaller --ctx-size, or a --stride.",
            )
        starts = range(0, len(tokens) - self.context + 1, self.context)
        if len(starts) * (self.context - self.context // 2 - 1) < _FEWEST_SCORED:
            raise UsageError(f"one chunk of {self.context} tokens scores too few", "Take a longer text, or a --stride.")
        return [Window(tokens[start : start + self.context], self.context // 2) for start in starts]


LLAMA_CPP = Cut()  # what everybody's figures are by


def _strided(tokens: Sequence[int], context: int, stride: int) -> list[Window]:
    found, scored = [], 1  # the first token has nothing before it
    for begin in range(0, len(tokens), stride):
        end = min(begin + context, len(tokens))
        first = max(0, scored - 1 - begin)
        if end - begin > first + 1:
            found.append(Window(tokens[begin:end], first))
        scored = end
        if end == len(tokens):
            break
    return found
