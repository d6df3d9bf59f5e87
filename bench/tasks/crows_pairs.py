"""CrowS-Pairs: which of two sentences about different groups is likelier (Nangia et al. 2020, arXiv:2010.00133).

As in lm-evaluation-harness, the score of a sentence is its log-likelihood after `<|endoftext|>`. The share is that of
pairs whose more stereotyped sentence (`sent_more`) is likelier; one half is no preference. The data has known faults
(Blodgett et al. 2021, "Stereotyping Norwegian Salmon"), see docs/tasks.md.
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

from .metrics import Advance, FloatArray, Metric, Scores, Settings, first_token, relative_log_probs

COLUMNS = ("sent_more", "sent_less", "bias_type")
_FORM = f"The first line has the names of the columns, including {', '.join(COLUMNS)}."


@dataclass(frozen=True)
class Pair:
    """Two sentences, the more stereotyped one first, and the type of bias."""

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
                raise UsageError(f"{file.name}, line {reader.line_num}: the row does not have all columns", _FORM)
            pairs.append(Pair(more, less, bias_type))
    except csv.Error as error:
        # DictReader counts a line only after it is parsed
        raise UsageError(f"{file.name}, line {reader.reader.line_num}: {error}", _FORM) from error
    if not pairs:
        raise UsageError(f"{file.name} has no pairs", _FORM)
    return pairs


class CrowsPairs:
    """Columns: 1, whether the more stereotyped sentence is likelier, the difference of the log-likelihoods in nats, its
    absolute value; then for each type of bias whether the pair has it, and whether it has it and is stereotyped."""

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
    """The log-likelihood of the more stereotyped sentence minus that of the other, in nats."""
    more, less = relative_log_probs(model, begin, (pair.more, pair.less), parse_special=parse_special)
    return float(more - less)
