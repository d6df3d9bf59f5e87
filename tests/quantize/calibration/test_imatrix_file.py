"""Importance matrix files: exact round trips, llama.cpp's format, and broken files refused."""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.core.errors import GGUFError, ModelNotFoundError, OutputError, UsageError
from dgpt2_quant.core.gguf_file import EncodedValue, ValueType, read_header
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix, Statistics, merged, read_importance
from dgpt2_quant.quantize.convert import convert

from ...checkpoints import make_checkpoint
from ...runtime.gguf_edit import rewrite

Vector = npt.NDArray[np.float32]
UP, HEAD = "blk.0.ffn_up.weight", "token_embd.weight"


def statistics(seed: int = 0, columns: int = 12, count: float = 97.0, sums: bool = True) -> Statistics:
    random = np.random.default_rng(seed)
    squares = random.gamma(0.5, 100, columns).astype(np.float32)
    return Statistics(squares, random.normal(0, 9, columns).astype(np.float32) if sums else None, count)


def matrix(**changed: Any) -> ImportanceMatrix:
    fields: dict[str, Any] = {
        "entries": {HEAD: statistics(1), UP: statistics(2, columns=7)},
        "datasets": ["a.txt", "bé"],
        "chunk_count": 3,
        "chunk_size": 32,
    }
    return ImportanceMatrix(**fields | changed)


def assert_equal(one: ImportanceMatrix, other: ImportanceMatrix) -> None:
    assert (list(one.datasets), one.chunk_count, one.chunk_size) == (
        list(other.datasets), other.chunk_count, other.chunk_size,
    )  # fmt: skip
    assert one.entries.keys() == other.entries.keys()
    for name, entry in one.entries.items():
        assert entry.count == other.entries[name].count
        assert np.array_equal(entry.sum_squares, other.entries[name].sum_squares)
        sums = other.entries[name].sums
        assert entry.sums is sums is None or np.array_equal(entry.sums, sums)


@pytest.mark.parametrize("sums", [True, False], ids=["with sums", "without sums"])
@pytest.mark.parametrize("count", [0.0, 1.0, 97.0, 2.0**24, 2.0**40])
def test_round_trip_is_exact(count: float, sums: bool, tmp_path: Path) -> None:
    tiny = np.array([0, 1e-45, 1e-38, 1, 3e38], np.float32)
    written = matrix(entries={HEAD: statistics(count=count, sums=sums), "x": Statistics(tiny, -tiny, count)})
    written.write(tmp_path / "it.gguf")
    found = read_importance(tmp_path / "it.gguf")
    assert_equal(found, written)
    assert found.sha256 == written.sha256 == hashlib.sha256((tmp_path / "it.gguf").read_bytes()).hexdigest()


def test_file_format_of_llama_cpp(tmp_path: Path) -> None:
    written = matrix()
    written.write(tmp_path / "it.gguf")
    reader = gguf.GGUFReader(tmp_path / "it.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert fields == {
        "general.type": "imatrix",
        "imatrix.datasets": ["a.txt", "bé"],
        "imatrix.chunk_count": 3,
        "imatrix.chunk_size": 32,
    }
    for key in ("imatrix.chunk_count", "imatrix.chunk_size"):
        assert reader.fields[key].types == [gguf.GGUFValueType.UINT32]
    assert {tensor.tensor_type for tensor in reader.tensors} == {gguf.GGMLQuantizationType.F32}
    found = {tensor.name: np.asarray(tensor.data) for tensor in reader.tensors}
    assert found.keys() == {f"{name}.{kind}" for name in (HEAD, UP) for kind in ("in_sum2", "in_sum", "counts")}
    for name, entry in written.entries.items():
        assert np.array_equal(found[f"{name}.in_sum2"], entry.sum_squares)
        assert np.array_equal(found[f"{name}.in_sum"], entry.sums)  # type: ignore[arg-type]
        assert found[f"{name}.counts"].tolist() == [entry.count]


