"""Reads a GPT-2's sizes from `config.json`, or from the arguments in a file of nanoGPT."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.core.hyperparameters import LARGEST, Hyperparameters

_TANH_GELU = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_accurate", "gelu_python_tanh")
_EXACT_GELU = ("gelu", "gelu_python")
# Transformers' generic names (`GPT2Config.attribute_map`), which take precedence there
_ALIASES = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
}
CONFIG = "config.json"
_CONVERTERS = "llama.cpp's convert_hf_to_gguf.py converts the other architectures that llama.cpp has."
_log = logging.getLogger(__name__)


def config_of_nanogpt(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` of a model with nanoGPT's `model_args`. Its GELU is the exact one (`nn.GELU`)."""
    names = {"n_layer": "n_layer", "n_head": "n_head", "n_embd": "n_embd", "block_size": "n_positions"}
    names |= {"vocab_size": "vocab_size"}
    config = {ours: arguments[theirs] for theirs, ours in names.items() if theirs in arguments}
    return {"model_type": "gpt2", "activation_function": "gelu", **config}


def read_hyperparameters(config: dict[str, Any], where: str = CONFIG) -> Hyperparameters:
    """`where` is what states the config, for messages.

    Raises `CheckpointError` if it is not of a GPT-2, or not possible in GGUF.
    """
    _check_architecture(config)
    activation = config.get("activation_function", "gelu_new")
    if activation in _EXACT_GELU:
        _log.warning("%s states the exact GELU (%s); llama.cpp computes its tanh approximation", where, activation)
    elif activation not in _TANH_GELU:
        raise CheckpointError(
            f"{where} says activation_function {activation!r}; llama.cpp's GPT-2 computes only a tanh GELU "
            f"({', '.join(_TANH_GELU)}), so the converted model would be wrong",
            "If the model was trained with a GELU, name it there; a model with another function cannot be converted.",
        )
    if switch(config, "add_cross_attention", False):
        raise CheckpointError(f"{where} says add_cross_attention, which llama.cpp's GPT-2 lacks")
    width = _size(config, where, "n_embd", 768, LARGEST["width"])
    heads = _size(config, where, "n_head", 12, LARGEST["heads"])
    if width % heads:
        raise CheckpointError(
            f"{where}: n_embd {width} is not a multiple of n_head {heads}",
            "Set n_head to the number of heads that the model was trained with.",
        )
    epsilon = config.get("layer_norm_epsilon", 1e-5)
    if not isinstance(epsilon, int | float) or not 0 < np.float32(epsilon) < 1:  # float32 as in the file
        raise CheckpointError(f"{where}: layer_norm_epsilon is {epsilon!r}, not between 0 and 1")
    return Hyperparameters(
        layers=_size(config, where, "n_layer", 12, LARGEST["layers"]),
        width=width,
        heads=heads,
        inner=4 * width if config.get("n_inner") is None else _size(config, where, "n_inner", 0, LARGEST["inner"]),
        context=_size(config, where, "n_positions", config.get("n_ctx", 1024), LARGEST["context"]),
        vocabulary=_size(config, where, "vocab_size", 50257, LARGEST["vocabulary"]),
        norm_epsilon=float(epsilon),
    )


def switch(config: dict[str, Any], key: str, default: bool) -> bool:
    """A setting that is true or false. Raises `CheckpointError` for another value."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"config.json: {key} is {value!r}, not true or false", "Set it to one of the two.")
    return value


def _check_architecture(config: dict[str, Any]) -> None:
    kind, architectures = config.get("model_type"), config.get("architectures")
    if kind is None and isinstance(architectures, list) and any(str(one).startswith("GPT2") for one in architectures):
        return
    if kind != "gpt2":
        known = f" with architectures {architectures}" if kind is None and architectures else ""
        raise CheckpointError(
            f"config.json says model_type {kind!r}{known}; this tool converts GPT-2 models (model_type 'gpt2')",
            "If it is a GPT-2, set model_type to gpt2. " + _CONVERTERS if kind is None else _CONVERTERS,
        )


def _size(config: dict[str, Any], where: str, key: str, default: Any, largest: int) -> int:
    key = alias if (alias := _ALIASES.get(key, "")) in config else key
    value = config.get(key, default)
    if type(value) is not int or not 0 < value <= largest:
        raise CheckpointError(f"{where}: {key} is {value!r}, not an integer from 1 to {largest}")
    return value
