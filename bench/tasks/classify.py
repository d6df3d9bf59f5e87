"""Measures the classification head of a fine-tuned model on labelled examples.

Accuracy, F1 and the rules for words are those of scikit-learn (`accuracy_score`, `f1_score(average="macro")`), seqeval
(entities of IOB tags) and Transformers' examples (a word has the label of its first token).
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
from dgpt2_quant.bench.data.labelled import Example, read_examples
from dgpt2_quant.core.archive import DataFile
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.head import Head
from dgpt2_quant.runtime import Classification, Model

from .metrics import Advance, FloatArray, MacroF1, Measure, Metric, Scores, Settings

_log = logging.getLogger(__name__)
_NO_LABEL = -1
_CHOSEN = 0.5  # with several labels, those with at least this score are predicted


class Classify:
    """The task `classify`. Columns of an example: the numbers of right answers and of answers; for each label, the
    number of right predictions and that of labels plus predictions; for tokens, the same two of entities. For a
    regression: squared error, absolute error, 1."""

    def __init__(self, file: DataFile, settings: Settings) -> None:
        self.file = file.name
        self.examples = read_examples(file)[: settings.limit]
        self.parse_special = settings.parse_special
        self.metrics: Mapping[str, Measure] = {}  # they depend on the head
        self._has_warned = False

    def measure(self, model: Model, advance: Advance) -> Scores:
        head = model.head
        if head is None:
            raise UsageError(f"{model.path} has no classification head", "Use a checkpoint of a classifier.")
        wanted = self._wanted(head)  # reports wrong labels before the work
        self.metrics = _metrics(head)
        rows = np.zeros((len(self.examples), _columns(head)))
        cut = 0
        for index, (example, want) in enumerate(zip(self.examples, wanted, strict=True)):
            words = example.given if head.kind == "token" else None
            given = " ".join(words) if isinstance(words, list) else example.given
            asked = [given] if head.kind == "choice" else given
            (found,) = model.classify(
                asked, truncate=True, aggregation="none", ignore_labels=(), special=self.parse_special
            )
            cut += found.truncated
            rows[index] = _row(head, found, want, words if isinstance(words, list) else [])
            advance(index + 1, len(self.examples))
        if cut and not self._has_warned:
            texts = len(self.examples), model.positions
            _log.warning("%d of %d texts have more than %d tokens; their ends are ignored", cut, *texts)
        self._has_warned = True
        return Scores([rows])

    def _wanted(self, head: Head) -> list[list[float]]:
        """The labels of each example as ids: one, one for each word, or all that apply; or a regression's values."""
        for example in self.examples:
            self._check_kind(head, example)
        if head.problem_type == "regression":
            return [_numbers(self._where(one), _as_list(one.label), len(head.labels)) for one in self.examples]
        several = head.kind == "text" and head.problem_type == "multi_label_classification"
        rows = [_as_list(one.label) for one in self.examples]
        if several and all(len(row) == len(head.labels) and set(map(_plain, row)) <= {"0", "1"} for row in rows):
            return [[number for number, value in enumerate(row) if _plain(value) == "1"] for row in rows]
        ids = self._ids(head)
        found: list[list[float]] = []
        for example, row in zip(self.examples, rows, strict=True):
            count = len(example.given) if head.kind == "token" else 1
            if len(row) != count and not several:
                what = (
                    f"{len(row)} label{'s' * (len(row) != 1)} for {count} word{'s' * (count > 1)}"
                    if head.kind == "token"
                    else "several labels, but the model gives one"
                )
                raise UsageError(
                    f"{self._where(example)}: {what}",
                    "Write one label for each " + ("word." if head.kind == "token" else "example."),
                )
            found.append([self._id(head, ids, example, label) for label in row])
        return found

    def _where(self, example: Example) -> str:
        return f"{self.file}, line {example.line}"

    def _check_kind(self, head: Head, example: Example) -> None:
        kind = "choice" if example.is_choice else "token" if isinstance(example.given, list) else "text"
        if kind != head.kind:
            what, line = {
                "text": ("texts", '{"text": "...", "label": ...}'),
                "token": ("lists of words", '{"tokens": ["Ann", "sang"], "ner_tags": [..., ...]}'),
                "choice": ("lists of choices", '{"choices": ["...", "..."], "label": 1}'),
            }[head.kind]
            raise UsageError(f"{self._where(example)}: this model classifies {what}", f"Write lines such as {line}.")

    def _ids(self, head: Head) -> Mapping[str, int]:
        """What the labels of this file mean: names, or numbers from 0. All of a file are read in the same way."""
        if head.kind == "choice":
            return {str(number): number for number in range(max(len(example.given) for example in self.examples))}
        names = {name: head.labels.index(name) for name in head.labels}
        numbers = {str(number): names[name] for number, name in enumerate(head.labels)}
        if head.kind == "text" and head.problem_type == "multi_label_classification":
            return names  # a list of numbers would look like a row of 0 and 1
        used = {_plain(label) for example in self.examples for label in _as_list(example.label)}
        fits_names, fits_numbers = used <= names.keys(), used <= numbers.keys()
        if fits_names and fits_numbers and not self._has_warned and any(names[one] != numbers[one] for one in used):
            _log.warning("%s: its labels are read as the names of labels, not as their numbers from 0", self.file)
        return numbers if fits_numbers and not fits_names else names

    def _id(self, head: Head, ids: Mapping[str, int], example: Example, label: object) -> int:
        found = ids.get(_plain(label))
        if found is None or (head.kind == "choice" and found >= len(example.given)):
            known = [*head.labels] or [str(number) for number in range(len(example.given))]
            shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
            raise UsageError(
                f"{self._where(example)}: the label {_plain(label)[:40]!r} is not one of the model's: {shown}",
                "Write these names, or in all examples their numbers from 0. Or set id2label in config.json and"
                " convert the model again.",
            )
        return found


