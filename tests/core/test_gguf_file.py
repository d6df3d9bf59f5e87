"""The GGUF header: bytes equal to gguf-py's writer, files read by its reader, wrong headers refused."""

import struct
import time
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from dgpt2_quant.core.errors import GGUFError
from dgpt2_quant.core.gguf_file import GGUFHeader, encode_header, padded, read_header
from dgpt2_quant.core.quant_types import TensorType
from hypothesis import given, settings
from hypothesis import strategies as st

QUICK = settings(max_examples=150, deadline=None, derandomize=True, database=None)

METADATA: dict[str, Any] = {
    "general.architecture": "gpt2",
    "general.name": "Ünï",
    "gpt2.block_count": 2,
    "gpt2.attention.layer_norm_epsilon": 1e-5,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.tokens": ["a", "Ġb", "", "<|endoftext|>"],
    "tokenizer.ggml.token_type": [1, 1, 5, 3],
    "general.total": 5_000_000_000,
}
TENSORS: dict[str, tuple[tuple[int, ...], TensorType]] = {
    "norm.weight": ((3,), TensorType.F32),
    "position.weight": ((5, 3), TensorType.F16),
    "embedding.weight": ((4, 64), TensorType.Q8_0),
}


def entry(
    name: bytes = b"t",
    shape: tuple[int, ...] = (4,),
    tensor_type: int = 0,
    offset: int = 0,
    dimensions: int | None = None,
) -> bytes:
    count = len(shape) if dimensions is None else dimensions
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", count, *reversed(shape), tensor_type, offset)


def text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def file_of(keys: list[bytes], tensors: list[bytes], data: int = 64, head: bytes = b"GGUF\3\0\0\0") -> bytes:
    content = head + struct.pack("<QQ", len(tensors), len(keys)) + b"".join(keys + tensors)
    return content.ljust(padded(len(content)), b"\0") + bytes(data)


NUMBER = struct.pack("<I", 7)
SOUND = file_of([key(b"k", 4, NUMBER)], [entry(b"a", (4,)), entry(b"b", (2, 32), 8, 32)], data=32 + 68)
LIES: dict[str, tuple[bytes, str]] = {
    "nothing at all": (b"", "begins with"),
    "another format": (b"PK\3\4" + bytes(100), "begins with"),
    "version 2": (file_of([], [], head=b"GGUF\2\0\0\0"), "version is 2"),
    "big-endian": (b"GGUF\0\0\0\3" + bytes(100), "is big-endian"),
    "too many tensors": (b"GGUF" + struct.pack("<IQQ", 3, 2**63, 0) + bytes(64), "claims 9223372036854775808 tensors"),
    "too many keys": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40) + bytes(64), "and 1099511627776 keys"),
    "many keys": (b"GGUF" + struct.pack("<IQQ", 3, 0, 5_000) + bytes(64), "and 5000 keys"),
    "many texts": (file_of([key(b"k", 9, struct.pack("<IQ", 8, 3 << 20) + bytes(24 << 20))], []), "3145728 values"),
    "fewer keys than claimed": (b"GGUF" + struct.pack("<IQQ", 3, 0, 4_000), "inside the header"),
    "a long string": (file_of([struct.pack("<Q", 2**62) + b"k"], []), "claims 4611686018427387904 bytes"),
    "a key that is not UTF-8": (file_of([key(b"\xff\xfe", 4, NUMBER)], []), "not UTF-8"),
    "a key twice": (file_of([key(b"k", 4, NUMBER)] * 2, []), "'k' occurs twice"),
    "an unknown value type": (file_of([key(b"k", 13, NUMBER)], []), "unknown type 13"),
    "an array of arrays": (file_of([key(b"k", 9, struct.pack("<IQ", 9, 1))], []), "array of arrays"),
    "a long array of numbers": (file_of([key(b"k", 9, struct.pack("<IQ", 4, 2**60))], []), "values"),
    "a long array of strings": (file_of([key(b"k", 9, struct.pack("<IQ", 8, 2**61))], []), "values"),
    "an array of long strings": (
        file_of([key(b"k", 9, struct.pack("<IQQ", 8, 2, 2**63))], []),
        "after the end of the header",
    ),
    "an array of a long string": (
        file_of([key(b"k", 9, struct.pack("<IQQ", 8, 1, 2**63))], []),
        "after the end of the header",
    ),
    "another alignment": (file_of([key(b"general.alignment", 4, NUMBER)], []), "alignment is 7"),
    "a tensor twice": (file_of([], [entry(b"a"), entry(b"a", offset=32)]), "'a' occurs twice"),
    "an unknown tensor type": (file_of([], [entry(tensor_type=4)]), "type 4"),
    "no dimensions": (file_of([], [entry(shape=())]), "0 dimensions"),
    "many dimensions": (file_of([], [entry(dimensions=2**32 - 1)]), "4294967295 dimensions"),
    "an empty dimension": (file_of([], [entry(shape=(0, 4))]), "shape [0, 4]"),
    "a shape beyond 64 bits": (file_of([], [entry(shape=(2**63, 2**63))]), "shape"),
    "half a block": (file_of([], [entry(shape=(1, 48), tensor_type=8)]), "shape [1, 48] in Q8_0"),
    "a tensor without a name": (file_of([], [entry(b"")]), "name"),
    "a long tensor name": (file_of([], [entry(b"n" * 64)]), "name"),
    "tensors that overlap": (file_of([], [entry(b"a"), entry(b"b", offset=0)]), "'b' begins at"),
    "a gap between tensors": (file_of([], [entry(b"a"), entry(b"b", offset=64)]), "'b' begins at"),
    "a tensor past the end": (file_of([], [entry(b"a", (17,))]), "'a' ends at"),
    "an offset that wraps around": (file_of([], [entry(b"a"), entry(b"b", offset=2**64 - 32)]), "'b' begins at"),
}


