"""Files that must be refused in Python: llama.cpp would end the process, or run them wrongly."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.quantize.errors import GGUFError, ModelNotFoundError, RuntimeFailure
from dgpt2_quant.quantize.gguf_file import ValueType, read_header
from dgpt2_quant.quantize.quant_types import TensorType
from dgpt2_quant.runtime import Model
from dgpt2_quant.runtime.validate import check_model_file

from .gguf_edit import Tensor, retype, rewrite

WIDTH, VOCABULARY = 256, 8189


@pytest.fixture
def good(storybook_files: dict[str, Path]) -> Path:
    return storybook_files["Q4_0"]


def test_every_level_of_the_bundled_checkpoint_is_accepted(storybook_files: dict[str, Path]) -> None:
    for level, path in storybook_files.items():
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
        ("gpt2.block_count", 7, r"no tensor 'blk\.6\."),
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
        ("gpt2.attention.head_count", 3, "heads do not divide its width"),
        ("gpt2.attention.head_count", 512, "heads do not divide its width"),
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
        ("tokenizer.ggml.model", None, "tokenizer is None, not gpt2"),
        ("tokenizer.ggml.model", "llama", "tokenizer is 'llama', not gpt2"),
        ("tokenizer.ggml.tokens", None, "tokens is no list of STRING"),
        ("tokenizer.ggml.tokens", VOCABULARY, "tokens is no list of STRING"),
        ("tokenizer.ggml.tokens", list(range(VOCABULARY)), "tokens is no list of STRING"),
        (
            "tokenizer.ggml.tokens",
            [f"{number}" for number in range(VOCABULARY - 1)],
            "token_type has 8189 entries for 8188",
        ),
        ("tokenizer.ggml.merges", None, "merges is no list of STRING"),
        ("tokenizer.ggml.merges", [1, 2], "merges is no list of STRING"),
        ("tokenizer.ggml.token_type", 5, "token_type is no list of INT32"),
        ("tokenizer.ggml.token_type", ["1"] * VOCABULARY, "token_type is no list of INT32"),
        ("tokenizer.ggml.token_type", [1, 1, 3], "token_type has 3 entries for 8189 tokens"),
        ("tokenizer.ggml.scores", [1, 2, 3], "scores is no list of FLOAT32"),
        ("tokenizer.ggml.tokens", [f"{number % 8188}" for number in range(VOCABULARY)], "1 of its 8189 tokens have"),
        ("tokenizer.ggml.tokens", [f"{number}" for number in range(8188)] + ["7\0"], "1 of its 8189 tokens have"),
        ("tokenizer.ggml.tokens", ["", *(f"[EMPTY_{n}]" for n in range(8188))], "1 of its 8189 tokens have"),
        ("general.alignment", 64, "alignment is 64"),
    ],
)
def test_metadata_that_does_not_fit(good: Path, tmp_path: Path, key: str, value: Any, message: str) -> None:
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


def floats(*shape: int) -> Tensor:
    count = 1
    for size in shape:
        count *= size
    return shape, TensorType.F32, bytes(4 * count)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("token_embd.weight", None, "no tensor 'token_embd.weight'"),
        ("position_embd.weight", None, "no tensor 'position_embd.weight'"),
        ("output_norm.bias", None, "no tensor 'output_norm.bias'"),
        ("blk.3.ffn_down.bias", None, r"no tensor 'blk\.3\.ffn_down\.bias'"),
        ("blk.0.attn_qkv.weight", floats(WIDTH, 3 * WIDTH), r"shape \[256, 768\], not \[768, 256\]"),
        ("blk.0.attn_norm.weight", floats(1, WIDTH), r"shape \[1, 256\], not \[256\]"),
        ("position_embd.weight", floats(511, WIDTH), r"shape \[511, 256\], not \[512, 256\]"),
        ("token_embd.weight", floats(VOCABULARY - 1, WIDTH), r"shape \[8188, 256\], not \[8189, 256\]"),
        ("output.weight", floats(VOCABULARY + 3, WIDTH), r"'output.weight' has the shape \[8192, 256\]"),
        ("blk.6.attn_norm.weight", floats(WIDTH), r"the tensor 'blk\.6\.attn_norm\.weight', which .* not know"),
        ("blk.0.attn.bias", floats(1), r"the tensor 'blk\.0\.attn\.bias'"),
        ("blk.0.attn_qkv.bias", ((3 * WIDTH,), TensorType.F16, bytes(1536)), "is F16; biases and norms are F32"),
        ("output_norm.weight", ((WIDTH,), TensorType.Q8_0, bytes(272)), "is Q8_0; biases and norms are F32"),
    ],
)
def test_tensors_that_do_not_fit(good: Path, tmp_path: Path, name: str, tensor: Tensor | None, message: str) -> None:
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
def test_something_else(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "text.gguf"
    file.write_bytes(data)
    with pytest.raises(GGUFError, match=r"is not a sound GGUF file: it begins with"):
        Model.load(file)


def test_an_older_version(good: Path, tmp_path: Path) -> None:
    data, file = bytearray(good.read_bytes()), tmp_path / "old.gguf"
    data[4:8] = struct.pack("<I", 1)
    file.write_bytes(data)
    with pytest.raises(GGUFError, match="version 1"):
        Model.load(file)


@pytest.mark.parametrize("name", ["absent.gguf", "."])
def test_no_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no file"):
        Model.load(tmp_path / name)


def test_what_only_llama_cpp_refuses_is_an_error_too(good: Path, tmp_path: Path) -> None:
    file = rewrite(good, tmp_path / "odd.gguf", metadata={"tokenizer.ggml.pre": "none of its own"})
    with pytest.raises(RuntimeFailure, match=r"can not load .*odd\.gguf") as caught:
        Model.load(file)
    assert "dgpt2_quant.llama_cpp" in caught.value.hint


# flips one byte a file, loads it, and says what came of it; an abort of the C library ends the whole process
MUTATE = """if True:
    import json, random, sys
    from pathlib import Path
    from dgpt2_quant.quantize.errors import GGUFError, RuntimeFailure
    from dgpt2_quant.runtime import Model

    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    begin, end, count, seed = map(int, sys.argv[3:])
    data, choose = source.read_bytes(), random.Random(seed)
    with target.open("w+b", buffering=0) as file:
        file.write(data)
        for _ in range(count):
            at, flip = choose.randrange(begin, end), choose.randrange(1, 256)
            print(json.dumps([at, flip]), flush=True)
            file.seek(at)
            file.write(bytes([data[at] ^ flip]))
            try:
                with Model.load(target, ctx_size=32, threads=1) as model:
                    model.generate("Once", max_tokens=2, seed=0)
                print("loaded", flush=True)
            except (GGUFError, RuntimeFailure) as error:
                print(type(error).__name__, flush=True)
            file.seek(at)
            file.write(data[at:at + 1])
