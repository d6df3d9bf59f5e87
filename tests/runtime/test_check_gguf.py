"""GGUF files that must be refused: llama.cpp would end the process, or run them wrongly."""

import os
import random
import re
import shlex
import struct
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.cli.main import app
from dgpt2_quant.core.errors import GGUFError, ModelNotFoundError, RuntimeFailure
from dgpt2_quant.core.ggml import library
from dgpt2_quant.core.gguf_file import EncodedValue, ValueType, encode_header, read_header
from dgpt2_quant.core.gpt2_gguf import SPLIT_AS_GPT2
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model
from dgpt2_quant.runtime import check_gguf as validate
from dgpt2_quant.runtime.check_gguf import all_finite, check_model_file, context_bytes

from ..checkpoints import make_checkpoint
from .gguf_edit import Tensor, realign, retype, rewrite
from .mutations import Draft, other_model, random_blocks, take_apart

WIDTH, VOCABULARY = 256, 262


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As storybook, with fewer tokens: it is written anew for every test."""
    folder = tmp_path_factory.mktemp("good")
    model = make_checkpoint(folder / "model", layers=6, width=WIDTH, inner=1024, context=512)
    return Path(convert(str(model), type="Q4_0", output=folder)[0].path)


def test_every_level_of_the_bundled_checkpoint_is_accepted(short_files: dict[str, Path]) -> None:
    for level, path in short_files.items():
        assert check_model_file(path).quant_type == level


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.architecture", "llama", "architecture is 'llama'"),
        ("general.architecture", None, "architecture is None"),
        ("general.type", "imatrix", "is a 'imatrix', not a model"),
        ("gpt2.block_count", None, "gpt2.block_count is None"),
        ("gpt2.block_count", 0, "gpt2.block_count is 0"),
        ("gpt2.block_count", 513, "gpt2.block_count is 513"),
        ("gpt2.block_count", 2**40, "gpt2.block_count is 1099511627776"),
        ("gpt2.block_count", 5, r"tensor 'blk\.5\."),
        ("gpt2.block_count", 7, r"lacks the tensor 'blk\.6\."),
        ("gpt2.block_count", "6", "gpt2.block_count is '6'"),
        ("gpt2.block_count", 6.0, r"gpt2.block_count is 6\.0"),
        ("gpt2.block_count", True, "gpt2.block_count is True"),
        ("gpt2.context_length", None, "gpt2.context_length is None"),
        ("gpt2.context_length", 0, "gpt2.context_length is 0"),
        ("gpt2.context_length", 513, r"'position_embd.weight' has the shape \[512, 256\], not \[513, 256\]"),
        ("gpt2.context_length", 2**31, "gpt2.context_length is 2147483648"),
        ("gpt2.embedding_length", None, "gpt2.embedding_length is None"),
        ("gpt2.embedding_length", 0, "gpt2.embedding_length is 0"),
        ("gpt2.embedding_length", 512, r"has the shape"),
        ("gpt2.feed_forward_length", None, "gpt2.feed_forward_length is None"),
        ("gpt2.feed_forward_length", [1024] * 6, "gpt2.feed_forward_length is"),
        ("gpt2.feed_forward_length", 768, r"has the shape"),
        ("gpt2.attention.head_count", None, "gpt2.attention.head_count is None"),
        ("gpt2.attention.head_count", 0, "gpt2.attention.head_count is 0"),
        ("gpt2.attention.head_count", 3, "is not a multiple of its"),
        ("gpt2.attention.head_count", 512, "is not a multiple of its"),
        ("gpt2.attention.head_count", 256, "its 256 heads are 1 wide"),
        ("gpt2.attention.head_count_kv", 2, "head_count_kv is 2, not 4"),
        ("gpt2.attention.head_count_kv", [4] * 6, "head_count_kv is .*, not 4"),
        ("gpt2.vocab_size", "262", "gpt2.vocab_size has the type STRING, not UINT32"),
        ("gpt2.attention.layer_norm_epsilon", None, "layer_norm_epsilon is None"),
        ("gpt2.attention.layer_norm_epsilon", 0.0, r"layer_norm_epsilon is 0\.0"),
        ("gpt2.attention.layer_norm_epsilon", float("nan"), "layer_norm_epsilon is nan"),
        ("gpt2.attention.layer_norm_epsilon", 1, "layer_norm_epsilon is 1"),
        # llama.cpp reads these for every architecture and aborts on a value that does not fit
        ("gpt2.expert_count", 3, "the key 'gpt2.expert_count'"),
        ("gpt2.expert_used_count", 3, "the key 'gpt2.expert_used_count'"),
        ("gpt2.attention.key_length", 32, "the key 'gpt2.attention.key_length'"),
        ("gpt2.rope.scaling.type", "none of its own", "the key 'gpt2.rope.scaling.type'"),
        # and this one it obeys: another model
        ("gpt2.attention.causal", False, "the key 'gpt2.attention.causal'"),
        ("tokenizer.ggml.model", None, "tokenizer is None, not 'gpt2'"),
        ("tokenizer.ggml.model", "llama", "tokenizer is 'llama', not 'gpt2'"),
        ("tokenizer.ggml.tokens", None, "tokens is not a list of STRING"),
        ("tokenizer.ggml.tokens", VOCABULARY, "tokens is not a list of STRING"),
        ("tokenizer.ggml.tokens", list(range(VOCABULARY)), "tokens is not a list of STRING"),
        (
            "tokenizer.ggml.tokens",
            [f"{number}" for number in range(VOCABULARY - 1)],
            "token_type has 262 entries for 261",
        ),
        ("tokenizer.ggml.merges", None, "merges is not a list of STRING"),
        ("tokenizer.ggml.merges", [1, 2], "merges is not a list of STRING"),
        ("tokenizer.ggml.token_type", 5, "token_type is not a list of INT32"),
        ("tokenizer.ggml.token_type", ["1"] * VOCABULARY, "token_type is not a list of INT32"),
        ("tokenizer.ggml.token_type", [1, 1, 3], "token_type has 3 entries for 262 tokens"),
        ("tokenizer.ggml.scores", [1, 2, 3], "scores is not a list of FLOAT32"),
        ("tokenizer.ggml.tokens", [f"{number % 261}" for number in range(VOCABULARY)], "1 of its 262 tokens have"),
        ("tokenizer.ggml.tokens", [f"{number}" for number in range(261)] + ["7\0"], "1 of its 262 tokens have"),
        ("tokenizer.ggml.tokens", ["", *(f"[EMPTY_{n}]" for n in range(261))], "1 of its 262 tokens have"),
        # a grammar goes through a token by recursion, and through a million merges for long
        ("tokenizer.ggml.tokens", [*map(str, range(261)), "語" * 4097], "'語語語.*has 4097 characters; at most 4096"),
        ("tokenizer.ggml.merges", ["a b"] * 600_000, "it has 600000 merges"),
        ("tokenizer.ggml.token_type", [1] * 261 + [6], "token_type has 6, not 1 to 5"),
        ("tokenizer.ggml.token_type", [1] * 261 + [-1], "token_type has -1, not 1 to 5"),
        ("tokenizer.ggml.pre", "default", "tokenizer.ggml.pre is 'default', not gpt-2"),
        ("tokenizer.ggml.pre", "llama-bpe", "tokenizer.ggml.pre is 'llama-bpe', not gpt-2"),
        ("tokenizer.ggml.pre", ["gpt-2"], "tokenizer.ggml.pre has the type ARRAY, not STRING"),
        # for these llama.cpp takes token 11, a comma
        ("tokenizer.ggml.eos_token_id", None, "eos_token_id is None, not 0 to 261"),
        ("tokenizer.ggml.eos_token_id", VOCABULARY, "eos_token_id is 262, not 0 to 261"),
        ("tokenizer.ggml.bos_token_id", 2**32 - 1, "bos_token_id is 4294967295, not 0 to 261"),
        # and these it does not take
        ("tokenizer.ggml.eos_token_id", "0", "eos_token_id has the type STRING, not UINT32"),
        ("tokenizer.ggml.padding_token_id", 2**40, "padding_token_id has the type UINT64, not UINT32"),
        ("tokenizer.ggml.add_bos_token", 0, "add_bos_token has the type UINT32, not BOOL"),
        ("tokenizer.ggml.suppress_tokens", 5, "suppress_tokens is not a list of INT32"),
        ("general.name", 7, "general.name has the type UINT32, not STRING"),
        ("general.file_type", "F16", "general.file_type has the type STRING, not UINT32"),
        # it would open the other parts, which nobody has looked at
        ("split.count", EncodedValue(struct.pack("<IH", ValueType.UINT16, 2)), "it is one of 2 parts"),
        ("split.count", 1, "split.count has the type UINT32, not UINT16"),
        # it reads a key up to the zero, and finds this one first
        ("gpt2.block_count\0", 2**31, r"the key 'gpt2.block_count\\x00'"),
        ("", 1, "the key ''"),
        # llama.cpp aborts if it has another type
        ("general.alignment", 32.0, r"alignment is 32\.0, not a power of 2 from 8 up \(UINT32\)"),
        ("general.alignment", 2**40, r"alignment is 1099511627776, not a power of 2 from 8 up \(UINT32\)"),
        ("general.alignment", [64], r"alignment is \[64\], not a power of 2"),
        ("general.alignment", True, r"alignment is True, not a power of 2"),
        ("general.alignment", 0, "alignment is 0, not a power of 2"),
        ("general.alignment", 1, "alignment is 1, not a power of 2"),
        ("general.alignment", 48, "alignment is 48, not a power of 2"),
    ],
)
def test_inconsistent_metadata_is_refused(good: Path, tmp_path: Path, key: str, value: Any, message: str) -> None:
    file = rewrite(good, tmp_path / "odd.gguf", metadata={key: value})
    with pytest.raises(GGUFError, match=message) as caught:
        check_model_file(file)
    assert str(file) in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("key", "value_type", "layout", "value"),
    [
        ("gpt2.block_count", ValueType.INT32, "<i", -6),
        ("gpt2.context_length", ValueType.INT32, "<i", -1),
        ("gpt2.embedding_length", ValueType.INT32, "<i", -256),
        ("gpt2.attention.head_count", ValueType.INT32, "<i", -4),
        ("gpt2.attention.head_count", ValueType.FLOAT32, "<f", 4.0),
    ],
)
def test_sizes_of_other_types(
    good: Path, tmp_path: Path, key: str, value_type: ValueType, layout: str, value: float
) -> None:
    file = retype(good, tmp_path / "odd.gguf", key, value_type, layout, value)
    with pytest.raises(GGUFError, match=f"{key} is {value}, not 1 to"):
        check_model_file(file)


def test_a_size_of_another_type_of_integer(good: Path, tmp_path: Path) -> None:
    file = retype(good, tmp_path / "odd.gguf", "gpt2.block_count", ValueType.INT32, "<i", 6)
    with pytest.raises(GGUFError, match=r"gpt2\.block_count has the type INT32, not UINT32"):
        check_model_file(file)


def floats(*shape: int) -> Tensor:
    count = 1
    for size in shape:
        count *= size
    return shape, TensorType.F32, bytes(4 * count)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("token_embd.weight", None, "lacks the tensor 'token_embd.weight'"),
        ("position_embd.weight", None, "lacks the tensor 'position_embd.weight'"),
        ("output_norm.bias", None, "lacks the tensor 'output_norm.bias'"),
        ("blk.3.ffn_down.bias", None, r"lacks the tensor 'blk\.3\.ffn_down\.bias'"),
        ("blk.0.attn_qkv.weight", floats(WIDTH, 3 * WIDTH), r"shape \[256, 768\], not \[768, 256\]"),
        ("blk.0.attn_norm.weight", floats(1, WIDTH), r"shape \[1, 256\], not \[256\]"),
        ("position_embd.weight", floats(511, WIDTH), r"shape \[511, 256\], not \[512, 256\]"),
        ("token_embd.weight", floats(VOCABULARY - 1, WIDTH), r"shape \[261, 256\], not \[262, 256\]"),
        ("output.weight", floats(VOCABULARY + 3, WIDTH), r"'output.weight' has the shape \[265, 256\]"),
        ("blk.6.attn_norm.weight", floats(WIDTH), r"the tensor 'blk\.6\.attn_norm\.weight', which .* lacks"),
        ("blk.0.attn.bias", floats(1), r"the tensor 'blk\.0\.attn\.bias'"),
        (
            "blk.0.attn_qkv.bias",
            ((3 * WIDTH,), TensorType.F16, bytes(1536)),
            "must be F32, like all biases and norms, not F16",
        ),
        (
            "output_norm.weight",
            ((WIDTH,), TensorType.Q8_0, bytes(272)),
            "must be F32, like all biases and norms, not Q8_0",
        ),
    ],
)
def test_wrong_tensors_are_refused(good: Path, tmp_path: Path, name: str, tensor: Tensor | None, message: str) -> None:
    file = rewrite(good, tmp_path / "odd.gguf", tensors={name: tensor})
    with pytest.raises(GGUFError, match=message):
        check_model_file(file)


def test_an_output_matrix_of_its_own_is_accepted(good: Path, tmp_path: Path) -> None:
    file = rewrite(good, tmp_path / "untied.gguf", tensors={"output.weight": floats(VOCABULARY, WIDTH)})
    with Model.load(file, threads=1) as model:
        assert not model.logits([1]).any()  # zeros, and not the embedding


@pytest.mark.parametrize("key", ["gpt2.attention.head_count_kv", "gpt2.vocab_size"])
def test_harmless_keys_of_other_converters_are_accepted(good: Path, tmp_path: Path, key: str) -> None:
    value = {"gpt2.attention.head_count_kv": 4, "gpt2.vocab_size": VOCABULARY}[key]
    with Model.load(rewrite(good, tmp_path / "other.gguf", metadata={key: value}), threads=1) as model:
        assert model.generate("Once", max_tokens=2)[0][0].tokens == 2


def test_truncated_anywhere(good: Path, tmp_path: Path) -> None:
    data, file = good.read_bytes(), tmp_path / "cut.gguf"
    for size in (3, 4, 20, 1000, 100_000, min(t.start for t in read_header(good).tensors.values()), len(data) - 32):
        file.write_bytes(data[:size])
        with pytest.raises(GGUFError, match=r"cut\.gguf"):
            check_model_file(file)


@pytest.mark.parametrize("data", [b"", b"\n", b"Once upon a time, there was no model.\n" * 99, b"GGML" + bytes(99)])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "text.gguf"
    file.write_bytes(data)
    with pytest.raises(GGUFError, match=r"is not a valid GGUF file: it begins with"):
        Model.load(file)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"lmgg" + bytes(99), "a file of ggml before GGUF"),
    ],
)
def test_what_is_in_the_place_of_a_gguf_file_is_named(tmp_path: Path, data: bytes, kind: str) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(data)
    with pytest.raises(GGUFError, match=rf"model\.gguf is {kind}") as caught:
        Model.load(file)
    assert caught.value.hint


def test_an_older_gguf_version_is_refused(good: Path, tmp_path: Path) -> None:
    data, file = bytearray(good.read_bytes()), tmp_path / "old.gguf"
    data[4:8] = struct.pack("<I", 1)
    file.write_bytes(data)
    with pytest.raises(GGUFError, match="version is 1"):
        Model.load(file)


@pytest.mark.parametrize("name", ["absent.gguf", "."])
def test_a_missing_file_is_reported(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no file"):
        Model.load(tmp_path / name)


def test_a_file_that_only_llama_cpp_refuses_is_an_error(good: Path, tmp_path: Path) -> None:
    file = rewrite(good, tmp_path / "odd.gguf", metadata={"general.name": "phi-3"})  # for which it wants a token </s>
    with pytest.raises(RuntimeFailure, match=r"cannot load .*odd\.gguf") as caught:
        Model.load(file)
    assert "dgpt2_quant.llama_cpp" in caught.value.hint


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One layer, 256 wide, so that every tensor type fits."""
    folder = tmp_path_factory.mktemp("tiny")
    (file,) = convert(str(make_checkpoint(folder / "model", layers=1, width=256, inner=256)), type="f32", output=folder)
    return Path(file.path)


