"""Damaged inputs: a conversion gives a valid result, or raises a `DgptQuantError`.

Each input (weights, config, tokenizer, importance matrix, GGUF file, names on the command line) is damaged at random.
The examples are the same in every run.
"""

import json
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
import pytest
from dgpt2_quant.core.errors import CheckpointError, DgptQuantError, UsageError
from dgpt2_quant.core.gguf_file import encode_header, read_header
from dgpt2_quant.core.gpt2_gguf import check_gpt2
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.core.quant_types import QUANT_TYPES, find_type
from dgpt2_quant.quantize.calibration.collect import imatrix
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix, Statistics, merged, read_importance
from dgpt2_quant.quantize.checkpoint.folder import open_checkpoint
from dgpt2_quant.quantize.checkpoint.safetensors_file import read_header as read_safetensors
from dgpt2_quant.quantize.checkpoint.tokenizer import read_tokenizer
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.recipes.tensor_types import Override, find_override
from hypothesis import given, settings
from hypothesis import strategies as st

from ...checkpoints import END_OF_TEXT, MERGES, TOKENS, fast_tokenizer, make_checkpoint, raw_safetensors, write_json

T = TypeVar("T")
FIXED = settings(deadline=None, derandomize=True, database=None)
MANY, SOME, FEW = (settings(FIXED, max_examples=count) for count in (160, 80, 40))