def _as_list(label: object) -> list[object]:
    return label if isinstance(label, list) else [label]


def _plain(label: object) -> str:
    """A label as text: 1, 1.0 and "1" are the same."""
    if isinstance(label, float) and label.is_integer():
        return str(int(label))
    return str(label)


def _numbers(where: str, values: Sequence[object], count: int) -> list[float]:
    try:
        found = [float(str(value)) for value in values]
    except ValueError:
        found = []
    if len(found) != count or not np.isfinite(found).all():
        raise UsageError(
            f"{where}: the label must be {count} number{'s' * (count > 1)}, not {', '.join(map(str, values))[:40]!r}",
            "The model computes values (problem_type regression): use data with values.",
        )
    return found


def _metrics(head: Head) -> Mapping[str, Measure]:
    if head.problem_type == "regression":
        return {"rmse": Metric(0, over=2, of=np.sqrt), "mean_absolute_error": Metric(1, over=2)}
    found: dict[str, Measure] = {"accuracy": Metric(0, over=1)}
    if head.kind != "choice":
        found["macro_f1"] = MacroF1(2, len(head.labels), over=1)
    if head.kind == "token":
        last = 2 + 2 * len(head.labels)
        found["entity_f1"] = Metric(last, over=last + 1, of=lambda share: 2 * share)
    return found


def _columns(head: Head) -> int:
    if head.problem_type == "regression":
        return 3
    return 2 + 2 * len(head.labels) + 2 * (head.kind == "token")


def _row(head: Head, found: Classification, wanted: list[float], words: Sequence[str]) -> FloatArray:
    """The columns of one example."""
    row = np.zeros(_columns(head))
    if head.problem_type == "regression":
        errors = np.array([one.score for one in found.scores]) - wanted
        row[:] = np.mean(errors**2), np.mean(abs(errors)), 1
    elif head.kind == "token":
        predicted = _word_labels(head, found, words)
        row[:2] = sum(a == b for a, b in zip(predicted, wanted, strict=True)), len(wanted)
        for guess, want in zip(predicted, wanted, strict=True):
            _count(row, head, {guess} - {_NO_LABEL}, {int(want)})
        names = [*head.labels, "O"]  # the last for `_NO_LABEL`
        right, given = (_entities([names[int(one)] for one in labels]) for labels in (predicted, wanted))
        row[-2:] = len(right & given), len(right) + len(given)
    else:
        scores = [one.score for one in found.scores]
        first = [head.labels.index(name) for name in head.labels] or range(len(scores))  # two can have one name
        several = head.kind == "text" and head.problem_type == "multi_label_classification"
        chosen = (
            [index for index, score in enumerate(scores) if score >= _CHOSEN] if several else [int(np.argmax(scores))]
        )
        guessed = {first[index] for index in chosen}
        row[:2] = guessed == set(wanted), 1
        if head.kind == "text":
            _count(row, head, guessed, {int(one) for one in wanted})
    return row


def _count(row: FloatArray, head: Head, guessed: set[int], wanted: set[int]) -> None:
    for label in guessed & wanted:
        row[2 + label] += 1
    for label in [*guessed, *wanted]:
        row[2 + len(head.labels) + label] += 1


def _word_labels(head: Head, found: Classification, words: Sequence[str]) -> list[int]:
    """The id of each word's label: that of the token at its beginning, or O, as for words beyond the context."""
    outside = head.labels.index("O") if "O" in head.labels else _NO_LABEL
    spans, at, labels = list(found.spans), 0, []
    for word in words:
        here = next((span for span in spans if span.start <= at < span.end), None)
        labels.append(outside if here is None else head.labels.index(here.label))
        at += len(word) + 1
    return labels


def _entities(labels: Sequence[str]) -> set[tuple[str, int, int]]:
    """(kind, first word, end) of the entities in IOB or IOBES tags; one also begins at an I- after another kind."""
    found: list[tuple[str, int, int]] = []
    ended = True
    for index, label in enumerate(labels):
        prefix, _, kind = label.partition("-") if label[:2] in ("B-", "I-", "E-", "S-") else ("", "", label)
        if label == "O":
            ended = True
            continue
        if not ended and prefix not in ("B", "S") and found[-1][0] == kind:
            found[-1] = (kind, found[-1][1], index + 1)
        else:
            found.append((kind, index, index + 1))
        ended = prefix in ("E", "S")
    return set(found)
