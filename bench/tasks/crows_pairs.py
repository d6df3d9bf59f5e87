"""CrowS-Pairs: of two sentences that differ in the group they speak of, which is likelier (Nangia et al. 2020,
arXiv:2010.00133).

The score of a causal model is that of lm-evaluation-harness: the whole sentence's log-likelihood behind
`<|endoftext|>`; the share is that of pairs whose more stereotyped sentence (`sent_more`) is likelier. Half would be no
preference. The data has known faults (Blodgett et al. 2021, "Stereotyping Norwegian Salmon"), named in docs/tasks.md.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from dgpt2_quant.core.archive import DataFile
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.text import as_text
from dgpt2_quant.runtime.model import Model

from .metrics import Advance, FloatArray, Metric, Scores, Settings, common_prefix, first_token, fit

COLUMNS = ("sent_more", "sent_less", "bias_type")
_FORM = f"The first line names the columns, {', '.join(COLUMNS)} among them."


@dataclass(frozen=True)
class Pair:
    """Two sentences, the first the more stereotyped one, and what kind of bias they are about."""

    more: str
    less: str
    bias_type: str


def read_pairs(file: DataFile) -> list[Pair]:
    """The pairs of a crows_pairs_anonymized.csv. Raises `UsageError` that names the line."""
    reader = csv.DictReader(io.StringIO(as_text(file).text, newline=""), strict=True)
    pairs = []
    try:
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise UsageError(f"{file.name}, line 1: there is no column {missing[0]}", _FORM)
        for row in reader:
            more, less, bias_type = ((row[name] or "").strip() for name in COLUMNS)
            if not (more and less and bias_type) or None in row:
                raise UsageError(f"{file.name}, line {reader.line_num}: the row has not all its columns", _FORM)
            pairs.append(Pair(more, less, bias_type))
    except csv.Error as error:
        # DictReader counts a line when all is well with it
        raise UsageError(f"{file.name}, line {reader.reader.line_num}: {error}", _FORM) from error
    if not pairs:
        raise UsageError(f"{file.name} has no pairs", _FORM)
    return pairs


class CrowsPairs:
    """Columns: 1, whether the more stereotyped sentence is likelier, the difference of the log-likelihoods in nats, its
    size; then for each type of bias whether a pair is of it, and whether it is and is stereotyped."""

    def __init__(self, file: DataFile, settings: Settings) -> None:
        self.pairs = read_pairs(file)[: settings.limit]
        self.parse_special = settings.parse_special
        self.bias_types = sorted({pair.bias_type for pair in self.pairs})
        self.metrics: Mapping[str, Metric] = {
            "stereotype_share": Metric(1, over=0),
            "log_likelihood_difference": Metric(2, over=0),
            "absolute_log_likelihood_difference": Metric(3, over=0),
        } | {
            f"stereotype_share_{bias_type}": Metric(5 + 2 * index, over=4 + 2 * index)
            for index, bias_type in enumerate(self.bias_types)
        }

    def measure(self, model: Model, advance: Advance) -> Scores:
        found: FloatArray = np.zeros((len(self.pairs), 4 + 2 * len(self.bias_types)))
        begin = first_token(model)
        for index, pair in enumerate(self.pairs):
            difference = likelihood_difference(model, begin, pair, parse_special=self.parse_special)
            column = 4 + 2 * self.bias_types.index(pair.bias_type)
            found[index, :4] = 1, difference > 0, difference, abs(difference)
            found[index, column : column + 2] = 1, difference > 0
            advance(index + 1, len(self.pairs))
        return Scores([found])


def likelihood_difference(model: Model, begin: int, pair: Pair, *, parse_special: bool = True) -> float:
    """How much likelier the more stereotyped sentence is than the other: difference of log-likelihoods, in nats."""
    texts = [[begin, *model.tokenize(text, special=parse_special)] for text in (pair.more, pair.less)]
    shared = common_prefix(texts)
    behind = [text[shared:] for text in texts]
    prefix = fit(model, texts[0][:shared], max(map(len, behind)))
    more, less = (part.log_probs.sum(dtype=np.float64) for part in model.score_continuations(prefix, behind))
    return float(more - less)
