"""LAMBADA: predict the last word of a passage (Paperno et al. 2016, arXiv:1606.06031).

As `lambada_openai` in lm-evaluation-harness: the prompt is the passage before its last blank, without trailing white
space; the rest is scored. A word is right if all its tokens are the likeliest ones. The accuracy that OpenAI published
for GPT-2 counts only the last token (https://github.com/openai/gpt-2/issues/131); it is reported too.
"""

import json
from collections.abc import Mapping

import numpy as np
from dgpt2_quant.bench.data.datasets import numbered_lines
from dgpt2_quant.core.archive import DataFile
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime.model import Model

from .metrics import Advance, FloatArray, Metric, Scores, Settings, first_token, fit

_FORM = 'Each line is an object such as {"text": "a passage"}.'


def read_passages(file: DataFile) -> list[str]:
    """The passages of a JSONL file. Raises `UsageError` that names the line."""
    passages = []
    for number, line in numbered_lines(file):
        if not line.strip():
            continue
        try:
            passage = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"[:200]
            raise UsageError(f"{file.name}, line {number}: no passage ({reason})", _FORM) from error
        if not isinstance(passage, str) or not passage.rpartition(" ")[2].strip():
            raise UsageError(f"{file.name}, line {number}: the text has no last word", _FORM)
        passages.append(passage)
    if not passages:
        raise UsageError(f"{file.name} has no passages", _FORM)
    return passages


class Lambada:
    """Columns: negative log-likelihood of the last word in nats, whether all of it is greedy, whether its last token
    is, 1."""

    metrics: Mapping[str, Metric] = {
        "perplexity": Metric(0, over=3, of=np.exp),
        "accuracy": Metric(1, over=3),
        "last_token_accuracy": Metric(2, over=3),
    }

    def __init__(self, file: DataFile, settings: Settings) -> None:
        self.passages = read_passages(file)[: settings.limit]
        self.parse_special = settings.parse_special

    def measure(self, model: Model, advance: Advance) -> Scores:
        found: FloatArray = np.ones((len(self.passages), 4))
        begin = first_token(model)
        for index, passage in enumerate(self.passages):
            before, word = split_passage(model, passage, parse_special=self.parse_special)
            (scores,) = model.score_continuations(fit(model, before or [begin], len(word)), [word])
            found[index, :3] = -scores.log_probs.sum(dtype=np.float64), scores.greedy.all(), scores.greedy[-1]
            advance(index + 1, len(self.passages))
        return Scores([found])


def split_passage(model: Model, passage: str, *, parse_special: bool = True) -> tuple[list[int], list[int]]:
    """The tokens before the last word, and those of the word with its leading white space.

    Those before begin with the token that every text begins with, if the file states one.
    """
    before = passage.rpartition(" ")[0].rstrip()
    tokens = model.tokenize(passage, special=parse_special, add_special=False)
    length = len(model.tokenize(before, special=parse_special, add_special=False)) if before else 0
    first = [] if model.first_token is None else [model.first_token]
    return [*first, *tokens[:length]], tokens[length:]