def write(path: Path, draft: Draft) -> Path:
    path.write_bytes(draft.encode())
    return path


@pytest.mark.parametrize("tensor_type", TensorType, ids=lambda t: t.name)
def test_every_block_is_judged_as_llama_cpp_judges_it(tensor_type: TensorType) -> None:
    random = np.random.default_rng(tensor_type)
    # many bytes with all the bits of an exponent, and some without one of them
    odd = random.choice(
        np.array([0xFF, 0x7F, 0x7C, 0x80, 0xFC, 0xF0, 0xC0, 0x70, 0xFE], np.uint8), (4000, tensor_type.block_bytes)
    )
    blocks = np.where(random.random(odd.shape) < 0.7, odd, random.integers(0, 256, odd.shape, np.uint8))
    ours = [all_finite(block, tensor_type) for block in blocks]
    theirs = [library().ggml_validate_row_data(tensor_type, block.ctypes.data, block.nbytes) for block in blocks]
    assert ours == theirs
    assert set(ours) == ({True} if tensor_type is TensorType.NVFP4 else {True, False})
    sound = blocks[np.array(ours)].reshape(-1)
    assert all_finite(sound, tensor_type)
    for block in blocks[~np.array(ours)][:3]:
        assert not all_finite(np.concatenate([sound, block, sound]), tensor_type)


