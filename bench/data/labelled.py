"""Reads labelled examples from CSV, TSV, JSON or JSONL: texts, words of sentences, or choices, with their labels."""

import csv
import io
import json
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dgpt2_quant.core.archive import DataFile
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.text import as_text

from .datasets import numbered_lines

# column names of data sets on the Hub, by content
_TEXT, _WORDS, _CHOICES = ("text", "sentence", "content"), ("tokens", "words"), ("choices", "endings")
_GIVEN = (*_TEXT, *_WORDS, *_CHOICES)
_LABEL = ("label", "labels", "ner_tags", "tags", "answer")
_NUMBERS = ("id", "idx", "index", "ind", "guid")  # of examples; they are never the input
_FORM = 'A CSV has the columns text,label; a JSONL has lines such as {"text": "...", "label": "joy"}.'
_QUOTED = re.compile(r'"(?:[^"]|"")*"')
_log = logging.getLogger(__name__)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Example:
    """A text, the words of a sentence, or choices; `label` is as in the file: a name or an id, or a list of them."""

    line: int
    given: str | list[str]
    label: Any
    is_choice: bool = False


def read_examples(file: DataFile) -> list[Example]:
    """The examples of a file. Warns of columns that are not used. Raises `UsageError` that names the line."""
    text = as_text(file).text
    begin = text.lstrip()[:1]
    rows = [*(_json_rows(file) if begin == "{" else _json_array(file, text) if begin == "[" else _csv_rows(file, text))]
    if not rows:
        raise UsageError(f"{file.name} has no examples", _FORM)
    found = [_example(file, line, row) for line, row in rows]
    first = rows[0][1]
    given, label = _first(first, _GIVEN), _first(first, _LABEL)
    if idle := [name for name in first if name not in (given, label, *_NUMBERS)]:
        _log.warning("%s: only %s is classified; not used: %s", file.name, given, ", ".join(idle))
    return found


def _first(row: Row, names: tuple[str, ...]) -> str | None:
    """The first of these columns that the row has."""
    return next((name for name in names if row.get(name) is not None), None)


def _json_rows(file: DataFile) -> Iterator[tuple[int, Row]]:
    for number, line in numbered_lines(file):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{file.name}, line {number}: {str(error)[:200]}", _FORM) from error
        yield number, _object(file, number, row)


def _json_array(file: DataFile, text: str) -> Iterator[tuple[int, Row]]:
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file.name}: {str(error)[:200]}", _FORM) from error
    for number, row in enumerate(rows, 1):
        yield number, _object(file, number, row)


def _object(file: DataFile, number: int, row: Any) -> Row:
    if not isinstance(row, dict):
        raise UsageError(f"{file.name}, line {number}: not an object", _FORM)
    return row


def _csv_rows(file: DataFile, text: str) -> Iterator[tuple[int, Row]]:
    head = text.partition("\n")[0]
    if "\t" in head and (rows := _unquoted(text)):
        yield from rows
        return
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter="\t" if "\t" in head else ",")
    try:
        for row in reader:
            if None in row:
                raise UsageError(f"{file.name}, line {reader.line_num}: more fields than columns", _FORM)
            yield reader.line_num, row
    except csv.Error as error:
        # DictReader counts a line only after it is parsed
        raise UsageError(f"{file.name}, line {reader.reader.line_num}: {error}", _FORM) from error


def _unquoted(text: str) -> list[tuple[int, Row]]:
    """The rows of a TSV whose lines are its rows, as in GLUE, where a quotation mark is a letter; else none."""
    columns, *lines = (line.removesuffix("\r").split("\t") for line in text.split("\n"))
    rows = [(number, fields) for number, fields in enumerate(lines, 2) if fields != [""]]
    if any(len(fields) != len(columns) for _, fields in rows):
        return []
    return [(number, dict(zip(columns, map(_field, fields), strict=True))) for number, fields in rows]


def _field(text: str) -> str:
    return text[1:-1].replace('""', '"') if _QUOTED.fullmatch(text) else text


def _example(file: DataFile, line: int, row: Row) -> Example:
    name, label_name = _first(row, _GIVEN), _first(row, _LABEL)
    where, columns = f"{file.name}, line {line}", ", ".join(map(str, row))[:100]
    if name is None:
        raise UsageError(f"{where}: no text, choices or tokens; its columns are {columns}", _FORM)
    given, label = row[name], row[label_name] if label_name else None
    is_list = isinstance(given, list) and given and all(isinstance(text, str) and text for text in given)
    if not is_list and not (isinstance(given, str) and given.strip()):
        raise UsageError(f"{where}: {name} is {str(given)[:40]!r}, not a text or a list of texts", _FORM)
    if label is None or label == "":
        raise UsageError(f"{where}: no label; its columns are {columns}", _FORM)
    return Example(line, given, label, is_choice=name in _CHOICES)
