"""Labelled examples: the forms that data sets have, and errors that name the line."""

from typing import Any

import pytest
from dgpt2_quant.bench.data.labelled import Example, read_examples
from dgpt2_quant.core.archive import DataFile
from dgpt2_quant.core.errors import UsageError


def read(text: str) -> list[Example]:
    return read_examples(DataFile("data.csv", text.encode()))


@pytest.mark.parametrize(
    ("text", "given", "label"),
    [
        ('text,label\n"one, two",joy\n', "one, two", "joy"),
        ("label,text\n3,one\n", "one", "3"),
        ("sentence\tlabel\none, two\t1\n", "one, two", "1"),
        ('\ufeffid,content,labels\r\n7,"one\ntwo",joy\r\n', "one\ntwo", "joy"),
        ('{"text": "one", "label": 0}\n\n', "one", 0),
        ('{"text": "one", "labels": ["a", "b"]}', "one", ["a", "b"]),
        ('{"tokens": ["one", "two"], "ner_tags": [0, 1]}', ["one", "two"], [0, 1]),
        ('{"choices": ["one", "two"], "answer": 1}', ["one", "two"], 1),
    ],
)
def test_forms(text: str, given: Any, label: Any) -> None:
    (found,) = read(text)
    assert (found.given, found.label, found.is_choice) == (given, label, "choices" in text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no examples"),
        ("text,label\n", "has no examples"),
        ("words only\nno columns\n", "line 2: no text"),
        ("text,label\none,\n", "line 2: no label"),
        ("text,label\n,joy\n", "line 2: no text"),
        ("text,label\none,joy\none,two,three\n", "line 3: more fields"),
        ('text,label\none,joy\n"one,joy\n', "line 3"),
        ('{"text": "one", "label": 0}\n{"text": \n', "line 2: Expecting value"),
        ("[1, 2]\n", "line 1: not an object"),
        ('{"text": "one"}', "line 1: no label"),
        ('{"text": 3, "label": 0}', "line 1: no text"),
        ('{"tokens": ["one", 2], "tags": [0, 1]}', "line 1: no text"),
        ('{"tokens": [], "tags": []}', "line 1: no text"),
    ],
)
def test_broken_files_are_refused_by_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(text)