"""


def mutate(good: Path, tmp_path: Path, begin: int, end: int, count: int, seed: int) -> dict[str, int]:
    """How often each outcome came."""
    arguments = [str(good), str(tmp_path / "mutated.gguf"), *map(str, (begin, end, count, seed))]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}  # no debugger when it aborts after all
    command = [sys.executable, "-c", MUTATE, *arguments]
    child = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    lines = child.stdout.splitlines()
    assert child.returncode == 0, f"byte and flip {lines[-1:]}: {child.stderr[-300:]}"
    assert all(0 < json.loads(line)[1] < 256 for line in lines[::2])
    outcomes = lines[1::2]
    assert len(outcomes) == count
    assert set(outcomes) <= {"loaded", "GGUFError", "RuntimeFailure"}
    return {outcome: outcomes.count(outcome) for outcome in set(outcomes)}


def test_flipped_bytes_in_the_metadata(good: Path, tmp_path: Path) -> None:
    outcomes = mutate(good, tmp_path, 0, 4096, 150, seed=1)
    assert set(outcomes) >= {"loaded", "GGUFError"}


def test_flipped_bytes_in_the_list_of_tensors(good: Path, tmp_path: Path) -> None:
    data, header = good.read_bytes(), read_header(good)
    first = min(data.index(struct.pack("<Q", len(name)) + name.encode()) for name in header.tensors)
    outcomes = mutate(good, tmp_path, first, min(t.start for t in header.tensors.values()), 100, seed=2)
    assert outcomes["GGUFError"] > 80  # nearly every byte of it says something


def test_flipped_bytes_in_the_weights_load(good: Path, tmp_path: Path) -> None:
    start = min(tensor.start for tensor in read_header(good).tensors.values())
    assert mutate(good, tmp_path, start, good.stat().st_size, 20, seed=3) == {"loaded": 20}
