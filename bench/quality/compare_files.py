"""Scores one text with several files and compares each of them with a reference, token by token.

For each window the reference's logits are read from the cache, or computed, and compared with those of every file, in
float32. Only a few numbers per token are kept.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.bench.data.open_models import open_models, using_threads
from dgpt2_quant.bench.quality import logit_rows as rows
from dgpt2_quant.core.cores import threads_or_all
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.runtime.model import Model
from dgpt2_quant.runtime.scoring import Visitor

from .logit_rows import FileScores, FloatArray, ForBlocks, Logits, ReferenceRows, TokenScores
from .reference_cache import LIMIT, ReferenceCache
from .windows import LLAMA_CPP, Window, Windowing

_NOISE_WINDOWS = 8  # that the reference computes twice
_NOISE_BATCH = 32  # tokens at a time the second time, instead of a whole window


@dataclass(frozen=True)
class Noise:
    """The reference's own scores of the first tokens, computed in another way, which `how` describes."""

    how: str
    scores: FileScores


@dataclass(frozen=True)
class Quality:
    """Scores of a text. All arrays have one value per scored token, window by window; `files` has one entry per file.

    `tokens` are those of the whole text.
    """

    tokens: Sequence[int]
    windowing: Windowing
    windows: list[Window]
    base: TokenScores
    files: list[FileScores]
    noise: Noise

    @property
    def lengths(self) -> list[int]:
        """The number of scored tokens of each window."""
        return [len(window.targets) for window in self.windows]


def compare_files(
    reference: Path,
    files: Sequence[Path],
    text: str,
    *,
    parse_special: bool = True,
    windowing: Windowing = LLAMA_CPP,
    threads: int | None = None,
    reference_cache: int = LIMIT,
    models: Mapping[Path, Model] | None = None,
    progress: Progress | None = None,
) -> Quality:
    """Scores the text with each file. Windows are no longer than the shortest context of a model.

    A file's pad tokens take part in the softmax, as in llama.cpp; those of the reference do not. `reference_cache`
    limits the bytes of logits that are kept. `models` are the files if they are open already; otherwise each is loaded
    on `threads`. Raises `UsageError` for a text that is too short, or for files with different vocabularies.
    """
    with ExitStack() as stack:
        opened = models or stack.enter_context(open_models([reference, *files], threads_or_all(threads)))
        base, compared = opened[reference], [opened[path] for path in files]
        count = base.threads
        windowing = windowing.fitted(min(model.positions for model in (base, *compared)))
        tokens = base.tokenize(text, special=parse_special, add_special=True)
        for path, model in zip(files, compared, strict=True):
            theirs = model.tokenize(text, special=parse_special, add_special=True)
            if model.real_vocabulary != base.real_vocabulary or theirs != tokens:
                raise UsageError(f"{path} lacks the vocabulary of {reference}", "Compare files of one model.")
        windows = windowing.windows(tokens, base.first_token)
        noisy = min(len(windows), _NOISE_WINDOWS)
        for_blocks = stack.enter_context(rows.on_threads(count))
        expected: list[TokenScores] = []
        found: list[list[FileScores]] = [[] for _ in compared]
        noise: list[FileScores] = []
        other = 2 if count == 1 else 1  # threads
        cache = ReferenceCache(reference_cache)
        real = base.real_vocabulary
        kept = cache.rows(reference, windows, real, lambda window: logits(base, window)[:, :real])
        stack.enter_context(closing(kept))
        steps = len(windows) * len(files)
        for number, (window, of_base) in enumerate(zip(windows, kept, strict=True)):
            wanted = rows.reference_rows(of_base, window.targets, for_blocks)
            expected.append(TokenScores(wanted.nll, wanted.top, wanted.top_p))
            for index, (model, scores) in enumerate(zip(compared, found, strict=True)):
                if progress:
                    progress(number * len(files) + index, steps, f"perplexity and KL divergence, {files[index].name}")
                scores.append(scored(model, window, wanted, for_blocks))
            if number < noisy:
                with using_threads(base, other):
                    noise.append(scored(base, window, wanted, for_blocks, batch=_NOISE_BATCH))
        if progress:
            progress(steps, steps, "perplexity and KL divergence")
    how = f"{_NOISE_BATCH} tokens at a time on {other} thread{'s' * (other > 1)}, {noisy} of {len(windows)} windows"
    return Quality(
        tokens,
        windowing,
        windows,
        TokenScores(*_joined([(part.nll, part.top, part.top_p) for part in expected])),
        [FileScores(*_joined([(part.nll, part.kld, part.top) for part in scores])) for scores in found],
        Noise(how, FileScores(*_joined([(part.nll, part.kld, part.top) for part in noise]))),
    )


def logits(model: Model, window: Window) -> Logits:
    """A copy of the logits of the scored rows, pad tokens included, shape (rows, vocabulary)."""
    parts: list[Logits] = []
    visit(model, window, lambda _, part: parts.append(part.copy()))
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def visit(model: Model, window: Window, see: Visitor, batch: int | None = None) -> None:
    """Calls `see(index of the first row, rows)` with views of the scored rows, pad tokens included."""
    count = len(window.targets)

    def see_scored(position: int, part: Logits) -> None:
        start = position - window.first
        if start < count:  # after the last token nothing is scored
            see(start, part[: count - start])

    model.visit_logits(window.tokens, window.first, see_scored, batch=batch)


def window_nll(model: Model, window: Window, for_blocks: ForBlocks) -> FloatArray:
    """The negative log-likelihood of each target of a window, in nats."""
    found = np.empty(len(window.targets))

    def see(start: int, part: Logits) -> None:
        there = slice(start, start + len(part))
        found[there] = rows.nll(part, window.targets[there], for_blocks)

    visit(model, window, see)
    return found


def scored(
    model: Model, window: Window, wanted: ReferenceRows, for_blocks: ForBlocks, batch: int | None = None
) -> FileScores:
    """A model's scores of a window, compared with the reference's."""
    result = rows.no_scores(len(window.targets))
    visit(model, window, lambda start, part: rows.compare(part, wanted, start, result, for_blocks), batch)
    return result


def _joined(parts: Sequence[tuple[npt.NDArray[Any], ...]]) -> list[npt.NDArray[Any]]:
    return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