def llama_imatrix_file(path: Path, entries: Mapping[str, tuple[Vector, float]], **changed: Any) -> Path:
    """In the format of tools/imatrix/imatrix.cpp: two dimensions (outermost first), and no sums of x."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()  # no architecture
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki.train.raw"])
    writer.add_uint32("imatrix.chunk_count", 5)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (squares, count) in entries.items():
        writer.add_tensor(f"{name}.in_sum2", squares.reshape(1, -1))
        writer.add_tensor(f"{name}.counts", np.array([[count]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_reads_a_file_of_llama_imatrix(tmp_path: Path) -> None:
    entries = {HEAD: (statistics(1).sum_squares, 2560.0), UP: (statistics(2, columns=7).sum_squares, 2560.0)}
    found = read_importance(llama_imatrix_file(tmp_path / "theirs.gguf", entries))
    assert read_header(tmp_path / "theirs.gguf").tensors[f"{UP}.in_sum2"].shape == (1, 7)
    expected = {name: Statistics(squares, None, count) for name, (squares, count) in entries.items()}
    assert_equal(found, ImportanceMatrix(expected, ["wiki.train.raw"], 5, 512))
    assert found.entries[UP].mean is None


def test_mean_squares_as_in_llama_quantize() -> None:
    entry = statistics(count=97.0, columns=1000)
    assert entry.mean_squares.dtype == np.float32
    assert entry.mean_squares.tolist() == [float(value / np.float32(97)) for value in entry.sum_squares]
    assert entry.sums is not None
    assert np.array_equal(entry.mean, entry.sums / np.float32(97))  # type: ignore[arg-type]


def test_equal_weights_without_tokens() -> None:
    entry = statistics(count=0.0)
    assert entry.mean_squares.tolist() == [1.0] * 12
    assert entry.mean_squares.dtype == np.float32
    assert entry.mean is None


def test_merging_adds_sums() -> None:
    one = matrix()
    other = ImportanceMatrix({HEAD: statistics(5, count=11.0), "new": statistics(6)}, ["c"], 2, 64)
    both = merged([one, other])
    mine, theirs = one.entries[HEAD], other.entries[HEAD]
    assert np.array_equal(both.entries[HEAD].sum_squares, mine.sum_squares + theirs.sum_squares)
    assert np.array_equal(both.entries[HEAD].sums, mine.sums + theirs.sums)  # type: ignore[operator, arg-type]
    assert both.entries[HEAD].count == 108.0
    assert both.entries[UP] is one.entries[UP]
    assert both.entries["new"] is other.entries["new"]
    assert (both.datasets, both.chunk_count, both.chunk_size) == (["a.txt", "bé", "c"], 3 + 2 * 2, 32)
    assert one.entries[HEAD].count == 97.0  # unchanged


def test_merging_a_single_matrix() -> None:
    assert_equal(merged([matrix()]), matrix())


def test_merging_with_llama_imatrix_drops_sums() -> None:
    both = merged([matrix(), matrix(entries={HEAD: statistics(3, sums=False)})])
    assert both.entries[HEAD].sums is None
    assert both.entries[UP].sums is not None


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({UP: statistics(columns=8)}, f"has 8 columns for {UP}, the model 7"),
        ({HEAD: statistics(), UP: statistics(columns=6)}, f"has 6 columns for {UP}"),
        ({"blk.0.ffn_gate.weight": statistics()}, "no entry for any matrix .*ffn_gate"),
    ],
)
def test_merging_different_models_is_refused(entries: dict[str, Statistics], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        merged([matrix(), matrix(entries=entries)])


def test_bytes_do_not_depend_on_order() -> None:
    turned = matrix(entries=dict(reversed(matrix().entries.items())))
    assert list(turned.entries) != list(matrix().entries)
    assert matrix().encode() == turned.encode()
    assert matrix().sha256 == turned.sha256
    others = [matrix(datasets=["a.txt"]), matrix(chunk_count=4), matrix(entries={HEAD: statistics(1, count=98.0)})]
    assert len({m.sha256 for m in [matrix(), *others]}) == 4


class TestTokens:
    """The text's tokens in the file."""

    whole = matrix(chunk_count=3, chunk_size=4, tokens=[5, 0, 7, 50256, 1, 2, 3, 4, 9, 9, 9, 9])

    def test_round_trip(self, tmp_path: Path) -> None:
        self.whole.write(tmp_path / "it.gguf")
        found = read_importance(tmp_path / "it.gguf")
        assert list(found.tokens) == self.whole.tokens
        assert [list(chunk) for chunk in found.chunks] == [[5, 0, 7, 50256], [1, 2, 3, 4], [9, 9, 9, 9]]
        assert_equal(found, self.whole)
        assert found.sha256 == self.whole.sha256 != matrix(chunk_count=3, chunk_size=4).sha256

    def test_no_tokens(self, tmp_path: Path) -> None:
        matrix().write(tmp_path / "it.gguf")
        found = read_importance(tmp_path / "it.gguf")
        assert (list(found.tokens), found.chunks) == ([], [])
        assert not [key for key in read_header(tmp_path / "it.gguf").metadata if "tokens" in key]

    def test_merging_concatenates_tokens(self) -> None:
        other = matrix(chunk_count=1, chunk_size=4, tokens=[1, 1, 1, 1])
        both = merged([self.whole, other])
        assert both.tokens == [*self.whole.tokens, 1, 1, 1, 1]
        assert (both.chunk_count, len(both.chunks)) == (4, 4)
        assert list(merged([self.whole]).tokens) == self.whole.tokens

    @pytest.mark.parametrize(
        "other",
        [
            matrix(chunk_count=3, chunk_size=4),
            matrix(chunk_count=2, chunk_size=2, tokens=[1, 2, 3, 4]),
        ],
        ids=["without any", "in other chunks"],
    )
    def test_merging_without_tokens_drops_them(self, other: ImportanceMatrix, tmp_path: Path) -> None:
        for order in ([self.whole, other], [other, self.whole]):
            both = merged(order)
            assert list(both.tokens) == []
            both.write(tmp_path / "it.gguf", overwrite=True)
            assert_equal(read_importance(tmp_path / "it.gguf"), both)

    KEY = "dgpt2_quant.imatrix.tokens"

    @pytest.mark.parametrize(
        ("keys", "why"),
        [
            ({KEY: [1, 2, 3]}, "it has 3 tokens for 2 chunks of 8"),
            ({KEY: [1] * 17}, "it has 17 tokens for 2 chunks of 8"),
            ({KEY: [1] * 8, "imatrix.chunk_size": 0}, "it has 8 tokens for 2 chunks of 0"),
            ({KEY: [1] * 8, "imatrix.chunk_count": 2**32 - 1}, "it has 8 tokens for 4294967295 chunks of 8"),
            ({KEY: [-1] * 16}, "tokens are not token ids"),
            ({KEY: [0.5] * 16}, "tokens are not token ids"),
            ({KEY: [True] * 16}, "tokens are not token ids"),
            ({KEY: ["a"] * 16}, "tokens are not token ids"),
            ({KEY: "aaaaaaaaaaaaaaaa"}, "tokens are not token ids"),
            ({KEY: 16}, "tokens are not token ids"),
        ],
    )
    def test_invalid_tokens_are_refused(self, keys: dict[str, Any], why: str, tmp_path: Path) -> None:
        with pytest.raises(GGUFError, match=why):
            read_importance(write(tmp_path / "it.gguf", keys=keys))

    def test_token_beyond_int32_is_refused(self, tmp_path: Path) -> None:
        self.whole.write(tmp_path / "it.gguf")
        large = EncodedValue(struct.pack("<IIQ16Q", ValueType.ARRAY, ValueType.UINT64, 16, *[2**63] * 16))
        with pytest.raises(GGUFError, match="tokens are not token ids"):
            read_importance(rewrite(tmp_path / "it.gguf", tmp_path / "odd.gguf", metadata={self.KEY: large}))

    def test_token_count_must_match(self, tmp_path: Path) -> None:
        assert list(read_importance(write(tmp_path / "it.gguf", keys={self.KEY: [3] * 16})).tokens) == [3] * 16

    def test_check_text(self) -> None:
        self.whole.check_text(50257, 4)
        matrix().check_text(1, 1)  # no tokens
        with pytest.raises(UsageError, match="contains the token 50256, but the model has 50256 tokens"):
            self.whole.check_text(50256, 4)
        with pytest.raises(UsageError, match="chunks of 4 tokens, but the model has 3 positions"):
            self.whole.check_text(50257, 3)


