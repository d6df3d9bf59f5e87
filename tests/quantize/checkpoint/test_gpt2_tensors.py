"""Mapping a checkpoint's names, shapes and switches to llama.cpp, compared with an independent forward pass.

`forward` is written after Transformers' `modeling_gpt2.py`, from the tensors, in float64, with its switches
in the same places: the conversion, which folds some into weights, must give the same result.
"""

from collections.abc import Mapping
from math import pi, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.quantize.calibration.numpy_gpt2 import from_checkpoint, from_gguf
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model

from ..checkpoints import TOKENS, make_checkpoint, random_tensors, read_tensors

Matrix = npt.NDArray[np.float64]
TEXT = [40, 261, 7, 99, 258, 258, 12, 0, 33, 71]


def forward(weights: Mapping[str, npt.NDArray[Any]], config: Mapping[str, Any], tokens: list[int]) -> Matrix:
    w = {name: data.astype(np.float64) for name, data in weights.items()}
    heads = config.get("n_head", 4)

    def norm(x: Matrix, name: str) -> Matrix:
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def conv1d(x: Matrix, name: str) -> Matrix:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["wte.weight"][tokens] + w["wpe.weight"][: len(tokens)]
    for layer in range(sum(name.endswith("ln_1.weight") for name in w)):
        parts = np.split(conv1d(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn"), 3, axis=-1)
        mixed = []
        for query, key, value in zip(*(np.split(part, heads, axis=-1) for part in parts), strict=True):
            scores = query @ key.T
            if config.get("scale_attn_weights", True):
                scores = scores / sqrt(value.shape[-1])
            if config.get("scale_attn_by_inverse_layer_idx", False):
                scores = scores / (layer + 1)
            scores[np.triu_indices(len(tokens), 1)] = -np.inf
            weight = np.exp(scores - scores.max(-1, keepdims=True))
            mixed.append(weight / weight.sum(-1, keepdims=True) @ value)
        x = x + conv1d(np.concatenate(mixed, -1), f"h.{layer}.attn.c_proj")
        inner = conv1d(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc")
        inner = 0.5 * inner * (1 + np.tanh(sqrt(2 / pi) * (inner + 0.044715 * inner**3)))
        x = x + conv1d(inner, f"h.{layer}.mlp.c_proj")
    return norm(x, "ln_f") @ w.get("lm_head.weight", w["wte.weight"]).T


def converted(folder: Path) -> Path:
    (file,) = convert(str(folder), type=["F32"], output=folder)
    return Path(file.path)


def refusal(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        convert(str(folder), type=["F32"], output=folder / "out")
    assert not (folder / "out").exists()
    return caught.value


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"scale_attn_by_inverse_layer_idx": True},
        {"scale_attn_weights": False},
        {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
    ],
    ids=["as GPT-2", "by layer", "unscaled", "both"],
)
@pytest.mark.parametrize("shape", [{}, {"width": 96, "heads": 4, "inner": 56, "layers": 3, "head": "untied"}])
def test_converted_model_computes_the_same(switches: dict[str, Any], shape: dict[str, Any], tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", config=switches, masks=True, **shape)
    weights = read_tensors(folder)
    expected = forward(weights, switches, TEXT)
    path = converted(folder)
    folded = 1e-6 if switches else 1e-9  # a scale is folded into float32 weights
    np.testing.assert_allclose(from_gguf(path, np.float64).logits(TEXT), expected, rtol=0, atol=2e-5)
    np.testing.assert_allclose(from_checkpoint(folder, np.float64).logits(TEXT), expected, rtol=0, atol=folded)
    with Model.load(path) as model:
        # llama.cpp keeps keys and values in F16
        np.testing.assert_allclose(model.logits(TEXT), expected, rtol=0, atol=2e-2)
    if switches:
        assert np.abs(forward(weights, {}, TEXT) - expected).max() > 0.1, "the switches would not be noticed"


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F64"])
def test_query_scale_is_folded_in_float32(dtype: Any, tmp_path: Path) -> None:
    switches = {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False}
    folder = make_checkpoint(tmp_path / "model", config=switches, layers=3, dtype=dtype)
    same = make_checkpoint(tmp_path / "same", config={}, layers=3, dtype=dtype)
    weights = from_checkpoint(same, np.float64).weights
    names = {"token_embd.weight": "wte.weight", "position_embd.weight": "wpe.weight", "output_norm": "ln_f"}
    names |= {"blk.": "h.", "attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj"}
    names |= {"ffn_norm": "ln_2", "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
    theirs = {}
    for name, data in weights.items():
        is_conv1d = data.ndim == 2 and name.startswith("blk.")
        for ours, hub in names.items():
            name = name.replace(ours, hub)
        theirs[name] = data.T if is_conv1d else data
    logits = from_gguf(converted(folder), np.float64).logits(TEXT)
    np.testing.assert_allclose(logits, forward(theirs, switches, TEXT), rtol=0, atol=2e-5)


def test_layout_does_not_change_tensors(tmp_path: Path) -> None:
    layouts: dict[str, dict[str, Any]] = {
        "plain": {},
        "bare names": {"prefix": ""},
        "mask buffers": {"masks": True},
        "mask buffers, bare": {"masks": True, "prefix": ""},
        "head stored again": {"head": "tied"},
        "head stored again, bare": {"head": "tied", "prefix": "", "masks": True},
        "shards": {"shards": 3, "masks": True, "head": "tied"},
        "float64": {"dtype": "F64"},
        "n_ctx as well": {"config": {"n_ctx": 64}},
        "n_ctx only": {"config": {"n_positions": None, "n_ctx": 64}},
        "n_inner null": {"config": {"n_inner": None}},
        "n_inner said": {"inner": 256},
        "gelu by another name": {"config": {"activation_function": "gelu_pytorch_tanh"}},
    }
    seen = {}
    for name, options in layouts.items():
        path = converted(make_checkpoint(tmp_path / name, **options))
        header, data = read_header(path), path.read_bytes()
        tensors = {t.name: (t.shape, data[t.start : t.start + t.nbytes]) for t in header.tensors.values()}
        sizes = {key: value for key, value in header.metadata.items() if key.startswith(("gpt2.", "tokenizer."))}
        seen[name] = (tensors, sizes)
    for name, content in seen.items():
        assert content == seen["plain"], name
    tensors, sizes = seen["plain"]
    assert "output.weight" not in tensors
    assert tensors["blk.1.attn_qkv.bias"][0] == (192,)
    assert tensors["blk.1.ffn_up.weight"][0] == (256, 64)
    assert (sizes["gpt2.context_length"], sizes["gpt2.feed_forward_length"]) == (64, 256)


def test_attention_biases_are_not_dropped_as_masks(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", masks=True)
    weights = from_gguf(converted(folder), np.float32).weights
    stored = read_tensors(folder)
    np.testing.assert_array_equal(weights["blk.1.attn_qkv.bias"], stored["h.1.attn.c_attn.bias"])
    np.testing.assert_array_equal(weights["blk.0.attn_qkv.weight"], stored["h.0.attn.c_attn.weight"].T)
    assert len(weights) == 4 + 2 * 12


def test_untied_output_matrix_is_kept(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", head="untied")
    weights = from_gguf(converted(folder), np.float32).weights
    np.testing.assert_array_equal(weights["output.weight"], read_tensors(folder)["lm_head.weight"])
    assert not np.array_equal(weights["output.weight"], weights["token_embd.weight"])


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"activation_function": "relu"}, ["activation_function 'relu'", "gelu_new"]),
        ({"activation_function": "gelu"}, ["activation_function 'gelu'"]),
        ({"model_type": "gpt_neo"}, ["model_type 'gpt_neo'", "'gpt2'"]),
        ({"model_type": None}, ["model_type None"]),
        ({"add_cross_attention": True}, ["add_cross_attention"]),
        ({"n_head": 5}, ["n_embd 64", "n_head 5"]),
        ({"n_layer": 0}, ["n_layer is 0"]),
        ({"n_layer": 2.0}, ["n_layer is 2.0"]),
        ({"n_layer": 1_000_000_000}, ["n_layer is 1000000000", "512"]),
        ({"n_embd": "64"}, ["n_embd is '64'"]),
        ({"n_inner": -1}, ["n_inner is -1"]),
        ({"n_positions": True}, ["n_positions is True"]),
        ({"vocab_size": 2**40}, ["vocab_size is 1099511627776"]),
        ({"layer_norm_epsilon": 0}, ["layer_norm_epsilon is 0"]),
        ({"layer_norm_epsilon": "1e-5"}, ["layer_norm_epsilon is '1e-5'"]),
        ({"n_layer": 3}, ["'transformer.h.2.ln_1.bias'", "config.json implies"]),
        ({"n_layer": 1}, ["'transformer.h.1.", "a GPT-2 language model lacks"]),
        ({"n_inner": 128}, ["'transformer.h.0.mlp.c_proj.weight'", "[256, 64]", "[128, 64]"]),
        ({"n_positions": 32}, ["'transformer.wpe.weight'", "[64, 64]", "[32, 64]"]),
        ({"vocab_size": 300}, ["'transformer.wte.weight'", f"[{len(TOKENS)}, 64]", "[300, 64]"]),
    ],
)
def test_unsupported_config_is_refused(config: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    message = refusal(make_checkpoint(tmp_path / "model", config=config)).message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"h.1.mlp.c_proj.bias": None}, ["lacks the tensor 'transformer.h.1.mlp.c_proj.bias'"]),
        ({"ln_f.weight": None}, ["lacks the tensor 'transformer.ln_f.weight'"]),
        ({"wpe.weight": None}, ["lacks the tensor 'transformer.wpe.weight'"]),
        ({"wte.weight": None}, ["lacks the tensor 'transformer.wte.weight'"]),
        ({"h.0.attn.c_attn.weight": np.zeros((192, 64))}, ["h.0.attn.c_attn.weight", "[192, 64]", "[64, 192]"]),
        ({"ln_f.bias": np.zeros((64, 1))}, ["ln_f.bias", "[64, 1]", "[64]"]),
        ({"score.weight": np.zeros((2, 64))}, ["'transformer.score.weight'"]),
        ({"h.0.attn.c_attn.lora_A": np.zeros((2, 64))}, ["'transformer.h.0.attn.c_attn.lora_A'"]),
        ({"h.0.attn.bias.weight": np.zeros((2, 64))}, ["'transformer.h.0.attn.bias.weight'"]),
    ],
)
def test_missing_misshapen_or_unknown_tensor_is_named(
    changed: dict[str, npt.NDArray[Any] | None], words: list[str], tmp_path: Path
) -> None:
    message = refusal(make_checkpoint(tmp_path / "model", changed=changed)).message
    assert all(word in message for word in words), message


def test_misshapen_output_matrix_is_refused(tmp_path: Path) -> None:
    tensors = random_tensors(0, 2, 64, 256, 64, len(TOKENS))
    folder = make_checkpoint(tmp_path / "model", prefix="", changed={"lm_head.weight": tensors["wte.weight"][:-1]})
    assert f"'lm_head.weight' has the shape [{len(TOKENS) - 1}, 64]" in refusal(folder).message