LONGEST = 10**4300 - 1  # the longest number that Python reads from text or writes
ODD_INTEGERS = (-1, 0, 1, 2, 3, 4, 64, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), LONGEST)
ODD_FLOATS = (0.0, -0.0, 0.5, 1.0, 1e-5, 1e-46, 1e-300, 5e-324, 1 - 1e-12, 1e39, 1e308, float("nan"), float("inf"))
ODD_TEXTS = ("", "0", "-1", "-300", "5", "gpt2", "BPE", END_OF_TEXT, "Ġt", "a", "\0", "a\0b", "\ud800", "F32", " ")
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-5, 300)
    | st.sampled_from(ODD_INTEGERS)
    | st.sampled_from(ODD_FLOATS)
    | st.floats(0, 1)
    | st.sampled_from(ODD_TEXTS)
    | st.text(max_size=6)
)
JSON: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(ODD_TEXTS), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes, front: int = 400) -> bytes:
    """Changes, inserts or removes some bytes, half of them near the beginning, and may truncate the content."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        places = st.integers(0, min(front, len(data))) | st.integers(0, len(data))
        at, new = draw(places), draw(st.binary(max_size=2) | st.sampled_from([b"0", b"9", b'"', b"[", b"}", b"-"]))
        taken = draw(st.sampled_from([len(new)] * 4 + [0, 1, 8, len(data)]))
        data[at : at + taken] = new
    return bytes(data)


@st.composite
def tampered(draw: st.DrawFn, document: Any) -> Any:
    """The JSON document with a value replaced or inserted at one place."""
    if isinstance(document, dict) and document and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(document)))
        new_key = draw(st.just(key) | st.just(key) | st.sampled_from(ODD_TEXTS))
        return {**document, new_key: draw(tampered(document[key]))}
    if isinstance(document, list) and document and draw(st.integers(0, 5)):
        at = draw(st.integers(0, len(document) - 1))
        return [*document[:at], draw(tampered(document[at])), *document[at + 1 :]]
    return draw(JSON)


@contextmanager
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)


def attempt(call: Callable[[], T]) -> T | DgptQuantError:
    """Returns the result, or the `DgptQuantError` raised."""
    try:
        return call()
    except DgptQuantError as error:
        return error


def dump(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), "ascii")  # a lone surrogate is escaped


def converted_or_refused(model: Path, *types: str) -> list[Hyperparameters]:
    """Converts, and checks the written file, or that nothing was written."""
    with folder() as output:
        files = attempt(lambda: convert(str(model), type=types, output=output / "new"))
        if isinstance(files, DgptQuantError):
            assert files.message
            assert list(output.iterdir()) == []
            return []
        assert sorted(path.name for path in (output / "new").iterdir()) == sorted(Path(f.path).name for f in files)
        headers = [read_header(Path(file.path)) for file in files]
        for header in headers:
            check_gpt2(header)
        return [Hyperparameters.from_metadata(header.metadata) for header in headers]


# --- safetensors ------------------------------------------------------------------------------------------------------


def read_soundly_or_refuse(content: bytes) -> None:
    with folder() as place:
        path = place / "model.safetensors"
        path.write_bytes(content)
        found = attempt(lambda: read_safetensors(path))
        if isinstance(found, DgptQuantError):
            assert str(path) in found.message
            return
        end = 8
        for name, stored in found.items():
            assert name == stored.name
            assert end <= stored.start <= stored.start + stored.nbytes <= len(content)
            end = stored.start + stored.nbytes
            data = attempt(stored.read)
            if isinstance(data, DgptQuantError):
                assert stored.dtype not in ("F64", "F32", "F16", "BF16")
            else:
                assert data.shape == stored.shape
                assert data.nbytes == stored.nbytes * (2 if stored.dtype == "BF16" else 1)


ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "U8": 1, "BOOL": 1, "I64": 8}
SOUND_WEIGHTS = raw_safetensors(
    {
        "__metadata__": {"format": "pt"},
        "h.0.attn.bias": {"dtype": "BOOL", "shape": [2, 2], "data_offsets": [0, 4]},
        "wte": {"dtype": "F32", "shape": [3, 5], "data_offsets": [4, 64]},
        "half": {"dtype": "F16", "shape": [4], "data_offsets": [64, 72]},
        "brain": {"dtype": "BF16", "shape": [2, 1, 2], "data_offsets": [72, 80]},
        "none": {"dtype": "F64", "shape": [0, 7], "data_offsets": [80, 80]},
    },
    bytes(80),
)


def plausible_entry(dtype: str, shape: list[int], begin: int) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "shape": shape,
        "data_offsets": [begin, min(begin + prod(shape) * ITEM_BYTES[dtype], LONGEST)],
    }


numbers = st.integers(-2, 12) | st.sampled_from(ODD_INTEGERS) | SCALARS
plausible = st.builds(
    plausible_entry,
    st.sampled_from(list(ITEM_BYTES)),
    st.lists(st.integers(0, 3) | st.sampled_from(ODD_INTEGERS[:-1]), max_size=4),
    st.integers(0, 24) | st.sampled_from((0, -4, 2**62, 2**64, LONGEST - 400)),
)
entries = (
    plausible
    | plausible.flatmap(tampered)
    | st.fixed_dictionaries(
        {
            "dtype": st.sampled_from([*ITEM_BYTES, "F8_E4M3", "F4", ""]) | SCALARS,
            "shape": st.lists(numbers, max_size=4) | st.lists(st.just(1), min_size=30, max_size=70),
            "data_offsets": st.lists(numbers, min_size=2, max_size=2) | JSON,
        }
    )
)


@MANY
@given(st.binary(max_size=200) | st.binary(max_size=60).map(raw_safetensors))
def test_random_bytes_as_weights(content: bytes) -> None:
    read_soundly_or_refuse(content)


@MANY
@given(damaged(SOUND_WEIGHTS))
def test_damaged_weight_file(content: bytes) -> None:
    read_soundly_or_refuse(content)


@MANY
@given(st.lists(st.tuples(st.sampled_from("abc") | st.text(max_size=3), entries), max_size=4), st.integers(0, 80))
def test_random_safetensors_header(pairs: list[tuple[str, Any]], data_bytes: int) -> None:
    text = ",".join(f"{json.dumps(name)}:{json.dumps(entry)}" for name, entry in pairs)  # a name may come twice
    read_soundly_or_refuse(raw_safetensors(f"{{{text}}}".encode(), bytes(data_bytes)))


@pytest.mark.parametrize("end", [2**64, 10**400, LONGEST], ids=["64 bits", "400 digits", "4300 digits"])
def test_huge_offsets_are_refused(end: int) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [end - 4, end]}
    read_soundly_or_refuse(raw_safetensors({"a": entry}, bytes(4)))


def test_wrong_sizes_do_not_allocate_memory(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    claims = ((1 << 40, [1 << 40]), (1 << 44, [1 << 41]), (0, [0, 1 << 46]))
    lies = [raw_safetensors({"a": {"dtype": "F64", "shape": s, "data_offsets": [0, e]}}) for e, s in claims]
    lies += [length.to_bytes(8, "little") + b"{}" for length in (1 << 30, 99_999_999, (1 << 64) - 1)]
    tracemalloc.start()
    try:
        for lie in lies:
            path.write_bytes(lie)
            try:
                for stored in read_safetensors(path).values():
                    stored.read()
            except CheckpointError:
                pass
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


# --- config.json ------------------------------------------------------------------------------------------------------

CONFIG_KEYS = (
    "model_type", "activation_function", "add_cross_attention", "n_embd", "n_head", "n_layer", "n_inner", "n_positions",
    "n_ctx", "vocab_size", "layer_norm_epsilon", "tie_word_embeddings", "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx", "bos_token_id", "eos_token_id",
)  # fmt: skip
SIZES = Hyperparameters(2, 64, 4, 256, 64, len(TOKENS), 1e-5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose files tests may change; `changed` restores them."""
    return make_checkpoint(tmp_path_factory.mktemp("hostile") / "tiny", layers=SIZES.layers)


@contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    try:
        yield
    finally:
        path.unlink() if before is None else path.write_bytes(before)


@SOME
@given(st.dictionaries(st.sampled_from(CONFIG_KEYS), JSON, min_size=1, max_size=3))
def test_random_config(tiny: Path, values: dict[str, Any]) -> None:
    config = json.loads((tiny / "config.json").read_bytes()) | values
    with changed(tiny / "config.json", json.dumps(config).encode()):
        for sizes in converted_or_refused(tiny, "f32"):
            assert (sizes.layers, sizes.width, sizes.inner, sizes.context, sizes.vocabulary) == (
                (SIZES.layers, SIZES.width, SIZES.inner, SIZES.context, SIZES.vocabulary)
            )
            assert sizes.width % sizes.heads == 0


@pytest.mark.parametrize("epsilon", [1e-46, 1e-300, 5e-324, 1 - 1e-12])
def test_epsilon_of_zero_in_float32_is_refused(epsilon: float, tmp_path: Path) -> None:
    converted_or_refused(make_checkpoint(tmp_path / "model", config={"layer_norm_epsilon": epsilon}), "f32")


@pytest.mark.parametrize(
    "sizes",
    [{"inner": (1 << 18) + 1}, {"context": (1 << 20) + 1}, {"width": 1026, "heads": 1026, "inner": 2}],
    ids=["inner", "context", "heads"],
)
def test_too_large_model_is_refused(sizes: dict[str, int], tmp_path: Path) -> None:
    small: dict[str, Any] = {"layers": 1, "width": 2, "heads": 1, "inner": 2, "context": 2, "dtype": "F16"}
    converted_or_refused(make_checkpoint(tmp_path / "model", **(small | sizes)), "f16")


# --- tokenizer --------------------------------------------------------------------------------------------------------

VOCABULARY = {token: number for number, token in enumerate(TOKENS)}
SETTINGS = {
    "add_prefix_space": False,
    "bos_token": {"content": END_OF_TEXT},
    "eos_token": END_OF_TEXT,
    "added_tokens_decoder": {
        str(len(TOKENS) - 1): {"content": END_OF_TEXT, "special": True},
        str(len(TOKENS)): {"content": "<pad>", "special": False},
    },
}
merge_lines = st.lists(
    st.sampled_from([*MERGES, "a b", "a", "a  b", "#version: 0.2", " ", "\ufeffa b"]) | st.text(max_size=5), max_size=4
)
# the correct file is most likely for each, so that damage in another file is reached
tokenizer_files = st.fixed_dictionaries(
    {},
    optional={
        "vocab.json": st.just(VOCABULARY) | tampered(VOCABULARY),
        "merges.txt": st.just(MERGES) | merge_lines,
        "tokenizer.json": st.just(fast_tokenizer()) | tampered(fast_tokenizer()) | tampered(fast_tokenizer()),
        "tokenizer_config.json": st.just(SETTINGS) | tampered(SETTINGS) | tampered(SETTINGS),
        "added_tokens.json": st.just({"<pad>": len(TOKENS)}) | tampered({"<pad>": len(TOKENS)}),
    },
)


