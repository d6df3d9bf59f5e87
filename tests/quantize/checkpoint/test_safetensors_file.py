"""Reading safetensors: the same numbers as the format's library, and wrong headers refused."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.quantize.checkpoint.safetensors_file import read_header
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from ...checkpoints import bfloat16, raw_safetensors

QUICK = settings(max_examples=200, deadline=None, derandomize=True, database=None)
RANDOM = np.random.default_rng(0).normal(0, 0.1, (6, 10))


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    return path


def tensor(shape: list[Any], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_reader_agrees_with_the_safetensors_library(dtype: type, tmp_path: Path) -> None:
    tensors = {"matrix": RANDOM.astype(dtype), "row": RANDOM[0].astype(dtype), "number": np.array(1.5, dtype)}
    content = save(tensors, metadata={"format": "pt"})
    found = read_header(write(tmp_path, content))
    expected = load(content)
    assert found.keys() == expected.keys()
    for name, stored in found.items():
        data = stored.read()
        assert (data.dtype, data.shape, stored.shape) == (dtype, expected[name].shape, expected[name].shape)
        np.testing.assert_array_equal(data, expected[name])


def test_bfloat16_becomes_float32(tmp_path: Path) -> None:
    halves = bfloat16(RANDOM)
    content = raw_safetensors({"w": tensor([6, 10], 0, 120, "BF16")}, halves.tobytes())
    ((_, theirs),) = safetensors.deserialize(content)
    assert (theirs["dtype"], theirs["shape"], bytes(theirs["data"])) == ("BF16", [6, 10], halves.tobytes())
    data = read_header(write(tmp_path, content))["w"].read()
    assert data.dtype == np.float32
    np.testing.assert_array_equal(bfloat16(data), halves)
    np.testing.assert_allclose(data, RANDOM, rtol=2**-7)


def test_tensors_are_in_data_order(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "last": tensor([1], 4, 8), "first": tensor([1], 0, 4)}
    found = read_header(write(tmp_path, raw_safetensors(header, np.array([1.5, 2.5], np.float32).tobytes())))
    assert list(found) == ["first", "last"]
    assert [stored.read().tolist() for stored in found.values()] == [[1.5], [2.5]]


def test_mask_buffer_is_listed_but_not_readable(tmp_path: Path) -> None:
    content = save({"h.0.attn.bias": np.tril(np.ones((3, 3), bool)), "ids": np.arange(3)})
    found = read_header(write(tmp_path, content))
    assert {name: (stored.dtype, stored.shape) for name, stored in found.items()} == {
        "h.0.attn.bias": ("BOOL", (3, 3)),
        "ids": ("I64", (3,)),
    }
    for stored in found.values():
        with pytest.raises(CheckpointError, match=f"'{stored.name}' is {stored.dtype}"):
            stored.read()


def test_empty_tensor(tmp_path: Path) -> None:
    found = read_header(write(tmp_path, save({"none": np.empty((0, 5), np.float32)})))
    assert found["none"].read().shape == (0, 5)


ONE = {"a": tensor([2], 0, 8)}
TWICE = b'{"a": %(it)s, "a": %(it)s}' % {b"it": json.dumps(ONE["a"]).encode()}
MANY_NAMES = b"{" + b",".join(b'"%d":0' % number for number in range(60_000)) + b',"59999":0}'
LIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "0 bytes are too short"),
    "seven bytes": (b"1234567", "7 bytes are too short"),
    "a header longer than the file": ((1000).to_bytes(8, "little") + b"{}", "claims 1000 bytes, the file has 10"),
    "a header of 2^63 bytes": ((1 << 63).to_bytes(8, "little") + b"{}", "claims 9223372036854775808 bytes"),
    "not JSON": (raw_safetensors(b"{'a': 1}"), "not valid JSON"),
    "not UTF-8": (raw_safetensors(b'{"\xff": 1}'), "not valid JSON"),
    "not an object": (raw_safetensors([1, 2]), "not a JSON object"),
    "a nested bomb": (raw_safetensors(b"[" * 1_000_000), "not valid JSON"),
    "a nested bomb of objects": (raw_safetensors(b'{"a":' * 1_000_000), "not valid JSON"),
    "an endless number": (raw_safetensors(b'{"a": ' + b"9" * 100_000 + b"}"), "not valid JSON"),
    "a tensor twice": (raw_safetensors(TWICE, bytes(8)), "'a' occurs twice"),
    "a tensor twice among many": (raw_safetensors(MANY_NAMES), "'59999' occurs twice"),
    "no dtype": (raw_safetensors({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "'a' has no valid dtype"),
    "an entry that is a number": (raw_safetensors({"a": 5}), "'a' has no valid dtype"),
    "a dtype that is a number": (
        raw_safetensors({"a": tensor([2], 0, 8) | {"dtype": 7}}, bytes(8)),
        "'a' has no valid",
    ),
    "three offsets": (raw_safetensors({"a": ONE["a"] | {"data_offsets": [0, 8, 8]}}, bytes(8)), "'a' has no valid"),
    "a fractional offset": (
        raw_safetensors({"a": ONE["a"] | {"data_offsets": [0, 8.0]}}, bytes(8)),
        "'a' has no valid",
    ),
    "an unknown dtype": (raw_safetensors({"a": tensor([2], 0, 8, "F31")}, bytes(8)), "unknown dtype 'F31'"),
    "a negative offset": (raw_safetensors({"a": tensor([2], -8, 0)}, bytes(8)), "offsets say -8:0"),
    "offsets the wrong way": (raw_safetensors({"a": tensor([2], 8, 0)}, bytes(8)), "offsets say 8:0"),
    "offsets of another size": (raw_safetensors({"a": tensor([3], 0, 8)}, bytes(8)), "needs 12 bytes"),
    "data past the end": (raw_safetensors({"a": tensor([3], 0, 12)}, bytes(8)), "'a' ends at byte"),
    "tensors that overlap": (raw_safetensors(ONE | {"b": tensor([2], 4, 12)}, bytes(12)), "'b' overlaps"),
    "tensors in one place": (raw_safetensors(ONE | {"b": ONE["a"]}, bytes(8)), "overlaps"),
    "a negative dimension": (raw_safetensors({"a": tensor([-2, -1], 0, 8)}, bytes(8)), "shape [-2, -1]"),
    "a true dimension": (raw_safetensors({"a": tensor([True, 2], 0, 8)}, bytes(8)), "shape [True, 2]"),
    "a fractional dimension": (raw_safetensors({"a": tensor([2.0], 0, 8)}, bytes(8)), "shape [2.0]"),
    "a shape beyond 64 bits": (raw_safetensors({"a": tensor([1 << 62, 4], 0, 0)}), "shape"),
    "an empty shape beyond 64 bits": (raw_safetensors({"a": tensor([0, 1 << 62], 0, 0)}), "shape"),
    "more dimensions than NumPy has": (raw_safetensors({"a": tensor([1] * 65, 0, 4)}, bytes(4)), "shape"),
}


@pytest.mark.parametrize("lie", LIES)
def test_wrong_header_is_refused_quickly(lie: str, tmp_path: Path) -> None:
    content, words = LIES[lie]
    path = write(tmp_path, content)
    started = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert time.perf_counter() - started < 1
    assert words in caught.value.message
    assert str(path) in caught.value.message


def test_correct_header_is_accepted(tmp_path: Path) -> None:
    assert read_header(write(tmp_path, raw_safetensors(ONE, bytes(8))))["a"].read().tolist() == [0, 0]


def test_file_truncated_while_read(tmp_path: Path) -> None:
    path = write(tmp_path, raw_safetensors(ONE | {"b": tensor([2], 8, 16)}, bytes(16)))
    found = read_header(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    assert found["a"].read().tolist() == [0, 0]
    with pytest.raises(CheckpointError, match="while it is read"):
        found["b"].read()
    path.unlink()
    with pytest.raises(CheckpointError, match="No such file"):
        found["a"].read()


SOUND = save({"wte": RANDOM.astype(np.float32), "bias": RANDOM[0].astype(np.float16), "mask": np.ones(4, bool)})


@QUICK
@given(
    length=st.just(len(SOUND)) | st.integers(0, len(SOUND)),
    changes=st.lists(
        st.tuples(st.integers(0, 260), st.sampled_from(b'0123456789[]{}",:-eF') | st.integers(0, 255)), max_size=4
    ),
)
def test_damaged_file_raises_only_checkpoint_errors(
    length: int, changes: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(SOUND)
    for at, byte in changes:
        content[at] = byte
    path = write(tmp_path_factory.getbasetemp(), bytes(content[:length]))
    try:
        found = read_header(path)
    except CheckpointError:
        return
    for stored in found.values():
        assert 8 <= stored.start <= stored.start + stored.nbytes <= length
        if stored.dtype in ("F64", "F32", "F16", "BF16"):
            assert stored.read().shape == stored.shape