def test_existing_file_is_not_replaced(tmp_path: Path) -> None:
    matrix().write(tmp_path / "it.gguf")
    with pytest.raises(OutputError, match="already exists"):
        matrix(chunk_count=9).write(tmp_path / "it.gguf")
    matrix(chunk_count=9).write(tmp_path / "it.gguf", overwrite=True)
    assert read_importance(tmp_path / "it.gguf").chunk_count == 9


ARRAYS: dict[str, npt.NDArray[Any]] = {
    f"{UP}.in_sum2": np.array([1, 2, 3], np.float32),
    f"{UP}.in_sum": np.array([-1, 2, 0], np.float32),
    f"{UP}.counts": np.array([4], np.float32),
}
KEYS = {"general.type": "imatrix", "imatrix.datasets": ["text"], "imatrix.chunk_count": 2, "imatrix.chunk_size": 8}


def write(
    path: Path, arrays: Mapping[str, npt.NDArray[Any] | None] | None = None, keys: Mapping[str, Any] | None = None
) -> Path:
    """Writes a valid file with gguf-py, with some tensors and keys replaced, or removed by None."""
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()
    for key, value in {**KEYS, **(keys or {})}.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, int):
            (writer.add_uint64 if value >= 2**32 else writer.add_int64)(key, value)
    for name, data in {**ARRAYS, **(arrays or {})}.items():
        if data is not None:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_correct_file_is_accepted(tmp_path: Path) -> None:
    found = read_importance(write(tmp_path / "it.gguf"))
    assert found.entries[UP].mean_squares.tolist() == [0.25, 0.5, 0.75]
    assert (found.datasets, found.chunk_count, found.chunk_size) == (["text"], 2, 8)


