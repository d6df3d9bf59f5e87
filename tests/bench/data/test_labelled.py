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
        ('[{"text": "one",\n"label": 0}]', "one", 0),
        ('text\tlabel\n"one, ""two"\t1\n', 'one, "two', "1"),
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
        ("text,label\n,joy\n", "line 2: text is '', not a text"),
        ("Text,Label\none,joy\n", "line 2: no text, choices or tokens; its columns are Text, Label"),
        ("text;label\none;joy\n", "its columns are text;label"),
        ("text,label\none,joy\none,two,three\n", "line 3: more fields"),
        ('text,label\none,joy\n"one,joy\n', "line 3"),
        ('{"text": "one", "label": 0}\n{"text": \n', "line 2: Expecting value"),
        ("[1, 2]\n", "line 1: not an object"),
        ("[1, 2\n", "data.csv: Expecting"),
        ('{"text": "one"}', "line 1: no label"),
        ('{"text": 3, "label": 0}', "line 1: text is '3', not a text"),
        ('{"tokens": ["one", 2], "tags": [0, 1]}', "line 1: tokens is .* not a text or a list of texts"),
        ('{"tokens": [], "tags": []}', r"line 1: tokens is '\[\]'"),
    ],
)
def test_broken_files_are_refused_by_line(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(text)


def test_a_quotation_mark_in_a_tsv_is_a_letter() -> None:
    """As in GLUE's files, which quote nothing."""
    found = read('sentence\tlabel\none\t0\n"starts\t1\nmiddle\t0\nends"\t2\n')
    assert [(one.given, one.label) for one in found] == [
        ("one", "0"),
        ('"starts', "1"),
        ("middle", "0"),
        ('ends"', "2"),
    ]


def test_quoted_lines_of_a_tsv_are_joined() -> None:
    (found,) = read('text\tlabel\n"one\ntwo"\t1\n')
    assert found.given == "one\ntwo"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question": "q", "choices": ["a", "b"], "answer": 1}', "only choices is classified; not used: question"),
        ("idx,sentence,label,question\n1,one,0,why\n", "only sentence is classified; not used: question"),
        ("id,text,label\n1,one,0\n", None),
    ],
)
def test_columns_that_are_not_used_are_named(text: str, message: str | None, caplog: pytest.LogCaptureFixture) -> None:
    read(text)
    assert caplog.messages == ([f"data.csv: {message}"] if message else [])
