"""Configs and tensors that cannot be converted are refused; `test_layouts.py` has those that can."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.quantize.convert import convert

from ...checkpoints import TOKENS, make_checkpoint


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        convert(str(folder), type=["F32"], output=folder / "out")
    assert not (folder / "out").exists()
    return caught.value.message


@pytest.mark.parametrize(
    ("config", "words"),
    [
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
        ({"n_layer": 3}, ["2 blocks of tensors, fewer than n_layer 3"]),
        ({"n_layer": 1}, ["2 blocks of tensors, more than n_layer 1"]),
        ({"n_inner": 128}, ["'transformer.h.0.mlp.c_proj.weight'", "[256, 64]", "[128, 64]"]),
        ({"n_positions": 32}, ["'transformer.wpe.weight'", "[64, 64]", "[32, 64]"]),
        ({"vocab_size": 300}, ["'transformer.wte.weight'", f"[{len(TOKENS)}, 64]", "[300, 64]"]),
    ],
)
def test_unsupported_config_is_refused(config: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    message = refusal(make_checkpoint(tmp_path / "model", config=config))
    assert all(word in message for word in words), message


@pytest.mark.parametrize("name", ["scorer.weight", "h.0.attn.c_attn.lora_A", "h.0.attn.bias.weight"])
def test_unknown_tensor_is_named(name: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", changed={name: np.zeros((2, 64))})
    assert f"'transformer.{name}'" in refusal(folder)