def test_unknown_tensors_are_ignored(tmp_path: Path) -> None:
    more: dict[str, npt.NDArray[Any] | None] = {f"{UP}.in_max": np.ones(3, np.float16), "in": np.ones(1, np.float32)}
    assert_equal(read_importance(write(tmp_path / "it.gguf", more)), read_importance(write(tmp_path / "plain.gguf")))


@pytest.mark.parametrize(
    ("arrays", "why"),
    [
        ({f"{UP}.counts": None}, "needs both in_sum2 and counts"),
        ({f"{UP}.in_sum2": None}, "needs both in_sum2 and counts"),
        (dict.fromkeys(ARRAYS), "it has no statistics"),
        ({f"{UP}.in_sum2": np.ones(3, np.float16)}, "in_sum2 is F16, not F32"),
        ({f"{UP}.counts": np.array([4], np.float16)}, "counts is F16, not F32"),
        ({f"{UP}.in_sum2": np.array([1, np.nan, 3], np.float32)}, "in_sum2 has a value that is negative or not finite"),
        ({f"{UP}.in_sum2": np.array([1, np.inf, 3], np.float32)}, "in_sum2 has a value that is negative or not finite"),
        ({f"{UP}.in_sum2": np.array([1, -1, 3], np.float32)}, "in_sum2 has a value that is negative or not finite"),
        ({f"{UP}.in_sum": np.array([1, np.nan, 3], np.float32)}, "in_sum has a value that is .*not finite"),
        ({f"{UP}.counts": np.array([-4], np.float32)}, "counts has a value that is negative"),
        ({f"{UP}.counts": np.array([np.nan], np.float32)}, "counts has a value that is negative or not finite"),
        ({f"{UP}.counts": np.array([4, 4], np.float32)}, "has 2 counts: a mixture of experts"),
        ({f"{UP}.in_sum2": np.ones((2, 3), np.float32)}, "has 6 squares and 3 sums"),
        ({f"{UP}.in_sum": np.ones(2, np.float32)}, "has 3 squares and 2 sums"),
    ],
)
def test_invalid_statistics_are_refused(arrays: dict[str, npt.NDArray[Any] | None], why: str, tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=why) as caught:
        read_importance(write(tmp_path / "it.gguf", arrays))
    assert str(tmp_path / "it.gguf") in caught.value.message
    assert "dgpt2-quant imatrix" in caught.value.hint


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ({"general.type": "model"}, "is not an importance matrix: its general.type is 'model'"),
        ({"general.type": None}, "is not an importance matrix: its general.type is None"),
        ({"imatrix.datasets": None}, "its imatrix.datasets are None"),
        ({"imatrix.datasets": "text"}, "its imatrix.datasets are 'text'"),
        ({"imatrix.datasets": [1, 2]}, r"its imatrix.datasets are \[1, 2\]"),
        ({"imatrix.chunk_count": None}, "chunk_count and chunk_size are None and 8"),
        ({"imatrix.chunk_count": -1}, "chunk_count and chunk_size are -1 and 8"),
        ({"imatrix.chunk_count": 2.0}, "chunk_count and chunk_size are 2.0 and 8"),
        ({"imatrix.chunk_count": "2"}, "chunk_count and chunk_size are '2' and 8"),
        ({"imatrix.chunk_count": 2**63}, "chunk_count and chunk_size are 9223372036854775808 and 8"),
        ({"imatrix.chunk_size": None}, "chunk_count and chunk_size are 2 and None"),
        ({"imatrix.chunk_size": 2**32}, "chunk_count and chunk_size are 2 and 4294967296"),
    ],
)
def test_invalid_metadata_are_refused(keys: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match=why):
        read_importance(write(tmp_path / "it.gguf", keys=keys))


