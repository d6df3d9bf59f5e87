"""Perplexity and KL divergence of several files against one reference, in lockstep.

Chunk by chunk, the reference's logits are computed once and every file's are compared with them at once, so that
nothing has to be stored: 255 rows of DistilGPT2's 50,257 logits are 51 MB, a text's would be gigabytes.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from dgpt2_quant.quantize.cores import threads_or_all
from dgpt2_quant.quantize.errors import UsageError
from dgpt2_quant.quantize.progress import Progress
from dgpt2_quant.runtime.model import Model

from .divergence import Divergence, TokenScores, combine, score
from .perplexity import (
    CONTEXT,
    Perplexity,
    chunks,
    log_softmax,
    negative_log_likelihood,
    scored_half,
    summarize,
)

_SHORTEST = 4  # positions of a chunk


@dataclass(frozen=True)
class Quality:
    """`results` in the order of the files; `tokens` of the whole text, `context` of each chunk."""

    tokens: int
    context: int
    reference: Perplexity
    results: list[Divergence]


def compare(
    reference: Path,
    files: Sequence[Path],
    text: str,
    *,
    context: int = CONTEXT,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Quality:
    """Scores the text with each file. Models with fewer positions than `context` get chunks of their own size.

    Raises `UsageError` for a text shorter than one chunk, or files of different vocabularies.
    """
    with ExitStack() as stack:
        base, *models = (
            stack.enter_context(Model.load(path, ctx_size=context, threads=threads_or_all(threads)))
            for path in (reference, *files)
        )
        if any(model.vocabulary != base.vocabulary for model in models):
            raise UsageError(f"the files have not all the vocabulary of {reference}")
        context = min(context, base.positions)
        if context < _SHORTEST:
            raise UsageError(f"{context} positions are too few to score a text; at least {_SHORTEST} are needed")
        tokens = base.tokenize(text, special=False)
        parts = chunks(tokens, context)
        base_nll: list[npt.NDArray[np.float64]] = []
        scores: list[list[TokenScores]] = [[] for _ in models]
        for number, chunk in enumerate(parts):
            first, targets = scored_half(chunk)
            expected = log_softmax(base.logits(chunk, first)[:-1])
            base_nll.append(negative_log_likelihood(expected, targets))
            for model, found in zip(models, scores, strict=True):
                found.append(score(expected, log_softmax(model.logits(chunk, first)[:-1]), targets))
            if progress:
                progress(number + 1, len(parts), "perplexity and KL divergence")
    return Quality(len(tokens), context, summarize(np.concatenate(base_nll)), [combine(found) for found in scores])
