"""Converting a GGUF file gives the same as its checkpoint, or as llama-quantize; invalid files are refused."""

import hashlib
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from dgpt2_quant.core.errors import CheckpointError, GGUFError, ModelNotFoundError, OutputError, UsageError
from dgpt2_quant.core.gguf_file import EncodedValue, read_header
from dgpt2_quant.core.hyperparameters import matmul_weights
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix, Statistics, read_importance
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model

from ...checkpoints import TOKENS, bfloat16, make_checkpoint
from ...runtime.gguf_edit import Tensor, realign, rewrite
from ..oracle import assert_same_tensors, contents, llama_quantize

SHAPE: dict[str, Any] = {"layers": 1, "width": 256, "inner": 256, "context": 8}
BASES = ["F32", "F16", "BF16", "Q8_0", "Q4_K_M"]
UP, HEAD, EMBEDDING, POSITIONS = "blk.0.ffn_up.weight", "output.weight", "token_embd.weight", "position_embd.weight"
KINDS = gguf.GGUFValueType


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("tiny") / "model", **SHAPE)


@pytest.fixture(scope="module")
def made(checkpoint: Path) -> dict[str, Path]:
    """The checkpoint's files by quant type. Tests must not change them."""
    files = convert(str(checkpoint), type=BASES, output=checkpoint.parent)
    return {file.type: Path(file.path) for file in files}


@pytest.fixture(scope="module")
def importance(made: dict[str, Path]) -> Path:
    random, shapes = np.random.default_rng(0), {t.name: t.shape for t in read_header(made["F32"]).tensors.values()}
    entries = {
        name: Statistics(random.gamma(0.5, 100, shapes[name][1]).astype(np.float32), None, 97.0)
        for name in matmul_weights(shapes)
    }
    ImportanceMatrix(entries, ["random"], 1, 97).write(made["F32"].parent / "imatrix.gguf")
    return made["F32"].parent / "imatrix.gguf"


def converted(source: Path, level: str, folder: Path, **arguments: Any) -> Path:
    (file,) = convert(str(source), type=level, output=folder, **arguments)
    assert Path(file.path).stat().st_size == file.bytes
    return Path(file.path)


def tensor(path: Path, name: str) -> Tensor:
    kind, shape, data = contents(path)[name]
    return shape, TensorType[kind], data.tobytes()


def floats(path: Path, name: str) -> np.ndarray:
    _, shape, data = contents(path)[name]
    return data.copy().view(np.float32).reshape(shape)


