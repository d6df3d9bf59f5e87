"""Bits per byte and WikiText: every token once, each with the context it should have; bytes, characters and words."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dgpt2_quant.bench.tasks.metrics import Metric, Scores, Settings, summarize
from dgpt2_quant.bench.tasks.text import BitsPerByte, WikiText, detokenize, end_of
from dgpt2_quant.core.archive import DataFile
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.text import load_text
from dgpt2_quant.runtime import Model

STORY = load_text().text[:1800].replace("the", "thé")  # so that there are fewer characters than bytes
WIKI = (
    " = The Fox = \n \n A well @-@ known fox , of 1 @,@ 200 foxes , ran 3 @.@ 5 miles ( twice ) ; it 's true . \n"
    " = = Later life = = \n \n He said : \" I do not know . \" The geese ' cries did n 't end . \n"
) * 3


@pytest.fixture(scope="module")
def model(short_files: dict[str, Path]) -> Iterator[Model]:
    with Model.load(short_files["F32"], threads=1) as model:
        yield model


def file(text: str) -> DataFile:
    return DataFile("text.txt", text.encode())


def by_hand(model: Model, text: str, context: int, stride: int) -> list[float]:
    """Each token's negative log-likelihood; the windows are those of Transformers' documentation."""
    tokens = [*model.tokenize("<|endoftext|>"), *model.tokenize(text, special=False)]
    found, scored = [], 1
    for begin in range(0, len(tokens), stride):
        window = tokens[begin : begin + context]
        rows = model.logits(window).astype(np.float64)
        for position in range(scored, begin + len(window)):
            row = rows[position - begin - 1]
            found.append(float(np.logaddexp.reduce(row) - row[tokens[position]]))
        scored = begin + len(window)
        if scored == len(tokens):
            break
    assert len(found) == len(tokens) - 1
    return found


def value(metrics: dict[str, Metric], scores: Scores, name: str) -> float:
    return summarize(metrics, scores, None)[name]["value"]


@pytest.mark.parametrize(("context", "stride"), [(None, None), (128, 32), (64, 63), (20, 1)])
def test_bits_per_byte_matches_its_definition(model: Model, context: int | None, stride: int | None) -> None:
    text = STORY[:150] if stride == 1 else STORY
    task = BitsPerByte(file(text), Settings(context=context, stride=stride))
    scores = task.measure(model, lambda *_: None)
    expected = by_hand(model, text, context or 512, stride or (context or 512) // 2)
    found = summarize(task.metrics, scores, None)
    size = len(text.encode())
    assert size > len(text)
    assert found["bits_per_byte"]["value"] == pytest.approx(sum(expected) / size / math.log(2), rel=1e-3)
    assert found["bits_per_character"]["value"] == pytest.approx(sum(expected) / len(text) / math.log(2), rel=1e-3)
    assert found["token_perplexity"]["value"] == pytest.approx(math.exp(np.mean(expected)), rel=1e-2)


def test_the_limit_counts_windows(model: Model) -> None:
    task = BitsPerByte(file(STORY), Settings(limit=2, context=64, stride=32))
    (part,) = task.measure(model, lambda *_: None).parts
    tokens = model.tokenize(STORY, special=False)[: 63 + 32]
    scored = b"".join(model.token_bytes(token) for token in tokens)
    assert part[:, 1].tolist() == [63, 32]
    assert part[:, 2].sum() == len(scored)
    assert part[:, 3].sum() == len(scored.decode(errors="ignore"))
    assert part[:, 0].sum() == pytest.approx(sum(by_hand(model, STORY, 64, 32)[: 63 + 32]), rel=1e-3)


def test_wikitext_by_token_by_word_and_detokenized(model: Model) -> None:
    task = WikiText(file(WIKI), Settings())
    found = summarize(task.metrics, task.measure(model, lambda *_: None), None)
    plain = by_hand(model, WIKI, 512, 256)
    joined = by_hand(model, "".join(map(detokenize, WIKI.splitlines(keepends=True))), 512, 256)
    words, size = len(WIKI.split()), len(WIKI.encode())
    assert found["token_perplexity"]["value"] == pytest.approx(math.exp(np.mean(plain)), rel=1e-2)
    assert found["word_perplexity"]["value"] == pytest.approx(math.exp(sum(plain) / words), rel=1e-2)
    assert found["bits_per_byte"]["value"] == pytest.approx(sum(plain) / size / math.log(2), rel=1e-3)
    assert found["word_perplexity_detokenized"]["value"] == pytest.approx(math.exp(sum(joined) / words), rel=1e-2)
    assert found["bits_per_byte_detokenized"]["value"] == pytest.approx(sum(joined) / size / math.log(2), rel=1e-3)


def test_measures_of_windows_add_up(model: Model) -> None:
    task = WikiText(file(WIKI), Settings(context=32))
    done: list[tuple[int, int]] = []
    plain, joined = task.measure(model, lambda *step: done.append(step)).parts
    for part in (plain, joined):
        assert len(part) > 5
        assert part[:, 3].sum() == pytest.approx(len(WIKI.encode()))
        assert part[:, 4].sum() == pytest.approx(len(WIKI.split()))
        assert (part[:, 1:] > 0).all()
    assert plain[:, 2].tolist() == pytest.approx(plain[:, 3].tolist())  # without detokenizing, the bytes are equal
    assert joined[:, 2].sum() < joined[:, 3].sum()
    assert all(done <= total for done, total in done)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (" A well @-@ known 1 @,@ 200 at 3 @.@ 5 % . \n", "A well-known 1,200 at 3.5 %.\n"),
        (" = = = Title = = = \n", "=== Title ===\n"),
        (' He ( the fox ) said , " Oh ! " ; it \'s \n', 'He (the fox) said, "Oh!"; it\'s\n'),
        (" \n", "\n"),
        ("plain", "plain"),
    ],
)
def test_detokenize_removes_tokenizer_marks(line: str, text: str) -> None:
    assert detokenize(line) == text


def test_the_end_of_a_file_begins_with_a_whole_character() -> None:
    content = "aäöü".encode()
    assert [end_of(content, size).decode() for size in range(1, 9)] == ["", "ü", "ü", "öü", "öü", "äöü", "aäöü", "aäöü"]
    assert BitsPerByte(DataFile("x", content), Settings(), tail=3).text == "ü"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (Settings(context=64, stride=64), "`stride` must be 1-63 for a context of 64, not 64"),
        (Settings(context=64, stride=65), "`stride` must be .* not 65"),
        (Settings(context=2), "a context of 2 positions is too short"),
    ],
)
def test_impossible_windows_are_refused(model: Model, settings: Settings, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        BitsPerByte(file(STORY), settings).measure(model, lambda *_: None)


def test_an_empty_text(model: Model) -> None:
    with pytest.raises(UsageError, match="the text is empty"):
        BitsPerByte(file(""), Settings()).measure(model, lambda *_: None)


def test_a_text_without_words() -> None:
    with pytest.raises(UsageError, match=r"text\.txt has no words"):
        WikiText(file(" \n" * 50), Settings())


def test_a_word_perplexity_that_overflows(model: Model) -> None:
    task = WikiText(file("x" * 800), Settings())
    scores = task.measure(model, lambda *_: None)
    found = summarize(task.metrics, scores, scores)
    for name in ("word_perplexity", "word_perplexity_detokenized"):
        assert set(found[name].values()) == {None}
    assert found["token_perplexity"]["value"] > 1
    assert found["bits_per_byte"]["change_against_f16"] == 0


def test_invalid_utf8_is_reported_before_loading() -> None:
    with pytest.raises(UsageError, match=r"text\.txt is not UTF-8: line 2,"):
        BitsPerByte(DataFile("text.txt", b"a\n\xff"), Settings())
