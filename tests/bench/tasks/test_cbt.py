"""The Children's Book Test: which choice wins, from first principles; text put together; files that are not right."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dgpt2_quant.bench.tasks.cbt import ChildrensBookTest, choice_scores, detokenize, read_questions
from dgpt2_quant.bench.tasks.metrics import Settings, summarize
from dgpt2_quant.core.archive import DataFile
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime import Model

CHOICES = ["king", "bird", "door", "forest", "apple", "night", "wolf", "bread", "window", "garden"]
SENTENCES = [f"`` {number} horses , '' said the fox ." for number in range(1, 21)]


def question(text: str, answer: str, choices: list[str] = CHOICES) -> str:
    lines = [f"{number} {sentence}" for number, sentence in enumerate(SENTENCES, 1)]
    return "\n".join([*lines, f"21 {text}\t{answer}\t\t{'|'.join(choices)}"]) + "\n\n"


FILE = DataFile(
    "cbt.txt",
    (
        question("Then the fox said to the XXXXX : how many horses do you have ?", "king")
        + question("XXXXX were in the garden .", "apple", [choice + "s" for choice in CHOICES[:4]] + CHOICES[4:])
        + question("And the fox went home into the XXXXX", "forest")
    ).encode(),
)


@pytest.fixture(scope="module")
def model(short_files: dict[str, Path]) -> Iterator[Model]:
    with Model.load(short_files["F32"], threads=1) as model:
        yield model


def test_the_likeliest_text_wins(model: Model) -> None:
    task = ChildrensBookTest(FILE, Settings(limit=2))
    found = task.measure(model, lambda *_: None)
    right = []
    for asked, row in zip(task.questions, found.parts[0], strict=True):
        before = detokenize(" ".join(SENTENCES)) + " "
        totals = []
        for choice in asked.choices:
            tokens = model.tokenize("<|endoftext|>" + before + detokenize(asked.question.replace("XXXXX", choice)))
            totals.append(float(np.nansum(model.score(tokens), dtype=np.float64)))
        right.append(totals[asked.answer] == max(totals))
        assert row.tolist() == [right[-1], 1]
        scores = choice_scores(model, model.tokenize("<|endoftext|>")[0], asked)
        assert scores - scores[0] == pytest.approx(np.array(totals) - totals[0], abs=0.05)  # all share the rest
    assert summarize(task.metrics, found, None)["accuracy"]["value"] == pytest.approx(np.mean(right))


def test_a_long_text_loses_its_beginning(short_files: dict[str, Path]) -> None:
    with Model.load(short_files["F32"], ctx_size=48, threads=1) as small:
        task = ChildrensBookTest(FILE, Settings(limit=1))
        assert task.measure(small, lambda *_: None).parts[0].shape == (1, 2)
    with (
        Model.load(short_files["F32"], ctx_size=8, threads=1) as tiny,
        pytest.raises(UsageError, match="do not fit a context of 8"),
    ):
        task.measure(tiny, lambda *_: None)


@pytest.mark.parametrize(
    ("tokens", "text"),
    [
        ("`` Well , '' said Tom , `` I do n't know ! ''", '"Well," said Tom, "I don\'t know!"'),
        ("It 's the children 's ; we 'll see .", "It's the children's; we'll see."),
        ("the dogs ' tails ( both ) -LRB- too -RRB-", "the dogs' tails (both) (too)"),
        ("` Oh ! ' said she ? no : ca n't .", "'Oh!' said she? no: can't."),
        ("no artefacts in here", "no artefacts in here"),
        ("I 'D GO , he SAID", "I'D GO, he SAID"),
    ],
)
def test_detokenize(tokens: str, text: str) -> None:
    assert detokenize(tokens) == text


def test_read_questions() -> None:
    first, second, _ = read_questions(FILE)
    assert (len(first.sentences), first.choices[first.answer]) == (20, "king")
    assert second.texts()[0].endswith('horses," said the fox. kings were in the garden.')
    assert second.choices == ["kings", "birds", "doors", "forests", *CHOICES[4:]]


def test_crlf_and_a_byte_order_mark() -> None:
    changed = b"\xef\xbb\xbf" + FILE.content.replace(b"\n", b"\r\n")
    assert read_questions(DataFile("cbt.txt", changed)) == read_questions(FILE)
    assert read_questions(DataFile("cbt.txt", FILE.content.rstrip())) == read_questions(FILE)


def test_empty_choices_do_not_count() -> None:
    text = question("The XXXXX .", "king", ["", *CHOICES[:9]])
    [asked] = read_questions(DataFile("cbt.txt", text.encode()))
    assert (asked.choices, asked.answer) == (CHOICES[:9], 0)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("|garden", "", "line 21: 9 choices, not 10"),
        ("|garden", "|garden|rose", "line 21: 11 choices, not 10"),
        ("\tking\t\t", "\tqueen\t\t", "line 21: the answer 'queen' is not among the choices"),
        ("\t\tking", "\tking", "line 21: 3 fields, not 4"),
        ("XXXXX", "XXXX", "line 21: the question has no gap"),
        ("3 ``", "4 ``", "line 3: it begins with '4', not with 3"),
        ("7 ``", "\n7 ``", "line 7: 6 sentences and no question"),
        ("21 Then", "22 Then", "line 21: it begins with '22', not with 21"),
    ],
)
def test_errors_name_the_line(old: str, new: str, says: str) -> None:
    text = question("Then the XXXXX .", "king")
    assert old in text
    with pytest.raises(UsageError, match=rf"cbt\.txt, {says}"):
        read_questions(DataFile("cbt.txt", text.replace(old, new, 1).encode()))


@pytest.mark.parametrize("lines", [0, 5, 20])
def test_a_file_that_ends_too_soon(lines: int) -> None:
    text = "".join(f"{line}\n" for line in question("The XXXXX .", "king").splitlines()[:lines])
    with pytest.raises(UsageError, match=r"no question|ends before a question"):
        read_questions(DataFile("cbt.txt", text.encode()))