def old_format(entries: Sequence[tuple[str, Vector]]) -> bytes:
    """The format of llama-imatrix until 2025: IMatrixCollector::save_imatrix_legacy."""
    data = struct.pack("<i", len(entries))
    for name, values in entries:
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 5, len(values)) + values.tobytes()
    return data + struct.pack("<ii", 5, 4) + b"text"


@pytest.mark.parametrize("data", [old_format([(UP, statistics().sum_squares)]), b"", b"GG", b"GGML" + bytes(99)])
def test_old_dat_format_is_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "old.dat").write_bytes(data)
    with pytest.raises(GGUFError, match=r"old\.dat is not a GGUF file; llama-imatrix's old .dat format") as caught:
        read_importance(tmp_path / "old.dat")
    assert "llama-imatrix -m" in caught.value.hint


@pytest.mark.parametrize("name", ["missing.gguf", "folder", "x" * 300, "a\0b"])
def test_missing_file_is_reported(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ModelNotFoundError, match="there is no file") as caught:
        read_importance(tmp_path / name)
    assert caught.value.hint == "Create one with `dgpt2-quant imatrix`."


def test_model_file_is_refused(storybook_files: dict[str, Path]) -> None:
    with pytest.raises(GGUFError, match=r"is not an importance matrix: its general\.type is 'model'") as caught:
        read_importance(storybook_files["Q4_0"])
    assert "dgpt2-quant imatrix" in caught.value.hint


def test_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "it.gguf")
    data, header = path.read_bytes(), read_header(path)
    end = max(tensor.start + tensor.nbytes for tensor in header.tensors.values())
    for length in range(end):
        path.write_bytes(data[:length])
        with pytest.raises(GGUFError):
            read_importance(path)
    path.write_bytes(data[:end])  # the rest is padding
    assert read_importance(path).entries.keys() == {UP}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"token_embd.weight": statistics(columns=32)}, "32 columns for token_embd.weight, the model 64"),
        (
            {"blk.0.ffn_gate.weight": statistics(columns=64)},
            "no entry for any matrix of the model, only blk.0.ffn_gate",
        ),
    ],
    ids=["another width", "another architecture"],
)
def test_matrix_of_another_model_is_refused_first(entries: dict[str, Statistics], message: str, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", layers=1)
    matrix(entries=entries).write(tmp_path / "imatrix.gguf")
    with pytest.raises(UsageError, match=message) as caught:
        convert(str(checkpoint), type=["Q4_0", "F16"], output=tmp_path / "out", imatrix=tmp_path / "imatrix.gguf")
    assert "collect one with `dgpt2-quant imatrix`" in caught.value.hint
    assert not (tmp_path / "out").exists()