@pytest.mark.parametrize("tensor_type", [t for t in TensorType if t.exponents], ids=lambda t: t.name)
def test_one_value_or_scale_that_is_not_finite(tensor_type: TensorType, tiny: Path, tmp_path: Path) -> None:
    draft = take_apart(tiny)
    tensor = draft.tensor("blk.0.ffn_up.weight")
    assert tensor
    tensor.type = tensor_type
    tensor.data = random_blocks(tensor.dimensions, tensor_type, random.Random(1))
    assert check_model_file(write(tmp_path / "sound.gguf", draft)).tensors["blk.0.ffn_up.weight"].type is tensor_type
    data = bytearray(tensor.data)
    for at, size, mask in tensor_type.exponents[-1]:
        begin = len(data) - tensor_type.block_bytes + at  # of the last block
        data[begin : begin + size] = (int.from_bytes(data[begin : begin + size], "little") | mask).to_bytes(
            size, "little"
        )
    tensor.data = bytes(data)
    with pytest.raises(GGUFError, match=r"tensor 'blk\.0\.ffn_up\.weight' has a (value|scale) that is not finite"):
        check_model_file(write(tmp_path / "damaged.gguf", draft))


def test_values_after_the_first_piece_are_checked(short_files: dict[str, Path], tmp_path: Path) -> None:
    data, file = bytearray(short_files["Q4_0"].read_bytes()), tmp_path / "odd.gguf"
    tensor = read_header(short_files["Q4_0"]).tensors["token_embd.weight"]
    assert tensor.nbytes > 2 * validate._PIECE
    for at in (tensor.start + tensor.nbytes - 2, tensor.start + validate._PIECE // 210 * 210 + 208):  # Q6_K
        was = data[at : at + 2]
        data[at : at + 2] = b"\0\x7c"
        file.write_bytes(data)
        with pytest.raises(GGUFError, match=r"tensor 'token_embd\.weight' has a scale that is not finite"):
            check_model_file(file)
        data[at : at + 2] = was


def test_a_file_that_is_cut_short_while_it_is_read(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = rewrite(good, tmp_path / "cut.gguf")
    monkeypatch.setattr(validate, "check_tokens", lambda header: os.truncate(file, header.file_bytes - 1000))
    with pytest.raises(GGUFError, match=r"cut\.gguf cannot be run: it ends within tensor 'blk\.5"):
        check_model_file(file)


@pytest.mark.parametrize(
    "sizes",
    [{"context": 1 << 20}, {"heads": 128, "context": 8192}, {"layers": 512}, {"inner": 1 << 17, "context": 512}],
)
def test_sizes_for_which_a_small_file_asks_for_much_memory(sizes: dict[str, int], tiny: Path, tmp_path: Path) -> None:
    draft = take_apart(tiny)
    whole = {"layers": 1, "width": 2, "heads": 1, "inner": 8, "context": 8} | sizes
    if "heads" in sizes:
        whole["width"] = 256
    other_model(draft, TensorType.F16, **whole)
    with pytest.raises(GGUFError, match=r"heads and \d+ layers a context takes \d+ MiB; for \d+ bytes"):
        check_model_file(write(tmp_path / "hungry.gguf", draft))


def test_the_largest_gpt2_at_the_lowest_level_may_have_its_memory() -> None:
    xl = Hyperparameters(48, 1600, 25, 6400, 1024, 50257, 1e-5)
    weights = sum(map(prod, xl.shapes().values()))
    assert context_bytes(xl) < validate._ALLOWED_PER_BYTE * weights // 8  # a bit for each of them


@pytest.mark.parametrize("pre", sorted(SPLIT_AS_GPT2))
def test_every_name_of_the_pre_tokenizer_splits_as_gpt2_does(pre: str, tiny: Path, tmp_path: Path) -> None:
    text = "It's 2026, in the end\r\n\n  I'Ve the   tab\t漢字 été 1234567 ...!? <|endoftext|>the\u00a0an "
    file = rewrite(tiny, tmp_path / "other.gguf", metadata={"tokenizer.ggml.pre": pre})
    with Model.load(tiny, threads=1) as one, Model.load(file, threads=1) as other:
        assert other.tokenize(text) == one.tokenize(text)
        assert other.detokenize(other.tokenize(text)) == text.replace("<|endoftext|>", "")
        assert len(other.tokenize("a" * 300_000 + " " * 300_000)) == 600_000


def greedy(path: Path, **options: Any) -> tuple[int, ...]:
    with Model.load(path, threads=1, **options) as model:
        return tuple(model.generate("the in", max_tokens=12, temperature=0)[0][0].token_ids)


@pytest.mark.parametrize("alignment", [8, 16, 64, 4096])
def test_files_of_other_alignments_run_the_same(alignment: int, good: Path, tmp_path: Path) -> None:
    file = realign(good, tmp_path / "aligned.gguf", alignment)
    assert any(tensor.start % 64 for tensor in read_header(file).tensors.values()) == (alignment < 64)
    # llama.cpp aborts where it maps a file of a smaller alignment than 32
    assert greedy(file) == greedy(file, huge_pages=False) == greedy(good)


def test_tensors_far_apart_are_refused(tiny: Path, tmp_path: Path) -> None:
    """Holes take no room on the disk, but llama.cpp would read them."""
    header, far = read_header(tiny), 1 << 28
    keys = {**header.metadata, "general.alignment": far, "last": "key"}
    head = bytearray(encode_header(keys, {}).rstrip(b"\0"))
    struct.pack_into("<Q", head, 8, len(header.tensors))
    for number, tensor in enumerate(header.tensors.values()):
        sizes = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        name = struct.pack("<Q", len(tensor.name)) + tensor.name.encode()
        head += name + sizes + struct.pack("<IQ", tensor.type, number * far)
    with (tmp_path / "far.gguf").open("wb") as file:
        file.write(head)
        file.truncate(far * len(header.tensors) + tensor.nbytes)
    with pytest.raises(GGUFError, match=r"with its alignment of 268435456, \d+ bytes are before and between"):
        check_model_file(tmp_path / "far.gguf")


@pytest.mark.parametrize("pre", [None, ""])
def test_a_file_without_a_pre_tokenizer_splits_as_gpt2_does_and_warns(
    pre: str | None, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "It's 2026, in the end\r\n\n  I'Ve the   tab\t漢字 été 1234567 ...!? <|endoftext|>the\u00a0an "
    file = rewrite(tiny, tmp_path / "an older.gguf", metadata={"tokenizer.ggml.pre": pre})
    with Model.load(file, threads=1) as older, Model.load(tiny, threads=1) as newer:
        assert older.tokenize(text) == newer.tokenize(text)
        assert len(older.tokenize("!" * 300_000)) == 300_000  # with llama.cpp's own pattern the stack overflows
    [warning] = [record.getMessage() for record in caplog.records if record.name == validate.__name__]
    assert "an older.gguf has no tokenizer.ggml.pre: texts are split as GPT-2 splits them" in warning
    [command] = re.findall("`(.+)`", warning)
    arguments = shlex.split(command.replace("NEW.gguf", str(tmp_path / "new.gguf")))
    assert arguments[:2] == ["dgpt2-quant", "convert"]
    app(arguments[1:], standalone_mode=False)
    assert read_header(tmp_path / "new.gguf").metadata["tokenizer.ggml.pre"] == "gpt-2"


def test_a_token_as_long_as_it_may_be(good: Path, tmp_path: Path) -> None:
    tokens = ["x" * 4096, *read_header(good).metadata["tokenizer.ggml.tokens"][1:]]
    file = rewrite(good, tmp_path / "long.gguf", metadata={"tokenizer.ggml.tokens": tokens})
    with Model.load(file, threads=1) as model:
        assert model.generate("a", max_tokens=4, seed=1, grammar="root ::= [a-z ]*")[0][0].tokens


def test_data_after_the_last_tensor_is_refused(good: Path, tmp_path: Path) -> None:
    data, file = good.read_bytes(), tmp_path / "more.gguf"
    file.write_bytes(data + bytes(1000))  # padding of whoever wrote it
    with Model.load(file, threads=1) as model:
        assert model.generate("a", max_tokens=2)
    os.truncate(file, 5 << 30)  # a hole: it takes no room on the disk, but llama.cpp would read it
    with pytest.raises(GGUFError, match=r"5\d+ bytes follow its last tensor"):
        Model.load(file)


def test_a_header_that_does_not_fit_memory_is_refused(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("dgpt2_quant.core.gguf_file._Reader.read", full)
    with pytest.raises(GGUFError, match="not enough memory for the header"):
        Model.load(good)


def test_a_header_that_claims_too_many_items_is_refused(good: Path, tmp_path: Path) -> None:
    value = EncodedValue(struct.pack("<IIQ", ValueType.ARRAY, ValueType.INT8, 9_000_000) + bytes(9_000_000))
    file = rewrite(good, tmp_path / "long.gguf", metadata={"general.tags": value})
    with pytest.raises(GGUFError, match="claims 9000000 values"):
        check_model_file(file)