def write(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "it.gguf"
    path.write_bytes(content)
    return path


def test_bytes_equal_those_of_gguf_py(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    data: dict[str, np.ndarray[Any, Any]] = {}
    for name, (shape, tensor_type) in TENSORS.items():
        values = random.normal(size=shape).astype(np.float32)
        data[name] = gguf.quantize(values, gguf.GGMLQuantizationType(tensor_type))

    writer = gguf.GGUFWriter(tmp_path / "theirs.gguf", arch="gpt2")
    writer.add_string("general.name", "Ünï")
    writer.add_uint32("gpt2.block_count", 2)
    writer.add_float32("gpt2.attention.layer_norm_epsilon", 1e-5)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_array("tokenizer.ggml.tokens", METADATA["tokenizer.ggml.tokens"])
    writer.add_array("tokenizer.ggml.token_type", METADATA["tokenizer.ggml.token_type"])
    writer.add_uint64("general.total", 5_000_000_000)
    for name, (_, tensor_type) in TENSORS.items():
        writer.add_tensor(name, data[name], raw_dtype=gguf.GGMLQuantizationType(tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    ours = encode_header(METADATA, TENSORS)
    for array in data.values():
        ours += array.tobytes().ljust(padded(array.nbytes), b"\0")
    assert ours == (tmp_path / "theirs.gguf").read_bytes()


@pytest.mark.parametrize("level", ["F32", "Q8_0", "Q5_K_M"])
def test_reader_agrees_with_gguf_py(level: str, storybook_files: dict[str, Path]) -> None:
    ours, theirs = read_header(storybook_files[level]), gguf.GGUFReader(storybook_files[level])
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert list(ours.metadata) == list(fields)
    tables = [name for name, value in ours.metadata.items() if isinstance(value, list)]
    assert tables == ["tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"]
    for name, field in fields.items():
        assert ours.metadata[name] == field.contents()
    assert [(t.name, t.shape, t.type, t.start, t.nbytes) for t in ours.tensors.values()] == [
        (t.name, tuple(reversed(t.shape.tolist())), t.tensor_type, t.data_offset, t.n_bytes) for t in theirs.tensors
    ]
    assert ours.parameters == sum(t.n_elements for t in theirs.tensors)
    assert ours.quant_type == level


def test_skipped_arrays_give_their_lengths(storybook_files: dict[str, Path]) -> None:
    whole, quick = (read_header(storybook_files["Q8_0"], arrays=arrays) for arrays in (True, False))
    lengths = {name: len(value) if isinstance(value, list) else value for name, value in whole.metadata.items()}
    assert quick == GGUFHeader(whole.path, whole.file_bytes, lengths, whole.encoded, whole.tensors)


numbers = st.integers(0, 2**64 - 1)
floats = st.floats(width=32, allow_nan=False)
strings = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
tables = st.lists(strings, min_size=1, max_size=9) | st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=9)
keys = strings.filter(lambda name: name and "\0" not in name and name != "general.alignment")
values = strings | st.booleans() | numbers | floats | tables
shapes = st.lists(st.integers(1, 5), max_size=3)


@QUICK
@given(
    metadata=st.dictionaries(keys, values, max_size=8),
    tensors=st.dictionaries(
        st.text("abc.01", min_size=1, max_size=9), st.tuples(shapes, st.sampled_from(TensorType)), max_size=5
    ),
)
def test_round_trip(
    metadata: dict[str, Any],
    tensors: dict[str, tuple[list[int], TensorType]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    entries = {name: ((*outer, 2 * kind.block), kind) for name, (outer, kind) in tensors.items()}
    sizes = {name: prod(shape[:-1]) * kind.row_bytes(shape[-1]) for name, (shape, kind) in entries.items()}
    head = encode_header(metadata, entries)
    path = write(tmp_path_factory.getbasetemp(), head + bytes(sum(map(padded, sizes.values()))))
    header = read_header(path)
    assert list(header.metadata.items()) == list(metadata.items())
    assert [(t.name, t.shape, t.type, t.nbytes) for t in header.tensors.values()] == [
        (name, shape, kind, sizes[name]) for name, (shape, kind) in entries.items()
    ]
    starts = [t.start for t in header.tensors.values()]
    assert all(start % 32 == 0 for start in starts)
    assert starts[:1] in ([], [len(head)])


@QUICK
@given(data=st.data())
def test_damaged_header_raises_only_gguf_errors(
    data: st.DataObject, storybook_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    sound = _shortened(storybook_files["Q4_0"])
    content = bytearray(sound[: data.draw(st.just(len(sound)) | st.integers(0, len(sound)), "length")])
    flips = st.lists(st.tuples(st.integers(0, max(0, len(content) - 1)), st.integers(0, 255)), max_size=4)
    for at, byte in data.draw(flips, "bytes"):
        if content:
            content[at] = byte
    path = write(tmp_path_factory.getbasetemp(), bytes(content))
    started = time.perf_counter()
    try:
        header = read_header(path)
    except GGUFError:
        pass
    else:
        assert all(0 < t.start < t.start + t.nbytes <= len(content) for t in header.tensors.values())
    assert time.perf_counter() - started < 1


@cache
def _shortened(path: Path) -> bytes:
    """A real file with only its first tokens and tensors, so that a random byte hits every part of the header."""
    header = read_header(path)
    metadata = {k: v[:5] if isinstance(v, list) else v for k, v in header.metadata.items()}
    tensors = {t.name: (t.shape, t.type) for t in list(header.tensors.values())[3:20] if len(t.shape) == 1}
    return encode_header(metadata, tensors) + bytes(sum(4 * 768 for _ in tensors))


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("arrays", [True, False])
def test_wrong_header_is_refused_quickly(lie: str, arrays: bool, tmp_path: Path) -> None:
    content, words = LIES[lie]
    path = write(tmp_path, content)
    started = time.perf_counter()
    with pytest.raises(GGUFError) as caught:
        read_header(path, arrays=arrays)
    assert time.perf_counter() - started < 0.5
    assert words in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_correct_header_is_accepted(tmp_path: Path) -> None:
    header = read_header(write(tmp_path, SOUND))
    assert header.metadata == {"k": 7}
    assert [(t.name, t.shape, t.type.name) for t in header.tensors.values()] == [
        ("a", (4,), "F32"),
        ("b", (2, 32), "Q8_0"),
    ]


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    for length in range(len(SOUND)):
        with pytest.raises(GGUFError):
            read_header(write(tmp_path, SOUND[:length]))


def test_missing_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="No such file"):
        read_header(tmp_path / "none.gguf")
