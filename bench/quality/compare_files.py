"""What several files make of one text, token by token, beside a reference.

Window by window the reference's logits are taken from the cache, or computed, and every file's are compared with them
at once, in float: nothing but a few numbers for each token stays.
"""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.bench.quality import logit_rows as rows
from dgpt2_quant.core.cores import threads_or_all
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.runtime.model import Model
from dgpt2_quant.runtime.scoring import Visitor

from .logit_rows import Base, Expected, FloatArray, ForBlocks, Found, Logits
from .reference_cache import LIMIT, ReferenceCache
from .windows import LLAMA_CPP, Cut, Window

_NOISE_WINDOWS = 8  # in which the reference is computed once more
_NOISE_BATCH = 32  # tokens at once, instead of a whole window


@dataclass(frozen=True)
class Noise:
    """The first scored tokens once more, by the reference itself on another road, told in words by `how`."""

    how: str
    scores: Found


@dataclass(frozen=True)
class Quality:
    """`levels` in the order of the files; all arrays have one value for each scored token, window by window.

    `tokens` are those of the whole text, `cut` how it was scored.
    """

    tokens: Sequence[int]
    cut: Cut
    windows: list[Window]
    base: Base
    levels: list[Found]
    noise: Noise

    @property
    def lengths(self) -> list[int]:
        """How many scored tokens each window has."""
        return [len(window.targets) for window in self.windows]


def compare(
    reference: Path,
    files: Sequence[Path],
    text: str,
    *,
    parse_special: bool = True,
    cut: Cut = LLAMA_CPP,
    threads: int | None = None,
    cache_bytes: int = LIMIT,
    progress: Progress | None = None,
) -> Quality:
    """Scores the text with each file. Models with fewer positions than the cut's context get windows of their size.

    A file's pad tokens take part in the softmax, as in llama.cpp; those of the reference do not. `cache_bytes` bounds
    what is kept of the reference. Raises `UsageError` for a text that is too short, or files of different vocabularies.
    """
    count = threads_or_all(threads)
    other = 2 if count == 1 else 1
    with ExitStack() as stack:
        load = partial(Model.load, ctx_size=cut.context)
        base, again = (stack.enter_context(load(reference, threads=number)) for number in (count, other))
        models = [stack.enter_context(load(path, threads=count)) for path in files]
        cut = cut.fitted(min(model.positions for model in (base, *models)))
        tokens = base.tokenize(text, special=parse_special)
        for path, model in zip(files, models, strict=True):
            if model.real_vocabulary != base.real_vocabulary or model.tokenize(text, special=parse_special) != tokens:
                raise UsageError(f"{path} has not the vocabulary of {reference}", "Compare levels of one model.")
        windows = cut.windows(tokens)
        noisy = min(len(windows), _NOISE_WINDOWS)
        for_blocks = stack.enter_context(rows.on_threads(count))
        expected: list[Base] = []
        levels: list[list[Found]] = [[] for _ in models]
        noise: list[Found] = []
        cache = ReferenceCache(cache_bytes)
        real = base.real_vocabulary
        kept = cache.rows(reference, windows, real, lambda window: logits(base, window)[:, :real])
        stack.enter_context(closing(kept))
        steps = len(windows) * len(models)
        for number, (window, of_base) in enumerate(zip(windows, kept, strict=True)):
            wanted = rows.expected(of_base, window.targets, for_blocks)
            expected.append(Base(wanted.nll, wanted.top, wanted.top_p))
            for index, (model, scores) in enumerate(zip(models, levels, strict=True)):
                if progress:
                    progress(number * len(models) + index, steps, f"perplexity and KL divergence, {files[index].name}")
                scores.append(scored(model, window, wanted, for_blocks))
            if number < noisy:
                noise.append(scored(again, window, wanted, for_blocks, batch=_NOISE_BATCH))
        if progress:
            progress(steps, steps, "perplexity and KL divergence")
    how = f"{_NOISE_BATCH} tokens at a time on {other} thread{'s' * (other > 1)}, {noisy} of {len(windows)} windows"
    return Quality(
        tokens,
        cut,
        windows,
        Base(*_joined([(part.nll, part.top, part.top_p) for part in expected])),
        [Found(*_joined([(part.nll, part.kld, part.top) for part in scores])) for scores in levels],
        Noise(how, Found(*_joined([(part.nll, part.kld, part.top) for part in noise]))),
    )


def logits(model: Model, window: Window) -> Logits:
    """A copy of those of the scored rows, over all tokens, (rows, vocabulary)."""
    parts: list[Logits] = []
    visit(model, window, lambda _, part: parts.append(part.copy()))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def visit(model: Model, window: Window, see: Visitor, batch: int | None = None) -> None:
    """Calls `see(index of the first, rows)` with views of the scored rows, over all tokens, pads included."""
    count = len(window.targets)

    def see_scored(position: int, part: Logits) -> None:
        start = position - window.first
        if start < count:  # after the last token nothing is scored
            see(start, part[: count - start])

    model.visit_logits(window.tokens, window.first, see_scored, batch=batch)


def window_nll(model: Model, window: Window, for_blocks: ForBlocks) -> FloatArray:
    """The negative log-likelihood of each of a window's targets, in nats."""
    found = np.empty(len(window.targets))

    def see(start: int, part: Logits) -> None:
        there = slice(start, start + len(part))
        found[there] = rows.nll(part, window.targets[there], for_blocks)

    visit(model, window, see)
    return found


def scored(model: Model, window: Window, wanted: Expected, for_blocks: ForBlocks, batch: int | None = None) -> Found:
    """A model's scores of a window, beside the reference's."""
    result = rows.no_scores(len(window.targets))
    visit(model, window, lambda start, part: rows.compare(part, wanted, start, result, for_blocks), batch)
    return result


def _joined(parts: Sequence[tuple[npt.NDArray[Any], ...]]) -> list[npt.NDArray[Any]]:
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
