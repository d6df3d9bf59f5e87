"""Reading lines: numbers, limits, gzip, and custom_ids that occur twice."""

import gzip
import hashlib
import json
from pathlib import Path

import pytest
from dgpt2_quant.core.errors import ModelNotFoundError, UsageError
from dgpt2_quant.jobs.lines import CustomIds, Input, Line, numbered, slices_of
from dgpt2_quant.jobs.record import Part
from dgpt2_quant.jobs.requests import BadLineError, read_object


def test_an_overlong_line_is_marked_and_the_next_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(b"a" * 10 + b"\n" + b"b" * 11 + b"\n\n" + b"c" * 300_000 + b"\nlast")
    with Input(path, 10) as source:
        found = list(numbered(source, 10, CustomIds()))
    assert found == [
        Line(1, b"a" * 10), Line(2, b"", too_long=10), Line(3, b""), Line(4, b"", too_long=10), Line(5, b"last"),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_lines_come_in_slices(size: int) -> None:
    found = list(slices_of(numbered([b"1", b"2", b"3"], 9, CustomIds()), size))
    assert [len(part) for part in found] == {1: [1, 1, 1], 2: [2, 1], 3: [3], 4: [3]}[size]


def test_gzip_is_found_by_its_first_bytes_and_damage_has_the_line(tmp_path: Path) -> None:
    path, data = tmp_path / "in.jsonl", b"".join(b"%d\n" % number for number in range(50_000))
    path.write_bytes(gzip.compress(data))
    with Input(path) as source:
        assert b"\n".join(source) + b"\n" == data
        assert source.read == Part(50_000, len(data), hashlib.sha256(data).hexdigest())
    path.write_bytes(gzip.compress(data)[:-1000])
    with Input(path) as source, pytest.raises(UsageError, match=r"cannot be read after line \d{4}"):
        list(source)
    with pytest.raises(ModelNotFoundError, match="No such file"):
        Input(tmp_path / "none")


def test_a_custom_id_that_occurs_twice_names_its_first_line() -> None:
    lines = [b'{"custom_id": "a"}', b'{"custom_id": "b"}', b'{"prompt": "custom_id"}', b'{"custom_id": 7}',
             b'{"custom_id": "a", "x": 1}', b'{"custom_id": "a"}', b'{"custom_id": "\\ud800"}']  # fmt: skip
    assert [line.same_id_as for line in numbered(lines, 99, CustomIds())] == [0, 0, 0, 0, 1, 1, 0]


def test_lines_that_are_not_json_objects_are_refused() -> None:
    wrong = {
        b"": "empty", b" \r": "empty", b"{": "not JSON", b"[1]": "JSON object", b'{"a": NaN}': "NaN is not a number",
        b'{"a": "\xff"}': "not UTF-8", b'{"a": "\\ud800"}': "not UTF-8", b"[" * 100_000: "nested at most 100 deep",
        b'{"a": ' + b"9" * 5000 + b"}": "not JSON", b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}": "at most 100 deep",
    }  # fmt: skip
    for data, words in wrong.items():
        with pytest.raises(BadLineError, match=words):
            read_object(Line(2, data))
    assert read_object(Line(1, b'\xef\xbb\xbf{"a": 5.0, "b": 1e999}\r')) == {"a": 5, "b": float("inf")}
    read_object(Line(1, b'{"a": ' + b"[" * 99 + b"]" * 99 + b', "b": ' + b"[[0]]" + b"}"))
    assert json.dumps(read_object(Line(1, b'{"a": 5.0}'))) == '{"a": 5}'