def read_tokens_or_refuse(files: dict[str, Any], rows: int) -> None:
    with folder() as place:
        for name, content in files.items():
            if name == "merges.txt":
                (place / name).write_text("\n".join(content), "utf-8", errors="surrogatepass")
            else:
                dump(place / name, content)
        tokenizer = attempt(lambda: read_tokenizer(place, {}, rows))
    if isinstance(tokenizer, DgptQuantError):
        assert tokenizer.message
        return
    assert len(tokenizer.tokens) == len(tokenizer.types) == rows
    assert all(isinstance(token, str) and token.encode("utf-8") is not None for token in tokenizer.tokens)
    assert len(set(tokenizer.tokens)) == rows
    assert tokenizer.merges
    assert all(isinstance(merge, str) and merge.encode("utf-8") is not None for merge in tokenizer.merges)
    assert 0 <= tokenizer.bos < rows
    assert 0 <= tokenizer.eos < rows


@MANY
@given(tokenizer_files, st.sampled_from([len(TOKENS)] * 3 + [len(TOKENS) + 4, len(TOKENS) - 2, 1]))
def test_random_vocab_and_merges(files: dict[str, Any], rows: int) -> None:
    read_tokens_or_refuse(files, rows)


@SOME
@given(tampered(SETTINGS), st.sampled_from([len(TOKENS), len(TOKENS) + 4, len(TOKENS) - 2]))
def test_random_tokenizer_config(content: Any, rows: int) -> None:
    read_tokens_or_refuse({"vocab.json": VOCABULARY, "merges.txt": MERGES, "tokenizer_config.json": content}, rows)


@SOME
@given(tampered(fast_tokenizer()), st.sampled_from([len(TOKENS), len(TOKENS) + 4, len(TOKENS) - 2]))
def test_random_tokenizer_json(content: Any, rows: int) -> None:
    read_tokens_or_refuse({"tokenizer.json": content}, rows)


