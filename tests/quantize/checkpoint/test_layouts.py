"""All layouts of GPT-2 checkpoints on the Hub: the converted file computes the same as the checkpoint.

A tiny checkpoint of each layout is converted to F32 and computed by the package's reference and by llama.cpp; both are
compared with `forward.py`, which shares no code with them. Unsupported layouts are refused.
`test_layouts_peer.py` compares the same layouts with Transformers.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.quantize.calibration.numpy_gpt2 import from_gguf
from dgpt2_quant.quantize.checkpoint.tokenizer import TokenType
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model
from safetensors.numpy import load_file

from ...checkpoints import (
    END_OF_TEXT,
    MERGES,
    TOKENS,
    bfloat16,
    fast_tokenizer,
    make_checkpoint,
    random_tensors,
    raw_safetensors,
    write_json,
    write_weights,
)
from ..forward import forward, read_weights

SIZE = len(TOKENS)
END = SIZE - 1
TEXT = [40, 201, 7, 99, 250, 250, 12, 0, 33, 71, 115, 40, 201, 8, 180, 99, 255, 3, 64, 65]
UNSCALED = {"scale_attn_weights": False}
BY_LAYER = {"scale_attn_by_inverse_layer_idx": True}
FOLDED, NARROWED = 5e-7, 2e-6  # a scale folded into float32 weights; float64 weights to float32


Built = Callable[[str], tuple[Path, Path]]


@dataclass(frozen=True)
class Layout:
    """Arguments of `make_checkpoint`, a change of the folder afterwards, and the tolerance of the logits in float32."""

    options: Mapping[str, Any] = field(default_factory=dict)
    finish: Callable[[Path], Any] = lambda folder: None
    rounding: float = 1e-9  # only the epsilon is rounded

    def make(self, folder: Path) -> Path:
        make_checkpoint(folder, **self.options)
        self.finish(folder)
        return folder


def store_as(dtype_of: Callable[[str], str]) -> Callable[[Path], None]:
    """Rewrites `model.safetensors` with the given dtype for each tensor."""
    casts: dict[str, Callable[[npt.NDArray[Any]], npt.NDArray[Any]]] = {
        "F64": lambda data: data.astype(np.float64),
        "F32": lambda data: data.astype(np.float32),
        "F16": lambda data: data.astype(np.float16),
        "BF16": bfloat16,
        "BOOL": lambda data: data != 0,
        "U8": lambda data: data.astype(np.uint8),
    }

    def rewrite(folder: Path) -> None:
        header, chunks, at = {}, [], 0
        for name, data in load_file(folder / "model.safetensors").items():
            dtype = dtype_of(name)
            chunk = casts[dtype](data).tobytes()
            header[name] = {"dtype": dtype, "shape": data.shape, "data_offsets": [at, at + len(chunk)]}
            chunks.append(chunk)
            at += len(chunk)
        (folder / "model.safetensors").write_bytes(raw_safetensors(header, b"".join(chunks)))

    return rewrite


def masks_as(dtype: str) -> Callable[[Path], None]:
    return store_as(lambda name: dtype if name.endswith(".attn.bias") else "F32")


def mixed(name: str) -> str:
    kinds = {"c_attn.weight": "BF16", "c_fc.weight": "F16", "c_proj.weight": "F64", "wte.weight": "F16"}
    return next((dtype for end, dtype in kinds.items() if name.endswith(end)), "F32")


def add_tokens(folder: Path) -> None:
    """As slow tokenizers save them: ids in one file, kinds in another, with a gap in the ids."""
    write_json(folder / "added_tokens.json", {"<|user|>": SIZE, "smile": SIZE + 3})
    decoder = {str(SIZE): {"content": "<|user|>", "special": True}, str(SIZE + 3): {"content": "smile"}}
    write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": decoder})


def add_fast_tokens(folder: Path) -> None:
    content = fast_tokenizer()
    content["added_tokens"] += [
        {"id": SIZE, "content": "<|user|>", "special": True},
        {"id": SIZE + 3, "content": "smile", "special": False},
    ]
    write_json(folder / "tokenizer.json", content)


BASE_MODEL = {"architectures": ["GPT2Model"]}
SMALL = {"vocabulary": 259, "config": {"bos_token_id": 0, "eos_token_id": 0}}  # drops all after "in"

LAYOUTS: dict[str, Layout] = {
    # names
    "prefixed names": Layout(),
    "bare names": Layout({"prefix": ""}),
    "mask buffers": Layout({"masks": True}),
    "mask buffers, bare names": Layout({"masks": True, "prefix": ""}),
    "mask buffers as bool": Layout({"masks": True}, masks_as("BOOL")),
    "mask buffers as bytes": Layout({"masks": True, "prefix": ""}, masks_as("U8")),
    # the head
    "head stored again": Layout({"head": "tied"}),
    "head stored again, bare names": Layout({"head": "tied", "prefix": ""}),
    "head stored again, said to be untied": Layout({"head": "tied", "config": {"tie_word_embeddings": False}}),
    "head of its own": Layout({"head": "untied", "config": {"tie_word_embeddings": False}}),
    "head of its own, bare names": Layout(
        {"head": "untied", "prefix": "", "config": {"tie_word_embeddings": False}},
    ),
    "head of its own, not said": Layout({"head": "untied"}),
    "base model": Layout({"prefix": "", "config": BASE_MODEL}),
    "base model with masks": Layout({"prefix": "", "masks": True, "config": BASE_MODEL}),
    # sizes
    "n_positions only": Layout({"config": {"n_ctx": None}}),
    "n_positions and n_ctx": Layout({"config": {"n_ctx": 64}}),
    "n_ctx only": Layout({"config": {"n_positions": None, "n_ctx": 64}}),
    "n_inner null": Layout({}, lambda folder: set_config(folder, n_inner=None)),
    "n_inner smaller": Layout({"inner": 56}),
    "n_inner larger": Layout({"inner": 600}),
    "one head": Layout({"heads": 1}),
    "narrow heads": Layout({"width": 60, "heads": 15}),
    "one layer": Layout({"layers": 1}),
    "large epsilon": Layout({"config": {"layer_norm_epsilon": 0.05}}, rounding=1e-7),
    "epsilon by default": Layout({"config": {"layer_norm_epsilon": None}}),
    # switches
    "by layer": Layout({"layers": 3, "config": BY_LAYER}, rounding=FOLDED),
    "unscaled": Layout({"config": UNSCALED}),  # by 4, which is exact
    "unscaled, heads of 24": Layout({"width": 96, "config": UNSCALED}, rounding=FOLDED),
    "unscaled by layer": Layout({"layers": 3, "config": UNSCALED | BY_LAYER}, rounding=FOLDED),
    "unscaled by layer, bare, untied": Layout(
        {"layers": 3, "prefix": "", "masks": True, "head": "untied", "config": UNSCALED | BY_LAYER},
        rounding=FOLDED,
    ),
    "reordered and upcast": Layout(
        {"layers": 3, "config": BY_LAYER | {"reorder_and_upcast_attn": True}}, rounding=FOLDED
    ),
    "gelu_new": Layout({"config": {"activation_function": "gelu_new"}}),
    "gelu_fast": Layout({"config": {"activation_function": "gelu_fast"}}),
    "gelu_pytorch_tanh": Layout({"config": {"activation_function": "gelu_pytorch_tanh"}}),
    "activation by default": Layout({"config": {"activation_function": None}}),
    # files and dtypes
    "two shards": Layout({"shards": 2}),
    "a shard for each tensor or two, everything stored": Layout({"shards": 20, "head": "tied", "masks": True}),
    "F64": Layout({"dtype": "F64"}, rounding=NARROWED),
    "F16": Layout({"dtype": "F16"}),
    "BF16": Layout({"dtype": "BF16"}),
    "F64 unscaled by layer": Layout({"dtype": "F64", "layers": 3, "config": UNSCALED | BY_LAYER}, rounding=NARROWED),
    "F16 unscaled by layer": Layout({"dtype": "F16", "layers": 3, "config": UNSCALED | BY_LAYER}, rounding=FOLDED),
    "BF16 unscaled by layer": Layout({"dtype": "BF16", "layers": 3, "config": UNSCALED | BY_LAYER}, rounding=FOLDED),
    "BF16 shards": Layout({"dtype": "BF16", "shards": 3, "prefix": "", "masks": True}),
    "mixed dtypes": Layout({"head": "untied"}, store_as(mixed)),
    "mixed dtypes, unscaled": Layout({"config": UNSCALED}, store_as(mixed)),
    "head stored again, wider": Layout(
        {"head": "tied", "dtype": "F16"}, store_as(lambda name: "F32" if name == "lm_head.weight" else "F16")
    ),
    # tokenizers
    "vocab.json and merges.txt only": Layout(),
    "tokenizer.json only": Layout({"tokenizer": "fast"}),
    "both tokenizers": Layout({}, lambda folder: write_json(folder / "tokenizer.json", fast_tokenizer())),
    "padded vocabulary": Layout({"vocabulary": SIZE + 2}),
    "small vocabulary": Layout(SMALL),
    "small vocabulary, tokenizer.json": Layout(SMALL | {"tokenizer": "fast"}),
    "added tokens": Layout({"vocabulary": SIZE + 6}, add_tokens),
    "added tokens, tokenizer.json": Layout({"vocabulary": SIZE + 6, "tokenizer": "fast"}, add_fast_tokens),
    "added tokens beyond the embedding": Layout({"vocabulary": SIZE + 1}, add_tokens),
}


def set_config(folder: Path, **changes: Any) -> None:
    write_json(folder / "config.json", json.loads((folder / "config.json").read_bytes()) | changes)


def converted(folder: Path) -> Path:
    (file,) = convert(str(folder), type="F32", output=folder / "out", threads=1)
    return Path(file.path)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """A layout's checkpoint and converted file, once per session. Tests must not change them."""
    made: dict[str, tuple[Path, Path]] = {}

    def build(name: str) -> tuple[Path, Path]:
        if name not in made:
            folder = LAYOUTS[name].make(tmp_path_factory.mktemp("layout") / "model")
            made[name] = folder, converted(folder)
        return made[name]

    return build


