"""LAMBADA: perplexity and accuracy from first principles, and files that are not in its format."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dgpt2_quant.bench.tasks.lambada import Lambada, read_passages, split_passage
from dgpt2_quant.bench.tasks.metrics import Settings, summarize
from dgpt2_quant.core.archive import DataFile
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime import Model

PASSAGES = [
    "The old king had a golden bird, and every night an apple was missing. At last he said: who has stolen my apple?",
    'She knocked at the door of the little house. "Come in," said the old woman, and opened the door',
    "Once upon a time",
    "Rumpelstiltskin",  # nothing before the word
    "two  blanks before the  end",
    "He opened the door and said:\n\n come",  # the ends of lines belong to the word
    "“Curly quotes”, said the prince",
]


@pytest.fixture(scope="module")
def model(short_files: dict[str, Path]) -> Iterator[Model]:
    with Model.load(short_files["F32"], threads=1) as model:
        yield model


def jsonl(*passages: str, end: str = "\n") -> DataFile:
    return DataFile("l.jsonl", "".join(json.dumps({"text": passage}) + end for passage in passages).encode())


def by_hand(model: Model, passage: str) -> tuple[float, bool, bool]:
    """The last word's log-probability, whether it is greedy, and whether its last token is, from all logits at once."""
    before, _, word = passage.rpartition(" ")
    tokens = model.tokenize(passage, special=False)
    first = len(model.tokenize(before.rstrip(), special=False)) if before else 0
    if not first:
        tokens, first = [*model.tokenize("<|endoftext|>"), *tokens], 1
    assert model.detokenize(tokens[first:]).strip() == word
    total, greedy = 0.0, []
    for row, token in zip(model.logits(tokens).astype(np.float64)[first - 1 : -1], tokens[first:], strict=True):
        total += row[token] - np.logaddexp.reduce(row)
        greedy.append(row.argmax() == token)
    return total, all(greedy), bool(greedy[-1])


def test_figures_match_their_definition(model: Model) -> None:
    likeliest = model.detokenize([int(model.logits(model.tokenize(PASSAGES[0]))[-1].argmax())])
    passages = [*PASSAGES, PASSAGES[0] + " " + likeliest.strip()]  # so that one of them is right
    seen: list[tuple[int, int]] = []
    task = Lambada(jsonl(*passages), Settings())
    scores = task.measure(model, lambda done, total: seen.append((done, total)))
    metrics = summarize(task.metrics, scores, None)
    expected = [by_hand(model, passage) for passage in passages]
    assert metrics["perplexity"]["value"] == pytest.approx(np.exp(-np.mean([e[0] for e in expected])), rel=0.01)
    assert metrics["accuracy"]["value"] == pytest.approx(np.mean([e[1] for e in expected]))
    assert metrics["last_token_accuracy"]["value"] == pytest.approx(np.mean([e[2] for e in expected]))
    assert 0 < metrics["accuracy"]["value"] < 1
    assert seen == [(index + 1, len(passages)) for index in range(len(passages))]


def test_the_word_has_the_blank_before_it(model: Model) -> None:
    before, word = split_passage(model, PASSAGES[1])
    assert (model.detokenize(before)[-3:], model.detokenize(word)) == ("the", " door")
    assert before + word == model.tokenize(PASSAGES[1])
    assert split_passage(model, "Rumpelstiltskin")[0] == []


def test_all_white_space_before_the_word_is_scored_with_it(model: Model) -> None:
    before, word = split_passage(model, "The old king said:\n\t  come")
    assert (model.detokenize(before), model.detokenize(word)) == ("The old king said:", "\n\t  come")
    assert split_passage(model, "\n come")[0] == []


def test_a_perplexity_that_overflows(model: Model) -> None:
    task = Lambada(jsonl("The fox said " + "qz" * 200), Settings())
    scores = task.measure(model, lambda *_: None)
    found = summarize(task.metrics, scores, scores)
    assert scores.parts[0][0, 0] > 710  # nats; exp of this overflows a double
    assert set(found["perplexity"].values()) == {None}
    assert (found["accuracy"]["value"], found["accuracy"]["change_against_f16"]) == (0, 0)


def test_a_long_passage_loses_its_beginning(short_files: dict[str, Path]) -> None:
    with Model.load(short_files["F32"], ctx_size=32, threads=1) as small:
        scores = Lambada(jsonl(" ".join(PASSAGES)), Settings()).measure(small, lambda *_: None)
        tokens = small.tokenize(" ".join(PASSAGES))[-32:]
        word = len(split_passage(small, " ".join(PASSAGES))[1])
        expected = -small.score(tokens)[-word:].sum()
    assert scores.parts[0][0, 0] == pytest.approx(expected, abs=0.02)


def test_the_limit_takes_the_first(model: Model) -> None:
    assert Lambada(jsonl(*PASSAGES), Settings(limit=2)).passages == PASSAGES[:2]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n"])
def test_crlf_and_a_byte_order_mark(end: str) -> None:
    file = jsonl(*PASSAGES, end=end)
    assert read_passages(DataFile(file.name, b"\xef\xbb\xbf" + file.content)) == PASSAGES


def test_unicode_separators_are_not_line_ends() -> None:
    content = '{"text": "one\u2028two three"}\n'.encode()
    assert read_passages(DataFile("l.jsonl", content)) == ["one\u2028two three"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "a b"', "line 2: no passage"),
        ('{"txt": "a b"}', "line 2: no passage .KeyError: 'text'"),
        ('["text"]', "line 2: no passage"),
        ("7", "line 2: no passage"),
        ('{"text": 7}', "line 2: the text has no last word"),
        ('{"text": ""}', "line 2: the text has no last word"),
        ('{"text": "a word "}', "line 2: the text has no last word"),
        ("[" * 100_000, "line 2: no passage"),
    ],
)
def test_errors_name_the_line(line: str, says: str) -> None:
    with pytest.raises(UsageError, match=rf"l\.jsonl, {says}"):
        read_passages(DataFile("l.jsonl", f'{{"text": "good one"}}\n{line}\n'.encode()))


def test_an_empty_file() -> None:
    with pytest.raises(UsageError, match="has no passages"):
        read_passages(DataFile("l.jsonl", b"\n"))