@pytest.mark.parametrize(
    "arguments",
    [
        {"type": ["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_S", "Q2_K"]},
        {"type": ["Q4_K_M", "Q2_K_S", "IQ4_NL", "F16"], "imatrix": True},
        {"type": ["Q4_0", "Q5_K_S"], "tensor_type": ["ffn_down=q8_0", "token_embd=q4_k"]},
    ],
    ids=["levels", "imatrix", "tensor_type"],
)
def test_f32_file_gives_the_bytes_of_the_checkpoint(
    arguments: dict[str, Any], checkpoint: Path, made: dict[str, Path], importance: Path, tmp_path: Path
) -> None:
    arguments = {**arguments, "imatrix": importance if arguments.get("imatrix") else None}
    direct = convert(str(checkpoint), output=tmp_path / "direct", **arguments)
    further = convert(str(made["F32"]), output=tmp_path / "further", **arguments)
    assert [Path(file.path).name for file in further] == [Path(file.path).name for file in direct]
    for one, other in zip(direct, further, strict=True):
        assert Path(one.path).read_bytes() == Path(other.path).read_bytes(), one.type
        assert (one.sha256, one.model, one.tensors) == (other.sha256, other.model, other.tensors)


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_output_matrix_survives_f32(head: Any, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", head=head, vocabulary=300)
    base = converted(folder, "F32", tmp_path)
    assert (HEAD in read_header(base).tensors) == (head == "untied")
    direct, further = (converted(source, "Q5_1", tmp_path / name) for name, source in [("a", folder), ("b", base)])
    assert direct.read_bytes() == further.read_bytes()


@pytest.mark.parametrize("base", ["F16", "BF16"])
def test_f16_source_equals_llama_quantize(base: str, made: dict[str, Path], tmp_path: Path) -> None:
    for file in convert(str(made[base]), type=["Q4_K_M", "Q8_0", "Q4_0", "F32", "F16", "BF16"], output=tmp_path):
        assert llama_quantize(made[base], file.type, tmp_path / "theirs.gguf")
        assert assert_same_tensors(Path(file.path), tmp_path / "theirs.gguf")[POSITIONS] == "F32"


@pytest.mark.parametrize("base", ["Q8_0", "Q4_K_M"])
def test_quantized_file_is_refused(base: str, made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is already quantized \('.*' is Q.*\)") as caught:
        convert(str(made[base]), type="Q4_0", output=tmp_path / "out")
    assert str(made[base]) in caught.value.message
    assert "`allow_requantize`" in caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("base", "weighed"), [("Q8_0", False), ("Q8_0", True), ("Q4_K_M", False)])
def test_requantizing_equals_llama_quantize(
    base: str, weighed: bool, made: dict[str, Path], importance: Path, tmp_path: Path
) -> None:
    levels, before = ["Q4_K_M", "Q8_0", "Q4_0", "Q6_K", "Q3_K_M", "F16", "F32"], contents(made[base])
    means = {name: entry.mean_squares for name, entry in read_importance(importance).entries.items()}
    call: dict[str, Any] = {"type": levels, "allow_requantize": True, "imatrix": importance if weighed else None}
    theirs = tmp_path / "theirs.gguf"
    for file in convert(str(made[base]), output=tmp_path, **call):
        used = means if weighed else None
        assert llama_quantize(made[base], file.type, theirs, allow_requantize=True, importance=used)
        assert_same_tensors(Path(file.path), theirs)
        metadata, after = read_header(Path(file.path)).metadata, contents(Path(file.path))
        assert (metadata["dgpt2_quant.requantized_from"], metadata["dgpt2_quant.type"]) == (base, file.type)
        same = [name for name, (kind, _, _) in after.items() if kind == before[name][0]]
        assert all(np.array_equal(after[name][2], before[name][2]) for name in same)
        assert file.type != base or set(same) == set(before)


def test_requantized_from_is_kept(made: dict[str, Path], tmp_path: Path) -> None:
    again = converted(made["Q4_K_M"], "F32", tmp_path, allow_requantize=True)
    further = converted(again, "Q8_0", tmp_path)
    assert read_header(further).metadata["dgpt2_quant.requantized_from"] == "Q4_K_M"


def foreign(source: Path, target: Path, extra: Mapping[str, tuple[Any, ...]]) -> Path:
    """Writes the file as another converter would, with gguf-py: other keys, another order of tensors.

    `extra` are (type, value), or (ARRAY, value, type of the items).
    """
    header, writer = read_header(source), gguf.GGUFWriter(target, "gpt2")
    metadata = header.metadata
    for key in ("context_length", "embedding_length", "feed_forward_length", "block_count"):
        writer.add_uint32(f"gpt2.{key}", metadata[f"gpt2.{key}"])
    for key, (kind, value, *item) in extra.items():
        writer.add_key_value(key, value, kind, *item)
    writer.add_head_count(metadata["gpt2.attention.head_count"])
    writer.add_layer_norm_eps(metadata["gpt2.attention.layer_norm_epsilon"])
    writer.add_file_type(0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_token_merges(metadata["tokenizer.ggml.merges"])
    writer.add_eos_token_id(metadata["tokenizer.ggml.eos_token_id"])
    writer.add_quantization_version(2)
    for name, (_, shape, data) in reversed(contents(source).items()):
        writer.add_tensor(name, data.view(np.float32).reshape(shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


NUMBERS = {"UINT8": 200, "INT8": -100, "UINT16": 60000, "INT16": -30000, "UINT32": 4000000000, "INT32": -5}
NUMBERS |= {"UINT64": 5, "INT64": -(2**60), "FLOAT32": 0.1, "FLOAT64": 0.1, "BOOL": True}
EXTRA: dict[str, tuple[Any, ...]] = {f"mine.{kind}": (KINDS[kind], value) for kind, value in NUMBERS.items()}
EXTRA |= {f"mine.{kind}s": (KINDS.ARRAY, [value, 0, value], KINDS[kind]) for kind, value in NUMBERS.items()}
EXTRA |= {
    "mine.no": (KINDS.BOOL, False),
    "general.description": (KINDS.STRING, "Ünï\n\0 line"),
    "general.tags": (KINDS.ARRAY, ["text-generation", "", "é"], KINDS.STRING),
}


def fields(path: Path) -> dict[str, tuple[list[gguf.GGUFValueType], bytes]]:
    """The types and bytes of each key as gguf-py reads them, in file order."""
    found = gguf.GGUFReader(path).fields.items()
    return {
        name: (list(field.types), b"".join(part.tobytes() for part in field.parts))
        for name, field in found
        if not name.startswith("GGUF.")
    }


def test_metadata_of_other_converters_are_kept(made: dict[str, Path], tmp_path: Path) -> None:
    source = foreign(made["F32"], tmp_path / "theirs-f32.gguf", EXTRA)
    result = converted(source, "Q4_K_M", tmp_path)
    assert result.name == "theirs.Q4_K_M.gguf"
    before, after = fields(source), fields(result)
    level = ["general.file_type", "general.quantization_version"]
    kept = [name for name in before if name not in level]
    assert [name for name in after if name in kept] == kept
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    new = read_header(result).metadata
    assert {name: new[name] for name in after if name not in kept} == {
        "general.quantized_by": "dgpt2-quant",
        "general.file_type": 15,
        "general.quantization_version": 2,
        "dgpt2_quant.version": new["dgpt2_quant.version"],
        "dgpt2_quant.type": "Q4_K_M",
        "dgpt2_quant.recipe": "stock",
        "dgpt2_quant.source.sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
    }
    assert llama_quantize(source, "Q4_K_M", tmp_path / "llama.gguf")
    assert_same_tensors(result, tmp_path / "llama.gguf")
    assert contents(result).keys() == contents(made["F32"]).keys()
    with Model.load(result, threads=1) as model:
        assert [TOKENS[token] for token in model.tokenize("the in")] == ["t", "he", "Ġ", "in"]


def test_file_without_quant_type_keys(made: dict[str, Path], tmp_path: Path) -> None:
    level = ("general.quantized_by", "general.file_type", "general.quantization_version")
    ours = [key for key in read_header(made["F32"]).metadata if key.startswith("dgpt2_quant.") or key in level]
    source = rewrite(made["F32"], tmp_path / "bare.gguf", metadata=dict.fromkeys(ours))
    keys = list(read_header(converted(source, "Q4_0", tmp_path)).metadata)
    assert set(keys) == {*read_header(made["F32"]).metadata}
    assert keys.index("dgpt2_quant.type") < keys.index("tokenizer.ggml.model")  # small values come first


def test_quant_type_keys_are_replaced(made: dict[str, Path], importance: Path, tmp_path: Path) -> None:
    stale = {
        "quantize.imatrix.file": "/home/somebody/imatrix.dat",
        "quantize.imatrix.dataset": "old",
        "quantize.imatrix.entries_count": 3,
        "quantize.imatrix.chunks_count": 3,
        "dgpt2_quant.imatrix.sha256": "f" * 64,
        "dgpt2_quant.tensor_types": ["ffn_up=Q8_0"],
        "dgpt2_quant.version": "0.0.1",
        "dgpt2_quant.recipe": "older",
        "general.quantized_by": "somebody",
    }
    source = rewrite(made["F32"], tmp_path / "stale.gguf", metadata=stale)
    plain = read_header(converted(source, "Q4_0", tmp_path / "plain")).metadata
    assert plain == read_header(converted(made["F32"], "Q4_0", tmp_path / "expected")).metadata
    weighed = read_header(converted(source, "Q4_0", tmp_path / "weighed", imatrix=importance)).metadata
    assert weighed["quantize.imatrix.dataset"] == "random"
    assert "quantize.imatrix.file" not in weighed


def test_source_hash_is_kept(made: dict[str, Path], tmp_path: Path) -> None:
    known = read_header(made["F32"]).metadata["dgpt2_quant.source.sha256"]
    first = converted(made["F16"], "Q8_0", tmp_path)
    second = converted(first, "Q4_0", tmp_path, allow_requantize=True)
    assert [read_header(path).metadata["dgpt2_quant.source.sha256"] for path in (first, second)] == [known] * 2


@pytest.mark.parametrize("said", [7, "/../../../../esc"])
def test_stated_source_hash_is_not_trusted_for_caching(
    said: Any, made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is used in cache names, which another model must not match."""
    monkeypatch.setenv("DGPT2_QUANT_CACHE", str(tmp_path / "cache" / "inner"))
    source = rewrite(made["F32"], tmp_path / "it.gguf", metadata={"dgpt2_quant.source.sha256": said})
    converted(source, "Q4_0", tmp_path / "out", calibrate="sampled")
    (kept,) = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert kept.parent == tmp_path / "cache" / "inner" / "calibration"
    assert hashlib.sha256(source.read_bytes()).hexdigest()[:16] in kept.name


@pytest.mark.parametrize("changed", [False, True], ids=["the same", "another"])
def test_output_matrix_equal_to_the_embedding_is_dropped(changed: bool, made: dict[str, Path], tmp_path: Path) -> None:
    shape, kind, data = tensor(made["F32"], EMBEDDING)
    head = bytearray(data)
    head[-1] ^= changed
    source = rewrite(made["F32"], tmp_path / "doubled.F32.gguf", tensors={HEAD: (shape, kind, bytes(head))})
    result = converted(source, "Q4_K_M", tmp_path)
    assert (HEAD in read_header(result).tensors) == changed
    if changed:
        assert llama_quantize(source, "Q4_K_M", tmp_path / "theirs.gguf")
        assert_same_tensors(result, tmp_path / "theirs.gguf")
    else:
        expected = converted(made["F32"], "Q4_K_M", tmp_path / "tied")
        assert result.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_position_table_keeps_its_type(kind: str, made: dict[str, Path], tmp_path: Path) -> None:
    values = floats(made["F32"], POSITIONS)
    blocks = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind]).tobytes()
    table = {POSITIONS: (values.shape, TensorType[kind], blocks)}
    source = rewrite(made["F32"], tmp_path / "table.gguf", tensors=table)
    for file in convert(str(source), type=["Q4_0", "F32", "BF16"], output=tmp_path, allow_requantize=True):
        assert tensor(Path(file.path), POSITIONS) == table[POSITIONS]
        assert llama_quantize(source, file.type, tmp_path / "theirs.gguf", allow_requantize=True)
        assert_same_tensors(Path(file.path), tmp_path / "theirs.gguf")


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_the_alignment_of_a_source_does_not_matter(alignment: int, made: dict[str, Path], tmp_path: Path) -> None:
    source = realign(made["F16"], tmp_path / "it.F16.gguf", alignment)
    for kind in ("F16", "Q4_K_M"):
        result = converted(source, kind, tmp_path / "out")
        assert result.read_bytes() == converted(made["F16"], kind, tmp_path / "expected").read_bytes()
        assert "general.alignment" not in read_header(result).metadata


def test_missing_pre_tokenizer_is_added(made: dict[str, Path], tmp_path: Path) -> None:
    source = rewrite(made["F32"], tmp_path / "older.gguf", metadata={"tokenizer.ggml.pre": None})
    result = converted(source, "Q4_0", tmp_path)
    assert read_header(result).metadata["tokenizer.ggml.pre"] == "gpt-2"
    Model.load(result, threads=1).close()


@pytest.mark.parametrize("pre", ["default", "gpt2", ""])
def test_accepted_files_run(pre: str, made: dict[str, Path], tmp_path: Path) -> None:
    source = rewrite(made["F32"], tmp_path / "named.gguf", metadata={"tokenizer.ggml.pre": pre})
    result = converted(source, "Q4_0", tmp_path)
    assert read_header(result).metadata["tokenizer.ggml.pre"] == "gpt-2"
    Model.load(result, threads=1).close()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.pre", "llama-bpe", "tokenizer.ggml.pre is 'llama-bpe'"),
        ("tokenizer.ggml.eos_token_id", None, "eos_token_id is None"),
        ("tokenizer.ggml.bos_token_id", 1 << 20, "bos_token_id is 1048576"),
    ],
)
def test_files_that_cannot_run_are_refused(
    key: str, value: Any, message: str, made: dict[str, Path], tmp_path: Path
) -> None:
    source = rewrite(made["F32"], tmp_path / "other.gguf", metadata={key: value})
    with pytest.raises(GGUFError, match=message):
        converted(source, "Q4_0", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other.gguf"]


def test_f16_vectors_become_f32(made: dict[str, Path], tmp_path: Path) -> None:
    vectors = {name: floats(made["F32"], name) for name in ("blk.0.attn_qkv.bias", "output_norm.weight")}
    halves = {name: (data.shape, TensorType.F16, data.astype("<f2").tobytes()) for name, data in vectors.items()}
    result = converted(rewrite(made["F32"], tmp_path / "half.gguf", tensors=halves), "Q4_0", tmp_path)
    for name, data in vectors.items():
        assert np.array_equal(floats(result, name), data.astype(np.float16).astype(np.float32))
        assert contents(result)[name][0] == "F32"


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("distilgpt2.F32.gguf", "distilgpt2.Q4_K_M.gguf"),
        ("distilgpt2.f16.GGUF", "distilgpt2.Q4_K_M.gguf"),
        ("model-q8_0.gguf", "model.Q4_K_M.gguf"),
        ("my.gpt2-BF16.gguf", "my.gpt2.Q4_K_M.gguf"),
        ("gpt2.Q5_K_M.gguf", "gpt2.Q4_K_M.gguf"),
        ("plain.gguf", "plain.Q4_K_M.gguf"),
        ("gpt2-medium.gguf", "gpt2-medium.Q4_K_M.gguf"),
        ("version-1.0.gguf", "version-1.0.Q4_K_M.gguf"),
        ("F16.gguf", "F16.Q4_K_M.gguf"),
    ],
)
def test_model_name_excludes_the_quant_type(
    source: str, target: str, made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(made["F32"], source)
    (file,) = convert(source, type="q4_k")
    assert file.path == target
    assert file.model == target.removesuffix(".Q4_K_M.gguf")


@pytest.mark.parametrize("level", ["F16", "Q4_0"])
def test_source_file_can_be_overwritten(level: str, made: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "tiny.F16.gguf"
    shutil.copyfile(made["F16"], source)
    with pytest.raises(OutputError, match="already exists"):
        convert(str(source), type=level, output=source)
    expected = converted(made["F16"], level, tmp_path / "expected")
    (file,) = convert(str(source), type=level, output=source, overwrite=True)
    assert file.path == str(source)
    assert source.read_bytes() == expected.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", source.name]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"split.count": 2, "split.no": 0}, "is one of several parts"),
        ({"general.architecture": "llama"}, "its architecture is 'llama'"),
        ({"general.architecture": None}, "its architecture is None"),
        ({"general.type": "imatrix"}, "it is a 'imatrix', not a model"),
        ({"gpt2.block_count": 2}, "it lacks the tensor 'blk.1"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens"),
    ],
    ids=str,
)
def test_other_gguf_kinds_are_refused(
    metadata: dict[str, Any], message: str, made: dict[str, Path], tmp_path: Path
) -> None:
    source = rewrite(made["F32"], tmp_path / "it.gguf", metadata=metadata)
    with pytest.raises(GGUFError) as caught:
        convert(str(source), type="Q4_0", output=tmp_path / "out")
    assert message in caught.value.message
    assert str(source) in caught.value.message
    assert not (tmp_path / "out").exists()


def test_split_file_with_one_part_is_accepted(made: dict[str, Path], tmp_path: Path) -> None:
    one, first = (EncodedValue(struct.pack("<IH", KINDS.UINT16, number)) for number in (1, 0))
    source = rewrite(made["F32"], tmp_path / "it.gguf", metadata={"split.count": one, "split.no": first})
    assert contents(converted(source, "Q4_0", tmp_path)).keys() == contents(made["F32"]).keys()


@pytest.mark.parametrize("length", [0, 3, 100, 5000, -1, -5000])
def test_truncated_file_is_refused(length: int, made: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "short.gguf").write_bytes(made["F32"].read_bytes()[:length])
    with pytest.raises(GGUFError, match=r"short\.gguf is not a valid GGUF file"):
        convert(str(tmp_path / "short.gguf"), type="Q4_0", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_revision_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`revision` needs a Hub name"):
        convert(str(made["F32"]), type="Q4_0", output=tmp_path, revision="main")


@pytest.mark.parametrize("name", ["missing.gguf", "folder.gguf", "~nobody-of-that-name/x.gguf"])
def test_missing_file_is_reported(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(ModelNotFoundError, match="there is no file"):
        convert(str(tmp_path / name) if "~" not in name else name, type="Q4_0", output=tmp_path / "out")


@pytest.mark.parametrize("base", ["F32", "F16", "BF16", "Q8_0"])
@pytest.mark.parametrize(("bad", "levels"), [(float("nan"), ["Q4_0", "F32"]), (float("inf"), ["Q8_0"])], ids=str)
def test_non_finite_values_name_the_tensor(
    base: str, bad: float, levels: list[str], made: dict[str, Path], tmp_path: Path
) -> None:
    shape, kind, data = tensor(made[base], UP)
    number = {
        "F32": np.float32(bad).tobytes(),
        "BF16": bfloat16(np.array([bad])).tobytes(),
    }.get(base, np.float16(bad).tobytes())  # of a block of Q8_0 it is the scale
    at = kind.block_bytes * 300
    broken = data[:at] + number + data[at + len(number) :]
    source = rewrite(made[base], tmp_path / "nan.gguf", tensors={UP: (shape, kind, broken)})
    with pytest.raises((GGUFError, CheckpointError), match=f"{UP}.* not finite"):
        convert(str(source), type=levels, output=tmp_path / "out", allow_requantize=True)
    assert not (tmp_path / "out").exists()
