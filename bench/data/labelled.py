"""Reads labelled examples from CSV, TSV or JSONL: texts, words of sentences, or choices, with their labels."""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dgpt2_quant.core.archive import DataFile
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.text import as_text

from .datasets import numbered_lines

# the columns that data sets on the Hub have, by what they hold
_TEXT, _WORDS, _CHOICES = ("text", "sentence", "content"), ("tokens", "words"), ("choices", "endings")
_LABEL = ("label", "labels", "ner_tags", "tags", "answer")
_FORM = 'A CSV has the columns text,label; a JSONL has lines such as {"text": "...", "label": "joy"}.'


@dataclass(frozen=True)
class Example:
    """A text, the words of a sentence, or choices; `label` is as in the file: a name or an id, or a list of them."""

    line: int
    given: str | list[str]
    label: Any
    is_choice: bool = False


def read_examples(file: DataFile) -> list[Example]:
    """The examples of a file. Raises `UsageError` that names the line."""
    is_json = as_text(file).text.lstrip()[:1] in "{["
    found = [_example(file, line, row) for line, row in (_json_rows(file) if is_json else _csv_rows(file))]
    if not found:
        raise UsageError(f"{file.name} has no examples", _FORM)
    return found


def _json_rows(file: DataFile) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in numbered_lines(file):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{file.name}, line {number}: {str(error)[:200]}", _FORM) from error
        if not isinstance(row, dict):
            raise UsageError(f"{file.name}, line {number}: not an object", _FORM)
        yield number, row


def _csv_rows(file: DataFile) -> Iterator[tuple[int, Mapping[str, Any]]]:
    text = as_text(file).text
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, delimiter=delimiter)
    try:
        for row in reader:
            if None in row:
                raise UsageError(f"{file.name}, line {reader.line_num}: more fields than columns", _FORM)
            yield reader.line_num, row
    except csv.Error as error:
        # DictReader counts a line only after it is parsed
        raise UsageError(f"{file.name}, line {reader.reader.line_num}: {error}", _FORM) from error


def _example(file: DataFile, line: int, row: Mapping[str, Any]) -> Example:
    given = next((row[name] for name in (*_TEXT, *_WORDS, *_CHOICES) if row.get(name) is not None), None)
    label = next((row[name] for name in _LABEL if row.get(name) is not None), None)
    is_list = isinstance(given, list) and given and all(isinstance(text, str) and text for text in given)
    if not is_list and not (isinstance(given, str) and given.strip()):
        raise UsageError(f"{file.name}, line {line}: no text ({', '.join(_TEXT)}, {_WORDS[0]} or {_CHOICES[0]})", _FORM)
    if label is None or label == "":
        raise UsageError(f"{file.name}, line {line}: no label ({', '.join(_LABEL)})", _FORM)
    assert given
    return Example(line, given, label, is_choice=any(row.get(name) is given for name in _CHOICES))