def relative(ours: npt.NDArray[np.floating], expected: npt.NDArray[np.float64]) -> float:
    """The largest difference, relative to the spread of the logits."""
    assert ours.shape == expected.shape
    return float(np.abs(ours - expected).max() / expected.std())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_computes_the_same(layout: str, built: Built) -> None:
    folder, path = built(layout)
    expected, ours = forward(folder, TEXT), from_gguf(path, np.float64)
    assert relative(ours.hidden(TEXT), expected.hidden) < LAYOUTS[layout].rounding
    assert relative(ours.logits(TEXT), expected.logits) < LAYOUTS[layout].rounding
    with Model.load(path, threads=1) as model:
        # llama.cpp has keys, values and the GELU table in F16
        assert relative(model.logits(TEXT), expected.logits) < 1e-2


@pytest.mark.parametrize("switch", [{"scale_attn_weights": True}, {"scale_attn_by_inverse_layer_idx": False}])
def test_oracle_detects_an_ignored_switch(switch: dict[str, bool], built: Built) -> None:
    folder, _ = built("unscaled by layer")
    assert relative(forward(folder, TEXT, **switch).logits, forward(folder, TEXT).logits) > 5e-2


def test_oracle_detects_an_ignored_epsilon(built: Built) -> None:
    folder, path = built("large epsilon")
    assert relative(forward(folder, TEXT, layer_norm_epsilon=1e-5).logits, forward(folder, TEXT).logits) > 5e-2
    assert read_header(path).metadata["gpt2.attention.layer_norm_epsilon"] == np.float32(0.05)


