"""Perplexity and KL divergence of several files against one reference, in lockstep.

Chunk by chunk, the reference's logits are computed once and every file's are compared with them at once, so that
nothing has to be stored: 255 rows of DistilGPT2's 50,257 logits are 51 MB, a text's would be gigabytes.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from dgpt2_quant.quantize.errors import UsageError
from dgpt2_quant.runtime.model import Model

from .divergence import Divergence, TokenScores, combine, score
from .perplexity import CONTEXT, Perplexity, chunks, log_softmax, scored_half

Progress = Callable[[int, int, str], None]


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
            stack.enter_context(Model.load(path, threads=threads or "auto")) for path in (reference, *files)
        )
        if any(model.vocabulary != base.vocabulary for model in models):
            raise UsageError(f"the files have not all the vocabulary of {reference}")
        context = min(context, base.positions)
        tokens = base.tokenize(text, special=False)
        parts = chunks(tokens, context)
        base_nll: list[TokenScores] = []
        scores: list[list[TokenScores]] = [[] for _ in models]
        for number, chunk in enumerate(parts):
            first, targets = scored_half(chunk)
            expected = log_softmax(base.logits(chunk, first)[:-1])
            base_nll.append(score(expected, expected, targets))
            for model, found in zip(models, scores, strict=True):
                found.append(score(expected, log_softmax(model.logits(chunk, first)[:-1]), targets))
            if progress:
                progress(number + 1, len(parts), "perplexity and KL divergence")
    return Quality(len(tokens), context, combine(base_nll).perplexity, [combine(found) for found in scores])
