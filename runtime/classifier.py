"""Classifies texts, tokens and choices with the classification head of a file; a part of `Model`.

Scores, labels and spans are those of Transformers' pipelines (pipelines/text_classification.py and
token_classification.py). Each text is decoded alone, so its scores do not depend on other texts.
"""

import reprlib
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import RuntimeFailure, UsageError
from dgpt2_quant.core.head import Head, ProblemType

from .scoring import Scorer

Aggregation = Literal["simple", "none"]


class LabelScore(NamedTuple):
    """A label with its score (a probability; for a regression the value itself) and its logit."""

    label: str
    score: float
    logit: float


class Span(NamedTuple):
    """A labelled part of a text: `text[start:end]` in characters; `score` is the mean of its tokens' scores."""

    label: str
    score: float
    start: int
    end: int
    text: str


@dataclass(frozen=True)
class Classification:
    """The result for a text: `scores` of all labels in the order of their ids, or, for a head that classifies
    tokens, the `spans`. `tokens` is the number of tokens read, `truncated` whether the text has more."""

    tokens: int
    truncated: bool = False
    scores: Sequence[LabelScore] = ()
    spans: Sequence[Span] = ()

    @property
    def best(self) -> LabelScore:
        """The label with the highest score. Raises `UsageError` for a head that classifies tokens."""
        if not self.scores:
            raise UsageError("a head that classifies tokens gives `spans`, not one label")
        return max(self.scores, key=lambda one: one.logit)

    def to_json(self) -> dict[str, object]:
        about = {"tokens": self.tokens, "truncated": self.truncated}
        if not self.scores:
            return {**about, "spans": [span._asdict() for span in self.spans]}
        best, scores = self.best, [one._asdict() for one in self.scores]
        return {**about, "label": best.label, "score": best.score, "scores": scores}


class _Text(NamedTuple):
    """A text, the blank that was put before it, its tokens, and how many of them were added before and after it."""

    text: str
    prefix: str
    tokens: list[int]
    before: int
    after: int
    truncated: bool = False