@pytest.mark.parametrize(
    "layout",
    [
        "bare names",
        "mask buffers",
        "mask buffers, bare names",
        "mask buffers as bool",
        "mask buffers as bytes",
        "head stored again",
        "head stored again, bare names",
        "head stored again, said to be untied",
        "base model",
        "base model with masks",
        "n_positions and n_ctx",
        "n_ctx only",
        "n_inner null",
        "epsilon by default",
        "gelu_fast",
        "gelu_pytorch_tanh",
        "activation by default",
        "two shards",
        "a shard for each tensor or two, everything stored",
        "tokenizer.json only",
        "both tokenizers",
    ],
)
def test_layouts_give_equal_files_except_the_source_hash(layout: str, built: Built) -> None:
    (_, plain), (_, other) = built("prefixed names"), built(layout)
    assert content(other) == content(plain)
    assert len(read_header(plain).tensors) == 4 + 2 * 12
    assert "output.weight" not in read_header(plain).tensors


def content(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The content of a file without its source."""
    header, data = read_header(path), path.read_bytes()
    metadata = {key: value for key, value in header.metadata.items() if "source" not in key}
    return metadata, {t.name: data[t.start : t.start + t.nbytes] for t in header.tensors.values()}


@pytest.mark.parametrize("layout", ["head of its own", "head of its own, bare names", "head of its own, not said"])
def test_untied_output_matrix_is_written(layout: str, built: Built) -> None:
    _, path = built(layout)
    assert read_header(path).tensors["output.weight"].shape == (SIZE, 64)


@pytest.mark.parametrize(("layout", "inner"), [("n_inner smaller", 56), ("n_inner larger", 600), ("n_inner null", 256)])
def test_inner_width_from_the_config(layout: str, inner: int, built: Built) -> None:
    header = read_header(built(layout)[1])
    assert header.metadata["gpt2.feed_forward_length"] == inner
    assert header.tensors["blk.1.ffn_up.weight"].shape == (inner, 64)
    assert header.tensors["blk.1.ffn_down.weight"].shape == (64, inner)


@pytest.mark.parametrize("layout", ["n_positions only", "n_positions and n_ctx", "n_ctx only"])
def test_context_length(layout: str, built: Built) -> None:
    path = built(layout)[1]
    assert read_header(path).metadata["gpt2.context_length"] == 64
    with Model.load(path, threads=1) as model:
        assert model.positions == 64


def tokens_of(path: Path) -> list[tuple[str, TokenType]]:
    metadata = read_header(path).metadata
    kinds = map(TokenType, metadata["tokenizer.ggml.token_type"])
    return list(zip(metadata["tokenizer.ggml.tokens"], kinds, strict=True))


def test_rows_without_a_token_get_an_unused_one(built: Built) -> None:
    assert tokens_of(built("padded vocabulary")[1])[END:] == [
        (END_OF_TEXT, TokenType.CONTROL),
        (f"[PAD{SIZE}]", TokenType.UNUSED),
        (f"[PAD{SIZE + 1}]", TokenType.UNUSED),
    ]


@pytest.mark.parametrize("layout", ["small vocabulary", "small vocabulary, tokenizer.json"])
def test_tokens_without_a_row_and_their_merges_are_dropped(
    layout: str, built: Built, caplog: pytest.LogCaptureFixture
) -> None:
    folder, path = built(layout)
    metadata = read_header(path).metadata
    assert tokens_of(path) == [(token, TokenType.NORMAL) for token in TOKENS[:259]]
    assert metadata["tokenizer.ggml.merges"] == MERGES[:3]
    assert (metadata["tokenizer.ggml.bos_token_id"], metadata["tokenizer.ggml.eos_token_id"]) == (0, 0)
    with Model.load(path, threads=1) as model:
        tokens = model.tokenize(f"the man in then the{END_OF_TEXT}")
        assert max(tokens) < model.vocabulary == 259
        assert model.detokenize(tokens) == f"the man in then the{END_OF_TEXT}"
        # Ġthe and an are split in two
        assert [TOKENS[token] for token in model.tokenize(" the an")] == ["Ġt", "he", "Ġ", "a", "n"]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        convert(str(folder), type="F32", output=folder / "again", threads=1)
    record, end = caplog.records
    assert "a text ends at 'Ā' (0), by config.json, which is an ordinary token" in end.getMessage()
    assert record.levelno == logging.WARNING
    assert record.name.startswith("dgpt2_quant.")
    assert f"{folder}: the embedding has 259 rows, so 3 tokens are dropped" in record.getMessage()
    assert all(repr(token) in record.getMessage() for token in TOKENS[259:])


@pytest.mark.parametrize("layout", ["added tokens", "added tokens, tokenizer.json"])
def test_added_token_types_and_gaps(layout: str, built: Built) -> None:
    path = built(layout)[1]
    assert tokens_of(path)[SIZE:] == [
        ("<|user|>", TokenType.CONTROL),
        (f"[PAD{SIZE + 1}]", TokenType.UNUSED),
        (f"[PAD{SIZE + 2}]", TokenType.UNUSED),
        ("smile", TokenType.USER_DEFINED),
        (f"[PAD{SIZE + 4}]", TokenType.UNUSED),
        (f"[PAD{SIZE + 5}]", TokenType.UNUSED),
    ]
    with Model.load(path, threads=1) as model:
        tokens = model.tokenize("<|user|>a smile")
        assert tokens == [SIZE, TOKENS.index("a"), TOKENS.index("Ġ"), SIZE + 3]
        assert model.detokenize(tokens) == "a smile"


def test_added_token_without_a_row_is_plain_text(built: Built) -> None:
    path = built("added tokens beyond the embedding")[1]
    assert tokens_of(path)[END:] == [(END_OF_TEXT, TokenType.CONTROL), ("<|user|>", TokenType.CONTROL)]
    with Model.load(path, threads=1) as model:
        assert [TOKENS[token] for token in model.tokenize("smile")] == list("smile")


def test_minimal_tokenizer_files(built: Built) -> None:
    rest = {"config.json", "model.safetensors", "out"}
    assert {path.name for path in built("tokenizer.json only")[0].iterdir()} == {"tokenizer.json"} | rest
    files = {"vocab.json", "merges.txt"} | rest
    assert {path.name for path in built("vocab.json and merges.txt only")[0].iterdir()} == files


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_large_embedding_is_read_in_parts(dtype: Any, tmp_path: Path) -> None:
    """2.6 million weights, read some rows at a time, in rows of a size that is not a multiple of a power of 2."""
    folder = make_checkpoint(
        tmp_path / "model", layers=1, width=60, vocabulary=43_211, dtype=dtype, head="untied", context=8
    )
    stored, ours = read_weights(folder), from_gguf(converted(folder)).weights
    np.testing.assert_array_equal(ours["token_embd.weight"], stored["wte.weight"].astype(np.float32))
    np.testing.assert_array_equal(ours["output.weight"], stored["lm_head.weight"].astype(np.float32))
    np.testing.assert_array_equal(ours["blk.0.ffn_down.weight"], stored["h.0.mlp.c_proj.weight"].T.astype(np.float32))


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("shards", [1, 3])
def test_f32_weights_are_bit_identical(dtype: Any, shards: int, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", dtype=dtype, shards=shards)
    stored, ours = read_weights(folder), from_gguf(converted(folder), np.float64).weights
    np.testing.assert_array_equal(ours["token_embd.weight"], stored["wte.weight"])
    np.testing.assert_array_equal(ours["blk.1.attn_qkv.weight"], stored["h.1.attn.c_attn.weight"].T)
    np.testing.assert_array_equal(ours["blk.0.ffn_down.bias"], stored["h.0.mlp.c_proj.bias"])


@pytest.mark.parametrize("n_head", [None, 6])
def test_num_attention_heads_alias(n_head: int | None, tmp_path: Path) -> None:
    """`num_attention_heads` is Transformers' alias of n_head, which no shape reveals."""
    config = {"n_head": n_head, "num_attention_heads": 4}
    folder = make_checkpoint(tmp_path / "model", width=48, config=config)
    expected = forward(folder, TEXT, n_head=4).logits
    refused, difference = "", np.inf
    try:
        difference = relative(from_gguf(converted(folder), np.float64).logits(TEXT), expected)
    except CheckpointError as error:
        refused = error.message
    assert difference < 1e-9 or "num_attention_heads" in refused


def test_output_matrix_that_differs_in_one_weight_is_kept(tmp_path: Path) -> None:
    def touch(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"][SIZE - 1, 63] += 0.5
        write_weights(folder, tensors)

    folder = Layout({"head": "tied"}, touch).make(tmp_path / "model")
    path = converted(folder)
    assert "output.weight" in read_header(path).tensors
    assert relative(from_gguf(path, np.float64).logits(TEXT), forward(folder, TEXT).logits) < 1e-9


def refusal(folder: Path) -> str:
    """The message of a failed conversion, into a new folder and into one with files."""
    kept = folder / "full" / "kept.txt"
    kept.parent.mkdir()
    kept.write_text("mine")
    for output in (folder / "new", kept.parent):
        with pytest.raises(CheckpointError) as caught:
            convert(str(folder), type=["F32", "Q8_0"], output=output, threads=1)
    assert not (folder / "new").exists()
    assert list(kept.parent.iterdir()) == [kept]
    return caught.value.message


@pytest.mark.parametrize("activation", ["relu", "silu", "swish", "tanh", "quick_gelu", "GELU_NEW", "", 7, None])
def test_other_activations_are_refused(activation: Any, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    set_config(folder, activation_function=activation)
    message = refusal(folder)
    assert f"activation_function {activation!r}" in message
    assert "gelu_new, gelu_fast, gelu_pytorch_tanh" in message


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"tie_word_embeddings": False}, "'lm_head.weight'"),
        ({"tie_word_embeddings": False, "architectures": ["GPT2Model"]}, "'lm_head.weight'"),
        ({"model_type": "gpt_neo"}, "model_type 'gpt_neo'"),
        ({"model_type": "gpt_bigcode"}, "model_type 'gpt_bigcode'"),
        ({"model_type": "GPT2"}, "model_type 'GPT2'"),
        ({"model_type": None}, "model_type None"),
    ],
)
def test_other_model_types_are_refused(config: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in refusal(make_checkpoint(tmp_path / "model", config=config))


WEIGHTS = list(random_tensors(0, 1, 64, 256, 64, SIZE))


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize("name", WEIGHTS)
def test_every_missing_tensor_is_named(name: str, prefix: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", layers=1, prefix=prefix, changed={name: None})
    assert f"lacks the tensor {prefix + name!r}" in refusal(folder)


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_misshapen_tensor_is_named(name: str, tmp_path: Path) -> None:
    shape = list(random_tensors(0, 1, 64, 256, 64, SIZE)[name].shape)
    wrong = [*shape[:-1], shape[-1] + 1]
    folder = make_checkpoint(tmp_path / "model", layers=1, changed={name: np.zeros(wrong)})
    message = refusal(folder)
    assert f"'transformer.{name}'" in message
    assert f"{wrong}; config.json implies {shape}" in message


@pytest.mark.parametrize("name", ["attn.c_attn", "mlp.c_fc", "mlp.c_proj"])
def test_transposed_matrix_is_refused(name: str, tmp_path: Path) -> None:
    name = f"h.0.{name}.weight"
    data = random_tensors(0, 1, 64, 256, 64, SIZE)[name].T
    folder = make_checkpoint(tmp_path / "model", layers=1, changed={name: data})
    assert f"'transformer.{name}' has the shape {list(data.shape)}" in refusal(folder)


def test_misshapen_output_matrix_is_named(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", prefix="", changed={"lm_head.weight": np.ones((SIZE + 1, 64))})
    assert f"'lm_head.weight' has the shape [{SIZE + 1}, 64]" in refusal(folder)


def spoil(folder: Path, key: str, value: float) -> None:
    """Overwrites the middle value of a stored tensor, whatever its dtype."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    entry = json.loads(content[8 : 8 + length])[key]
    one = np.array([value])
    with np.errstate(over="ignore"):
        casts = {"F64": one, "F32": one.astype(np.float32), "F16": one.astype(np.float16), "BF16": bfloat16(one)}
    data = casts[entry["dtype"]].tobytes()
    middle = 8 + length + entry["data_offsets"][0] + len(data) * (int(np.prod(entry["shape"])) // 2)
    content[middle : middle + len(data)] = data
    path.write_bytes(content)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "key",
    [
        "transformer.wte.weight",
        "transformer.h.0.ln_1.weight",
        "transformer.h.0.attn.c_attn.bias",
        "transformer.h.0.mlp.c_proj.weight",
    ],
)
def test_non_finite_value_is_refused_in_every_dtype(key: str, value: float, dtype: Any, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", layers=1, dtype=dtype)
    spoil(folder, key, value)
    message = refusal(folder)
    assert f"tensor {key!r}" in message
    assert "not finite" in message


@pytest.mark.parametrize("key", [*WEIGHTS, "lm_head.weight"])
def test_nan_names_the_tensor(key: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", layers=1, prefix="", head="untied", config=UNSCALED)
    spoil(folder, key, np.nan)
    message = refusal(folder)
    assert f"tensor {key!r}" in message
    assert "not finite" in message


@pytest.mark.parametrize("key", ["transformer.wte.weight", "lm_head.weight"])
def test_nan_in_the_output_matrix_is_refused(key: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", layers=1, head="tied")
    spoil(folder, key, np.nan)
    assert f"tensor {key!r}" in refusal(folder)


def test_float64_overflow_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", layers=1, dtype="F64")
    spoil(folder, "transformer.wpe.weight", 1e300)
    assert "tensor 'transformer.wpe.weight'" in refusal(folder)


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F64"])
def test_folded_query_overflow_is_refused(dtype: Any, tmp_path: Path) -> None:
    key = "transformer.h.0.attn.c_attn.bias"
    big = np.full(192, 3e38)
    folder = make_checkpoint(
        tmp_path / "model", layers=1, dtype=dtype, config=UNSCALED, changed={"h.0.attn.c_attn.bias": big}
    )
    assert f"tensor {key!r}" in refusal(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_mask_buffers_are_ignored(value: float, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", layers=1, masks=True)
    spoil(folder, "transformer.h.0.attn.bias", value)
    path = converted(folder)
    assert np.isfinite(from_gguf(path).logits(TEXT)).all()


@pytest.mark.parametrize("number", [1, 2])
def test_missing_shard_is_named(number: int, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", shards=2)
    name = f"model-0000{number}-of-00002.safetensors"
    (folder / name).unlink()
    assert repr(name) in refusal(folder)