@pytest.mark.parametrize(
    "decoder",
    [{"-1": {"content": "<pad>"}}, {"-300": {"content": "<pad>"}}, {"262": {"content": 5}}, {"262": {"content": None}}],
)
def test_added_token_needs_text_and_id(decoder: dict[str, Any], tmp_path: Path) -> None:
    dump(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": decoder})
    dump(tmp_path / "tokenizer.json", fast_tokenizer())
    with pytest.raises(CheckpointError, match="added_tokens_decoder"):
        read_tokenizer(tmp_path, {}, len(TOKENS) + 4)


@pytest.mark.parametrize("merges", ["abc", ["a"], ["a b c"], [["a", "b", "c"]], [["a"]], [[]], {"a b": 1}])
def test_merge_needs_two_tokens(merges: Any, tmp_path: Path) -> None:
    content = fast_tokenizer()
    content["model"]["merges"] = merges
    write_json(tmp_path / "tokenizer.json", content)
    with pytest.raises(CheckpointError):
        read_tokenizer(tmp_path, {}, len(TOKENS))


def test_vocabulary_without_merges_is_refused(tmp_path: Path) -> None:
    """Merges of tokens without a row are dropped: here all of them."""
    config = {"bos_token_id": 0, "eos_token_id": 0}
    converted_or_refused(make_checkpoint(tmp_path / "model", vocabulary=256, config=config), "f32")


@pytest.mark.parametrize("vocabulary", [{}, {END_OF_TEXT: 0}, {"no": 0, "such": 1}])
def test_vocabulary_without_bytes_is_refused(vocabulary: dict[str, int], tmp_path: Path) -> None:
    """No merge could ever apply: every text would have no tokens."""
    model = make_checkpoint(tmp_path / "model")
    dump(model / "vocab.json", vocabulary)
    with pytest.raises(CheckpointError):
        convert(str(model), type="f32", output=tmp_path / "out")


@pytest.mark.parametrize("texts", [("x\0y", "x\0z"), ("a\0", "b\0b"), ("", "[EMPTY_262]")])
def test_tokens_equal_in_llama_cpp_are_refused(texts: tuple[str, str], tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", vocabulary=len(TOKENS) + 2)
    dump(model / "vocab.json", VOCABULARY | {text: len(TOKENS) + number for number, text in enumerate(texts)})
    converted_or_refused(model, "f32")


@SOME
@given(st.data())
def test_random_shard_index(tiny_shards: Path, data: st.DataObject) -> None:
    path = tiny_shards / "model.safetensors.index.json"
    content = data.draw(tampered(json.loads(path.read_bytes())))
    with changed(path, json.dumps(content).encode()):
        try:
            checkpoint = open_checkpoint(tiny_shards)
        except CheckpointError:
            return
        assert all(stored.path.parent == tiny_shards for stored in checkpoint.tensors.values())
        converted_or_refused(tiny_shards, "f32")


@pytest.fixture(scope="module")
def tiny_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("hostile") / "shards", layers=1, shards=2)


# --- whole conversions ------------------------------------------------------------------------------------------------


@MANY
@given(st.data())
def test_damaged_checkpoint(tiny: Path, data: st.DataObject) -> None:
    names = ["config.json", "merges.txt", "vocab.json", "model.safetensors", "model.safetensors"]
    path = tiny / data.draw(st.sampled_from(names))
    with changed(path, data.draw(damaged(path.read_bytes(), front=2500))):
        converted_or_refused(tiny, "f16", "q4_0")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc has a file that even root can not read")
@pytest.mark.parametrize(
    "name", ["README.md", "config.json", "vocab.json", "merges.txt", "special_tokens_map.json", "model.safetensors"]
)
def test_unreadable_file_is_reported(name: str, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to("/proc/self/mem")
    assert converted_or_refused(model, "f32") == []
    planned = attempt(lambda: convert(str(model), type="f32", output=tmp_path, dry_run=True))
    assert isinstance(planned, DgptQuantError | list)


@pytest.fixture(scope="module")
def tiny_gguf(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    [file] = convert(str(tiny), type="f16", output=tmp_path_factory.mktemp("hostile"))
    return Path(file.path)


def head_bytes(path: Path) -> int:
    return min(tensor.start for tensor in read_header(path).tensors.values())


@MANY
@given(st.data())
def test_damaged_gguf_file(tiny_gguf: Path, data: st.DataObject) -> None:
    content = bytearray(tiny_gguf.read_bytes())
    places = st.integers(0, 900) | st.integers(0, head_bytes(tiny_gguf)) | st.integers(0, len(content) - 1)
    for at, new in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), min_size=1, max_size=3)):
        content[at] = new
    kept = data.draw(st.sampled_from([len(content)] * 4 + [len(content) - 1, len(content) // 2]))
    with folder() as place:
        path = place / "tiny.gguf"
        path.write_bytes(content[:kept])
        converted_or_refused(path, "q8_0", "f32")


@FEW
@given(st.data())
def test_gguf_value_of_another_type(tiny_gguf: Path, data: st.DataObject) -> None:
    header = read_header(tiny_gguf)
    key = data.draw(st.sampled_from(sorted(header.metadata)))
    floats = st.floats(width=32)
    texts = st.sampled_from(["", "gpt2", "a\0b"])
    value = data.draw(st.booleans() | st.integers(0, 2**64 - 1) | floats | texts | st.sampled_from([["a"], [1, 2]]))
    tensors = {tensor.name: (tensor.shape, tensor.type) for tensor in header.tensors.values()}
    content = encode_header(header.encoded | {key: value}, tensors) + tiny_gguf.read_bytes()[head_bytes(tiny_gguf) :]
    with folder() as place:
        path = place / "tiny.gguf"
        path.write_bytes(content)
        converted_or_refused(path, "q8_0")
        (place / "text.txt").write_text("the hen in the pan and the tin " * 20)
        try:
            collected = imatrix(str(path), text=place / "text.txt", output=place / "it.gguf", chunks=1)
        except DgptQuantError:
            return
        assert read_importance(place / "it.gguf").sha256 == collected.sha256


# --- importance matrices ----------------------------------------------------------------------------------------------


def importance(chunk_count: int = 3, chunk_size: int = 16, largest: float = 1e3) -> ImportanceMatrix:
    columns = np.linspace(0, largest, 64, dtype=np.float32)
    names = ["token_embd.weight", "blk.0.attn_qkv.weight", "blk.1.ffn_up.weight"]
    return ImportanceMatrix(
        {name: Statistics(columns, -columns, 48.0) for name in names}, ["text.txt"], chunk_count, chunk_size
    )


def sound_importance(path: Path) -> ImportanceMatrix | None:
    try:
        found = read_importance(path)
    except DgptQuantError:
        return None
    for entry in found.entries.values():
        assert np.isfinite(entry.mean_squares).all()
        assert (entry.mean_squares >= 0).all()
        assert entry.mean is None or np.isfinite(entry.mean).all()
        assert entry.count >= 0
    return found


@MANY
@given(damaged(importance().encode(), front=700))
def test_damaged_importance_matrix(tiny: Path, content: bytes) -> None:
    with folder() as place:
        (place / "it.gguf").write_bytes(content)
        if found := sound_importance(place / "it.gguf"):
            found.write(place / "again.gguf")
            assert read_importance(place / "again.gguf").sha256 == found.sha256
            try:
                [file] = convert(str(tiny), type="q4_0", imatrix=place / "it.gguf", output=place)
            except DgptQuantError:
                return
            check_gpt2(read_header(Path(file.path)))


CHILD = """
import sys
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.core.errors import DgptQuantError
model, level, imatrix, output = sys.argv[1:]
try:
    convert(model, type=level, imatrix=imatrix, output=output)
except DgptQuantError as error:
    print(error.message)
"""


@pytest.mark.parametrize("largest", [1e30, 3e38])
@pytest.mark.parametrize("level", ["iq2_xxs", "iq3_xxs"])
def test_huge_importance_does_not_abort(level: str, largest: float, tmp_path: Path) -> None:
    """Some of llama.cpp's quantizers overflow on them, find no grid point, and abort."""
    model = make_checkpoint(tmp_path / "model", layers=1, width=256)
    names = [f"blk.0.{part}.weight" for part in ("attn_qkv", "attn_output", "ffn_up", "ffn_down")]
    columns = {name: 1024 if name == names[-1] else 256 for name in names} | {"token_embd.weight": 256}
    large = {name: np.full(count, largest if name in names else 1, np.float32) for name, count in columns.items()}
    entries = {name: Statistics(squares, None, 1.0) for name, squares in large.items()}
    ImportanceMatrix(entries, ["text.txt"], 1, 1).write(tmp_path / "it.gguf")
    command = [sys.executable, "-c", CHILD, str(model), level, str(tmp_path / "it.gguf"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    assert done.stdout or list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "parts",
    [
        [importance(largest=3e38), importance(largest=3e38)],
        [importance(1, 1), importance(2**32 - 1, 2**32 - 1), importance(2**32 - 1, 2**32 - 1)],
        [importance(1, 1), importance(2**31, 2)],
    ],
    ids=["sums", "chunks beyond 64 bits", "chunks beyond 32 bits"],
)
def test_merged_importance_is_readable(parts: list[ImportanceMatrix], tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.gguf" for number in range(len(parts))]
    for part, path in zip(parts, files, strict=True):
        part.write(path)
        assert sound_importance(path)
    try:
        imatrix(output=tmp_path / "all.gguf", merge=files)
    except DgptQuantError:
        assert not (tmp_path / "all.gguf").exists()
    else:
        assert read_importance(tmp_path / "all.gguf").sha256 == merged(parts).sha256


@pytest.mark.parametrize("name", ["it.gguf", "i" * 248 + ".gguf"], ids=["usual", "long"])
@pytest.mark.parametrize("in_the_way", ["nothing", "garbage", "folder"])
def test_damaged_partial_file(name: str, in_the_way: str, tiny: Path, tmp_path: Path) -> None:
    """The partial file is next to the output, under a longer name."""
    partial = tmp_path / "new" / f"{name}.partial"
    partial.parent.mkdir()
    if in_the_way != "nothing" and len(partial.name) < 256:
        partial.mkdir() if in_the_way == "folder" else partial.write_bytes(b"garbage")
    (tmp_path / "text.txt").write_text("the hen in the pan and the tin " * 20)
    text, output = tmp_path / "text.txt", partial.with_name(name)
    collected = attempt(lambda: imatrix(str(tiny), text=text, output=output, chunks=1))
    if isinstance(collected, DgptQuantError):
        assert not output.exists()
    else:
        assert read_importance(output).sha256 == collected.sha256


@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize("tensor", ["wte.weight", "h.0.mlp.c_fc.weight", "ln_f.bias"])
def test_importance_of_damaged_weights_is_refused(dtype: Any, tensor: str, tmp_path: Path) -> None:
    shape = {"wte.weight": (262, 64), "ln_f.bias": (64,), "h.0.mlp.c_fc.weight": (64, 256)}[tensor]
    model = make_checkpoint(tmp_path / "model", dtype=dtype, changed={tensor: np.full(shape, np.nan)})
    (tmp_path / "text.txt").write_text("the hen in the pan and the tin " * 20)
    with pytest.raises(DgptQuantError):
        imatrix(str(model), text=tmp_path / "text.txt", output=tmp_path / "it.gguf", chunks=1)
    assert not (tmp_path / "it.gguf").exists()


# --- names ------------------------------------------------------------------------------------------------------------


@MANY
@given(st.text() | st.sampled_from(list(QUANT_TYPES)).flatmap(lambda name: st.permutations(list(name)).map("".join)))
def test_random_quant_type(text: str) -> None:
    found = attempt(lambda: find_type(text))
    assert found in QUANT_TYPES.values() or (isinstance(found, UsageError) and found.hint)


expressions = st.text() | st.text("[](){}*+?^$|\\.-,09aP<>=!:", max_size=12)
half_overrides = st.tuples(expressions, st.sampled_from(["q6_k", " Q8_0", "f32", "q9", ""])).map("=".join)


@MANY
@given(st.text() | half_overrides)
def test_random_override(text: str) -> None:
    found = attempt(lambda: find_override(text))
    if isinstance(found, DgptQuantError):
        assert isinstance(found, UsageError)
        assert found.hint
        return
    assert isinstance(found, Override)
    assert find_override(str(found)) == found


@pytest.mark.parametrize(
    "expression",
    ["[[a]", "[a--b]", "[a||b]", "a{" + "9" * 5000 + "}", "a{99999999999}", "(" * 5000, "(?P<a>)" * 2, "\\", "(?i"],
    ids=range(9),
)
def test_odd_override_expression(expression: str) -> None:
    found = attempt(lambda: find_override(f"{expression}=q6_k"))
    assert isinstance(found, Override | UsageError)


def test_some_damaged_inputs_are_accepted(tiny: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    for source in (tiny, tiny_gguf):
        assert converted_or_refused(source, "q8_0")
    shutil.copytree(tiny, tmp_path / "copy")
    assert converted_or_refused(tmp_path / "copy", "f16")
    read_soundly_or_refuse(SOUND_WEIGHTS)
    importance().write(tmp_path / "it.gguf")
    assert sound_importance(tmp_path / "it.gguf")
