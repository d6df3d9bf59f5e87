"""The Children's Book Test: choose one of ten words for a gap (Hill et al. 2016, arXiv:1511.02301).

As in the GPT-2 paper: the score of a choice is the probability of the word and the rest of the sentence, given the
twenty sentences and the text before the gap. The published files have Penn Treebank tokens, which `detokenize` joins
to ordinary text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from dgpt2_quant.bench.data.datasets import numbered_lines
from dgpt2_quant.core.archive import DataFile
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime.model import Model

from .metrics import Advance, FloatArray, Metric, Scores, Settings, first_token, relative_log_probs

GAP = "XXXXX"
SENTENCES, CHOICES = 20, 10
_FORM = f"{SENTENCES} numbered sentences, then: {SENTENCES + 1} a question with {GAP}<tab>answer<tab><tab>a|b|... ."

_BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}
_RULES = [
    (re.compile(r"`` ?"), '"'),  # no blank inside quotation marks
    (re.compile(r" ?''"), '"'),
    (re.compile(r"(^|\s)` ?"), r"\1'"),
    (re.compile(r" (n't|'(?:s|m|d|re|ve|ll)|')(?=\W|$)", re.IGNORECASE), r"\1"),  # contractions, closing marks
    (re.compile(r" ([.,:;!?)\]}])"), r"\1"),
    (re.compile(r"([(\[{]) "), r"\1"),
]


@dataclass(frozen=True)
class Question:
    """A question with its gap, the sentences before it, the choices, and the index of the answer; all tokenized."""

    sentences: list[str]
    question: str
    choices: list[str]
    answer: int

    def texts(self) -> list[str]:
        """The whole text with each choice, detokenized."""
        return [detokenize(" ".join([*self.sentences, self.question.replace(GAP, choice)])) for choice in self.choices]


def detokenize(text: str) -> str:
    """Ordinary text from Penn Treebank tokens: joins quotation marks, brackets, punctuation and contractions."""
    for name, bracket in _BRACKETS.items():
        text = text.replace(name, bracket)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def read_questions(file: DataFile) -> list[Question]:
    """The questions of a cbtest_*.txt. Raises `UsageError` that names the line."""
    questions, sentences = [], list[str]()
    for number, line in numbered_lines(file):
        if not line.strip():
            if sentences:
                raise _error(file, number, f"{len(sentences)} sentences and no question")
            continue
        label, _, rest = line.partition(" ")
        if label != str(len(sentences) + 1):
            raise _error(file, number, f"it begins with {label[:20]!r}, not with {len(sentences) + 1}")
        if len(sentences) < SENTENCES:
            sentences.append(rest.strip())
            continue
        questions.append(_question(file, number, sentences, rest))
        sentences = []
    if sentences or not questions:
        raise _error(file, number, "the file ends before a question")
    return questions


class ChildrensBookTest:
    """Columns: whether the answer is the likeliest choice, 1."""

    metrics: Mapping[str, Metric] = {"accuracy": Metric(0, over=1)}

    def __init__(self, file: DataFile, settings: Settings) -> None:
        self.questions = read_questions(file)[: settings.limit]
        self.parse_special = settings.parse_special

    def measure(self, model: Model, advance: Advance) -> Scores:
        found: FloatArray = np.ones((len(self.questions), 2))
        begin = first_token(model)
        for index, question in enumerate(self.questions):
            scores = choice_scores(model, begin, question, parse_special=self.parse_special)
            found[index, 0] = int(np.argmax(scores)) == question.answer
            advance(index + 1, len(self.questions))
        return Scores([found])


def choice_scores(model: Model, begin: int, question: Question, *, parse_special: bool = True) -> FloatArray:
    """The log-probability of each choice with the text after it, in nats, up to a common constant."""
    return relative_log_probs(model, begin, question.texts(), parse_special=parse_special)


def _question(file: DataFile, number: int, sentences: list[str], line: str) -> Question:
    fields = line.split("\t")
    if len(fields) != 4:
        raise _error(file, number, f"{len(fields)} fields, not 4")
    question, answer, _, listed = fields
    choices = listed.strip().split("|")
    if GAP not in question:
        raise _error(file, number, f"the question has no gap {GAP}")
    if len(choices) != CHOICES:
        raise _error(file, number, f"{len(choices)} choices, not {CHOICES}")
    choices = [choice for choice in choices if choice.strip()]  # empty choices do not count
    if answer not in choices or len(choices) < 2:
        raise _error(file, number, f"the answer {answer[:50]!r} is not among the choices")
    return Question(sentences, question.strip(), choices, choices.index(answer))


def _error(file: DataFile, number: int, what: str) -> UsageError:
    return UsageError(f"{file.name}, line {number}: {what}", f"The format is: {_FORM}")
