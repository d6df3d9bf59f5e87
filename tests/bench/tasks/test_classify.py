"""The task `classify`: accuracy and F1 of a head on labelled data, compared with definitions written out here."""

import json
import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.bench.tasks.classify import _entities
from dgpt2_quant.bench.tasks.evaluate import evaluate
from dgpt2_quant.bench.tasks.metrics import MacroF1
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.quantize.store.converted_models import model_file
from dgpt2_quant.runtime import Model

from ...classifiers import make_classifier

LABELS = ("joy", "anger", "fear")
TEXTS = [f"{first} {second} {third}" for first in ("the", "an", "in") for second in "xyz" for third in ("hat", "tin")]
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def metrics_of(folder: Path, data: Path, **options: Any) -> dict[str, Any]:
    (document,) = evaluate(str(folder), task="classify", type="f16", data=data, **options)
    (row,) = document["results"]
    return {name: metric["value"] for name, metric in row["metrics"].items()}


def predictions(folder: Path, texts: Iterable[Any]) -> list[Any]:
    with Model.load(model_file(str(folder), type="f16")[1], threads=1) as model:
        return model.classify(list(texts), aggregation="none")


def macro_f1(wanted: list[set[int]], guessed: list[set[int]]) -> float:
    """As scikit-learn: the mean over the classes that occur of 2 TP / (2 TP + FP + FN)."""
    scores = []
    for label in set().union(*wanted, *guessed):
        pairs = [(label in want, label in guess) for want, guess in zip(wanted, guessed, strict=True)]
        scores.append(2 * pairs.count((True, True)) / sum(want + guess for want, guess in pairs))
    return float(np.mean(scores))


def test_accuracy_and_macro_f1_of_texts(tmp_path: Path) -> None:
    folder, random = make_classifier(tmp_path / "model"), np.random.default_rng(1)
    wanted = random.integers(0, 3, len(TEXTS)).tolist()
    rows = [{"text": text, "label": LABELS[want]} for text, want in zip(TEXTS, wanted, strict=True)]
    found = metrics_of(folder, lines(tmp_path / "data.jsonl", rows))
    guessed = [LABELS.index(one.best.label) for one in predictions(folder, TEXTS)]
    assert found["accuracy"] == pytest.approx(np.mean(np.equal(guessed, wanted)))
    assert found["macro_f1"] == pytest.approx(macro_f1([{one} for one in wanted], [{one} for one in guessed]))
    by_number = "text,label\n" + "".join(f"{text},{want}\n" for text, want in zip(TEXTS, wanted, strict=True))
    (tmp_path / "data.csv").write_text(by_number)
    assert metrics_of(folder, tmp_path / "data.csv") == found


