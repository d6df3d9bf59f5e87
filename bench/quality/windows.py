"""Windows of a text: the tokens that a model sees at once, and which of them are scored.

`llama.cpp`: separate chunks of `context` tokens. The second half of each chunk is scored, so that every scored token
has at least half a context before it (llama.cpp, tools/perplexity/perplexity.cpp).

`strided`: windows of `context` tokens that advance by `stride`. Each token is scored once, in the first window that
contains it. Tokens without a predecessor are not scored: the first of the text, and the first of each window if the
stride is the whole context (Transformers' documentation, "Perplexity of fixed-length models"). All tokens have the same
weight; the code in that documentation weights a window by its tokens minus one, which is 0 for a stride of 1.
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
_FEWEST_SCORED = 2  # tokens: a single one has no standard error


@dataclass(frozen=True)
class Window:
    """Tokens that a model sees at once; logits from row `first` to the last but one are scored."""

    tokens: Sequence[int]
    first: int

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """The tokens that the scored rows predict."""
        return np.asarray(self.tokens[self.first + 1 :], np.int64)


@dataclass(frozen=True)
class Windowing:
    """How a text is divided into windows; `stride` is for the strided method, by default half of the context."""

    method: Method = "llama.cpp"
    context: int = CONTEXT
    stride: int | None = None

    def fitted(self, positions: int) -> "Windowing":
        """The windowing for a model with this number of positions. Raises `UsageError` for impossible values."""
        context = min(self.context, positions)
        if context < _SHORTEST:
            raise UsageError(
                f"a context of {context} positions is too short to score a text, which needs {_SHORTEST} or more"
            )
        if self.method not in METHODS:
            raise UsageError(f"`method` must be one of {', '.join(METHODS)}, not {self.method!r}")
        if self.method == "llama.cpp":
            if self.stride is not None:
                raise UsageError("`stride` needs the strided method", "Omit `stride`, or set `method` to strided.")
            return Windowing(self.method, context)
        stride = max(1, context // 2) if self.stride is None else self.stride
        if not 1 <= stride <= context:
            raise UsageError(f"`stride` must be 1-{context} for a context of {context}, not {stride}")
        return Windowing(self.method, context, stride)

    def windows(self, tokens: Sequence[int], begin: int | None = None) -> list[Window]:
        """The windows of a text; the windowing must be `fitted`. Raises `UsageError` for a text that is too short.

        As in llama-perplexity, `begin`, the token that every text of the model begins with, replaces the first token of
        each chunk.
        """
        if self.method == "strided":
            if len(tokens) <= _FEWEST_SCORED:
                message = f"the text has {len(tokens)} tokens, and needs at least {_FEWEST_SCORED + 1}"
                raise UsageError(message, "Use a longer text.")
            return list(_strided(tokens, self.context, self.stride or 1))
        if len(tokens) < self.context:
            raise UsageError(
                f"the text has {len(tokens)} tokens, and needs at least one chunk of {self.context}",
                "Use a longer text, a smaller `ctx_size`, or a `stride`.",
            )
        starts = range(0, len(tokens) - self.context + 1, self.context)
        if len(starts) * (self.context - self.context // 2 - 1) < _FEWEST_SCORED:
            raise UsageError(
                f"one chunk of {self.context} tokens is too short to score", "Use a longer text, or a `stride`."
            )
        chunks = [tokens[start : start + self.context] for start in starts]
        if begin is not None:
            chunks = [[begin, *chunk[1:]] for chunk in chunks]
        return [Window(chunk, self.context // 2) for chunk in chunks]


LLAMA_CPP = Windowing()  # the method of published figures


def _strided(tokens: Sequence[int], context: int, stride: int) -> list[Window]:
    found, scored = [], 1  # the first token has no predecessor
    for begin in range(0, len(tokens), stride):
        end = min(begin + context, len(tokens))
        first = max(0, scored - 1 - begin)
        if end - begin > first + 1:
            found.append(Window(tokens[begin:end], first))
        scored = end
        if end == len(tokens):
            break
    return found
