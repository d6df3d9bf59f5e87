"""GPT-2's forward pass from a checkpoint folder, in float64, written after Transformers' `modeling_gpt2.py`.

It shares no code with the package: the safetensors library reads the weights (BF16, which NumPy lacks, is decoded
here), `Conv1D` weights stay (inputs, outputs), and every switch of `config.json` is where Transformers has it. The
conversion, which transposes, renames, drops and folds tensors, must give the same result.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

Array = npt.NDArray[np.float64]

# gelu_fast has the constant as a literal of ten digits
_ROOTS = {"gelu_new": np.sqrt(2 / np.pi), "gelu_pytorch_tanh": np.sqrt(2 / np.pi), "gelu_fast": 0.7978845608}


class Output(NamedTuple):
    """`GPT2Model`'s last_hidden_state and `GPT2LMHeadModel`'s logits, one row per position."""

    hidden: Array
    logits: Array


def forward(folder: Path, tokens: Sequence[int], **config: Any) -> Output:
    """Computes the checkpoint's outputs; `config` overrides its `config.json`."""
    config = {**json.loads((folder / "config.json").read_bytes()), **config}
    weights = read_weights(folder)
    heads, epsilon = config["n_head"], config.get("layer_norm_epsilon", 1e-5)
    root = _ROOTS[config.get("activation_function", "gelu_new")]
    visible = np.tri(len(tokens), dtype=bool)
    x = weights["wte.weight"][list(tokens)] + weights["wpe.weight"][: len(tokens)]
    for layer in range(config["n_layer"]):
        block = {name.removeprefix(f"h.{layer}."): data for name, data in weights.items()}
        query, key, value = np.split(_conv1d(block, "attn.c_attn", _norm(block, "ln_1", x, epsilon)), 3, axis=1)
        width = query.shape[1] // heads
        scale = width**-0.5 if config.get("scale_attn_weights", True) else 1.0
        if config.get("scale_attn_by_inverse_layer_idx", False):
            scale /= layer + 1
        mixed = np.empty_like(x)
        for columns in (slice(head * width, (head + 1) * width) for head in range(heads)):
            scores = np.where(visible, query[:, columns] @ key[:, columns].T * scale, -np.inf)
            shares = np.exp(scores - scores.max(1, keepdims=True))
            mixed[:, columns] = shares / shares.sum(1, keepdims=True) @ value[:, columns]
        x = x + _conv1d(block, "attn.c_proj", mixed)
        inner = _conv1d(block, "mlp.c_fc", _norm(block, "ln_2", x, epsilon))
        inner = 0.5 * inner * (1 + np.tanh(root * (inner + 0.044715 * inner**3)))
        x = x + _conv1d(block, "mlp.c_proj", inner)
    hidden = _norm(weights, "ln_f", x, epsilon)
    return Output(hidden, hidden @ weights.get("lm_head.weight", weights["wte.weight"]).T)


def read_weights(folder: Path) -> dict[str, Array]:
    """All tensors of all files by name without `transformer.`, in float64."""
    weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "numpy") as file:
            for name in file.keys():  # noqa: SIM118 - it is no dictionary
                is_bfloat16 = file.get_slice(name).get_dtype() == "BF16"
                data = _read_bfloat16(path, name) if is_bfloat16 else file.get_tensor(name)
                weights[name.removeprefix("transformer.")] = data.astype(np.float64)
    return weights


def _read_bfloat16(path: Path, name: str) -> npt.NDArray[np.float32]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    entry = json.loads(content[8 : 8 + length])[name]
    begin, end = (8 + length + offset for offset in entry["data_offsets"])
    halves = np.frombuffer(content[begin:end], np.uint8).reshape(-1, 2)
    wide = np.zeros((len(halves), 4), np.uint8)
    wide[:, 2:] = halves  # little-endian: the upper half of a float32 comes last
    return wide.view(np.float32).reshape(entry["shape"])


def _conv1d(weights: Mapping[str, Array], name: str, x: Array) -> Array:
    return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _norm(weights: Mapping[str, Array], name: str, x: Array, epsilon: float) -> Array:
    standard = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + epsilon)
    return standard * weights[f"{name}.weight"] + weights[f"{name}.bias"]