def test_several_labels_count_as_a_set(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model", config={"problem_type": "multi_label_classification"})
    random = np.random.default_rng(2)
    wanted = [{int(n) for n in np.flatnonzero(random.random(3) < 0.5)} for _ in TEXTS]
    guessed = [{n for n, row in enumerate(one.scores) if row.score >= 0.5} for one in predictions(folder, TEXTS)]
    as_rows = [{"text": t, "labels": [int(n in want) for n in range(3)]} for t, want in zip(TEXTS, wanted, strict=True)]
    found = metrics_of(folder, lines(tmp_path / "rows.jsonl", as_rows))
    assert found["accuracy"] == pytest.approx(np.mean([a == b for a, b in zip(wanted, guessed, strict=True)]))
    assert found["macro_f1"] == pytest.approx(macro_f1(wanted, guessed))
    named = [{"text": t, "labels": [LABELS[n] for n in want]} for t, want in zip(TEXTS, wanted, strict=True)]
    assert metrics_of(folder, lines(tmp_path / "names.jsonl", named)) == found


def test_labels_of_a_file_are_names_or_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Stars from 1 to 5: the names of the labels are numbers themselves."""
    stars = [str(number) for number in range(1, 6)]
    folder = make_classifier(tmp_path / "model", labels=stars)
    best = [one.best.label for one in predictions(folder, TEXTS)]
    named = [{"text": text, "label": int(label)} for text, label in zip(TEXTS, best, strict=True)]
    assert metrics_of(folder, lines(tmp_path / "names.jsonl", named))["accuracy"] == 1
    assert any("read as the names of labels" in message for message in caplog.messages)
    (tmp_path / "names.csv").write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in named))
    assert metrics_of(folder, tmp_path / "names.csv")["accuracy"] == 1
    numbers = [{"text": row["text"], "label": float(row["label"] - 1)} for row in named]
    if any(row["label"] == 0 for row in numbers):  # 0 is not a name
        assert metrics_of(folder, lines(tmp_path / "ids.jsonl", numbers))["accuracy"] == 1
    mixed = [{"text": "the", "label": 0}, {"text": "an", "label": 5}]
    with pytest.raises(UsageError, match="the label '0' is not one"):
        metrics_of(folder, lines(tmp_path / "mixed.jsonl", mixed))


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_a_single_label_applies_or_not(form: str, tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model", labels=["toxic"])
    applies = [int(one.scores[0].score >= 0.5) for one in predictions(folder, TEXTS)]
    rows = [{"text": text, "label": label} for text, label in zip(TEXTS, applies, strict=True)]
    data = lines(tmp_path / "data.jsonl", rows)
    if form == "csv":
        (data := tmp_path / "data.csv").write_text(
            "text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in rows)
        )
    assert metrics_of(folder, data)["accuracy"] == 1


def test_two_labels_of_one_name_are_the_same(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model", labels=["a", "a", "a"])
    assert metrics_of(folder, lines(tmp_path / "data.jsonl", [{"text": "the", "label": "a"}]))["accuracy"] == 1


def test_errors_of_a_regression(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model", labels=["LABEL_0"], config={"problem_type": "regression"})
    rows = [{"text": text, "label": str(number / 7)} for number, text in enumerate(TEXTS)]
    found = metrics_of(folder, lines(tmp_path / "data.jsonl", rows))
    errors = np.array([one.scores[0].score for one in predictions(folder, TEXTS)]) - np.arange(len(TEXTS)) / 7
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert found["mean_absolute_error"] == pytest.approx(np.mean(abs(errors)))


def test_words_have_the_label_of_their_first_token(tmp_path: Path) -> None:
    folder, random = make_classifier(tmp_path / "model", "token", TAGS), np.random.default_rng(3)
    words = [
        [*text.split(), word] for text, word in zip(TEXTS, 3 * ["Жук", "é", "世界", "🙂", "tän", "x"], strict=True)
    ]
    wanted = [[TAGS[n] for n in random.integers(0, 5, len(one))] for one in words]
    rows = [{"tokens": one, "ner_tags": tags} for one, tags in zip(words, wanted, strict=True)]
    found = metrics_of(folder, lines(tmp_path / "data.jsonl", rows))
    guessed = []
    with Model.load(model_file(str(folder), type="f16")[1], threads=1) as model:
        for sentence in words:
            (one,) = model.classify(" ".join(sentence), aggregation="none", ignore_labels=())
            starts = [sum(len(word) + 1 for word in sentence[:number]) for number in range(len(sentence))]
            guessed.append([next(span.label for span in one.spans if span.start <= at < span.end) for at in starts])
    pairs = [(a, b) for want, guess in zip(wanted, guessed, strict=True) for a, b in zip(want, guess, strict=True)]
    assert found["accuracy"] == pytest.approx(np.mean([a == b for a, b in pairs]))
    assert found["macro_f1"] == pytest.approx(
        macro_f1([{TAGS.index(a)} for a, _ in pairs], [{TAGS.index(b)} for _, b in pairs])
    )
    right = sum(len(_entities(a) & _entities(b)) for a, b in zip(wanted, guessed, strict=True))
    count = sum(len(_entities(one)) for one in [*wanted, *guessed])
    assert found["entity_f1"] == pytest.approx(2 * right / count)


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", set()),
        ("B-PER I-PER O", {("PER", 0, 2)}),
        ("B-PER B-PER", {("PER", 0, 1), ("PER", 1, 2)}),
        ("I-PER I-LOC I-LOC", {("PER", 0, 1), ("LOC", 1, 3)}),
        ("B-PER O I-PER", {("PER", 0, 1), ("PER", 2, 3)}),
        ("B-a-b I-a-b", {("a-b", 0, 2)}),
        ("I-PER E-PER S-PER", {("PER", 0, 2), ("PER", 2, 3)}),
        ("S-PER I-PER", {("PER", 0, 1), ("PER", 1, 2)}),
    ],
)
def test_entities_of_tags(tags: str, found: set[tuple[str, int, int]]) -> None:
    """As seqeval's `get_entities`."""
    assert _entities(tags.split()) == found


def test_choices(tmp_path: Path) -> None:
    folder = make_classifier(tmp_path / "model", "choice")
    questions = [TEXTS[at : at + 3] for at in range(0, 12, 3)]
    best = [int(np.argmax([row.logit for row in one.scores])) for one in predictions(folder, questions)]
    answers = [best[0], best[1], best[2], (best[3] + 1) % 3]
    rows = [{"choices": choices, "label": answer} for choices, answer in zip(questions, answers, strict=True)]
    assert metrics_of(folder, lines(tmp_path / "data.jsonl", rows)) == {"accuracy": 0.75}


def test_long_texts_are_cut_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_classifier(tmp_path / "model")
    data = lines(tmp_path / "data.jsonl", [{"text": "the " * 99, "label": "joy"}, {"text": "the", "label": "joy"}])
    with caplog.at_level(logging.WARNING, "dgpt2_quant.bench"):
        evaluate(str(folder), task="classify", type=["q8_0", "q4_0"], data=data)
    found = [record.getMessage() for record in caplog.records if record.name.endswith("tasks.classify")]
    assert found == ["1 of 2 texts have more than 64 tokens; their ends are ignored"]


TEXT = {"text": "the", "label": "joy"}


@pytest.mark.parametrize(
    ("kind", "rows", "message"),
    [
        ("text", [TEXT, {"text": "the", "label": "rage"}], "line 2: the label 'rage' is not one of the model's: joy, "),
        ("text", [{"text": "the", "label": 3}], "the label '3' is not one"),
        ("text", [{"text": "the", "label": True}], "the label 'True' is not one"),
        ("text", [{"text": "the", "labels": ["joy", "fear"]}], "line 1: several labels"),
        ("text", [{"tokens": ["the"], "tags": ["joy"]}], "this model classifies texts"),
        ("token", [TEXT], "this model classifies lists of words"),
        ("token", [{"tokens": ["the", "hat"], "tags": ["joy"]}], "1 label for 2 words"),
        ("choice", [TEXT], "this model classifies lists of choices"),
        ("choice", [{"choices": ["the", "an"], "label": 2}], "the label '2' is not one of the model's: 0, 1"),
    ],
)
def test_data_that_do_not_fit_the_head_are_refused(
    kind: str, rows: list[dict[str, Any]], message: str, tmp_path: Path
) -> None:
    folder = make_classifier(tmp_path / "model", kind)
    with pytest.raises(UsageError, match=re.escape(message)):
        metrics_of(folder, lines(tmp_path / "data.jsonl", rows))


def test_a_language_model_and_missing_data_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="classify needs data"):
        evaluate("storybook", task="classify")
    with pytest.raises(UsageError, match="no classification head"):
        evaluate("storybook", task="classify", data=lines(tmp_path / "data.jsonl", [TEXT]))


def test_classes_that_occur_in_neither_are_left_out() -> None:
    sums = np.array([[0, 10, 3, 0, 0, 6, 4, 0], [0, 10, 0, 0, 0, 0, 0, 0]], float)
    values = MacroF1(2, 3, over=1).values(sums)
    assert values[0] == pytest.approx((1 + 0) / 2)
    assert np.isnan(values[1])