class Classifier(Scorer):
    """Classifies texts with the file's `head`."""

    head: Head | None

    def classify(
        self,
        texts: str | Sequence[str] | Sequence[Sequence[str]],
        *,
        truncate: bool = False,
        aggregation: Aggregation = "simple",
        ignore_labels: Container[str] = ("O",),
        special: bool = True,
    ) -> list[Classification]:
        """Classifies each text.

        With a head for multiple choice, `texts` are lists of choices, and the scores of each list add up to 1. A text
        beyond the context is refused, or with `truncate` its end is ignored. `aggregation` "simple" joins tokens to
        spans, and "none" gives a span for each token; spans with `ignore_labels` are left out. With `special`,
        `<|endoftext|>` in a text is the special token. Raises `UsageError`, also for a file without a head.
        """
        if (head := self.head) is None:
            raise UsageError(
                f"{self._open().path.name} has no classification head",
                "Convert a checkpoint of GPT2ForSequenceClassification or GPT2ForTokenClassification.",
            )
        if aggregation not in get_args(Aggregation):
            raise UsageError(f"`aggregation` must be simple or none, not {aggregation!r}")
        given = [texts] if isinstance(texts, str) else texts
        if not isinstance(given, Iterable) or isinstance(given, bytes | dict | set):
            raise UsageError(f"`texts` must be a str or a list of str, not {reprlib.repr(texts)}")
        found = []
        for item in given:
            if head.kind == "choice":
                choices = [self._read(head, text, truncate, special) for text in _choices(item)]
                found.append(self._choose(head, choices))
                continue
            text = self._read(head, item, truncate, special)
            if head.kind == "text":
                found.append(self._classify(head, text))
            else:
                one = self._classify_tokens(head, text, aggregation)
                found.append(replace(one, spans=[span for span in one.spans if span.label not in ignore_labels]))
        return found

    def _classify(self, head: Head, text: _Text) -> Classification:
        logits = self._logits(head, text)
        scores = _probabilities(logits, head.problem_type)
        rows = zip(head.labels, scores.tolist(), logits.astype(float).tolist(), strict=True)
        return Classification(len(text.tokens), text.truncated, scores=[LabelScore(*row) for row in rows])

    def _choose(self, head: Head, choices: Sequence[_Text]) -> Classification:
        logits = np.concatenate([self._logits(head, choice) for choice in choices])
        scores = _probabilities(logits, "single_label_classification")
        rows = zip((choice.text for choice in choices), scores.tolist(), logits.astype(float).tolist(), strict=True)
        return Classification(
            sum(len(choice.tokens) for choice in choices),
            any(choice.truncated for choice in choices),
            scores=[LabelScore(*row) for row in rows],
        )

    def _classify_tokens(self, head: Head, text: _Text, aggregation: Aggregation) -> Classification:
        rows = _probabilities(_finite(head.logits(self._hidden(text.tokens))), head.problem_type)
        spans = []
        for row, (start, end) in zip(rows[text.before :], self._places(text), strict=False):
            label = int(row.argmax())
            spans.append(Span(head.labels[label], float(row[label]), start, end, text.text[start:end]))
        if aggregation == "simple":
            spans = _grouped(spans, text.text)
        return Classification(len(text.tokens), text.truncated, spans=[_trimmed(span) for span in spans])

    def _logits(self, head: Head, text: _Text) -> npt.NDArray[np.float32]:
        """The logits of a text, (labels,)."""
        if head.pooling == "mean":
            return _finite(head.logits(self._hidden(text.tokens).mean(axis=0, dtype=np.float32)))
        at = head.position(text.tokens) if head.pooling == "last" else 0
        return _finite(
            head.logits(self._hidden(text.tokens[: at + 1])[at])
        )  # later tokens do not change earlier states

    def _read(self, head: Head, text: object, truncate: bool, special: bool) -> _Text:
        if not isinstance(text, str):
            raise UsageError(f"a text to classify must be a str, not {reprlib.repr(text)}")
        native = self._open()
        prefix = " " if head.prefix_space and text and not text.startswith(" ") else ""
        tokens = native.tokenize(prefix + text, special, add_special=True)
        before, after = int(native.adds_bos), int(native.adds_eos)
        if len(tokens) == before + after:
            raise UsageError(
                f"a text to classify must have at least 1 token; {reprlib.repr(text)} has none",
                "Leave out empty texts.",
            )
        if len(tokens) <= self.positions:
            return _Text(text, prefix, tokens, before, after)
        if not truncate:
            raise UsageError(
                f"a text to classify must have at most {self.positions} tokens; {reprlib.repr(text)} has {len(tokens)}",
                "Set `truncate` to ignore the end of it.",
            )
        kept = tokens[: self.positions - after] + tokens[len(tokens) - after :]
        return _Text(text, prefix, kept, before, after, truncated=True)

    def _places(self, text: _Text) -> list[tuple[int, int]]:
        """Where each of the text's own tokens is in it, in characters; a character that two share belongs to both."""
        native, data, at = self._open(), (text.prefix + text.text).encode(), 0
        # the number of the character that each byte belongs to
        characters = np.cumsum((np.frombuffer(data, np.uint8) & 0xC0) != 0x80) - 1 - len(text.prefix)
        found: list[tuple[int, int]] = []
        for token in text.tokens[text.before : len(text.tokens) - text.after]:
            piece = native.special_text(token)
            # llama.cpp drops white space next to some special tokens, and bytes that the vocabulary lacks
            if not piece or (begin := data.find(piece, at)) < 0:  # a token for something unknown
                found.append((found[-1][1], found[-1][1]) if found else (0, 0))
                continue
            at = begin + len(piece)
            found.append((max(0, int(characters[begin])), max(1, int(characters[at - 1]) + 1)))
        return found


def _choices(item: object) -> Sequence[object]:
    if not isinstance(item, list | tuple) or len(item) < 2:
        raise UsageError(
            f"this model compares choices; {reprlib.repr(item)} is not a list of two or more texts",
            "Give at least two choices for each question.",
        )
    return item


def _finite(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if not np.isfinite(logits).all():
        raise RuntimeFailure(
            "the scores of the classification head are not finite", "Use a checkpoint whose head is not damaged."
        )
    return logits


def _probabilities(logits: npt.NDArray[np.float32], problem: ProblemType) -> npt.NDArray[np.float64]:
    """The scores of logits, (..., labels)."""
    wide = logits.astype(np.float64)
    if problem == "regression":
        return wide
    if problem == "multi_label_classification":
        return np.asarray(np.exp(-np.logaddexp(0, -wide)))  # without overflow
    powers = np.exp(wide - wide.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _grouped(spans: Sequence[Span], text: str) -> list[Span]:
    """Joins neighbours of the same label; B- starts a new span."""
    groups: list[list[Span]] = []
    for span in spans:
        if groups and not span.label.startswith("B-") and _tag(groups[-1][-1]) == _tag(span):
            groups[-1].append(span)
        else:
            groups.append([span])
    return [
        Span(
            group[0].label.split("-", 1)[-1],  # also geo-loc becomes loc, as in Transformers
            float(np.mean([span.score for span in group])),
            group[0].start,
            group[-1].end,
            text[group[0].start : group[-1].end],
        )
        for group in groups
    ]


def _tag(span: Span) -> str:
    return span.label[2:] if span.label.startswith(("B-", "I-")) else span.label


def _trimmed(span: Span) -> Span:
    """The span without white space at its ends: GPT-2's tokens begin with the blank before a word."""
    text = span.text.strip()
    start = span.start + len(span.text) - len(span.text.lstrip())
    return span._replace(start=start, end=start + len(text), text=text) if text else span
