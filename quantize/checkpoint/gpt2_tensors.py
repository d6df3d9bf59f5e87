"""Maps a GPT-2 checkpoint to llama.cpp: hyperparameters from `config.json`, tensor names and layout.

llama.cpp's GPT-2 graph has a fixed tanh GELU and attention scale 1/sqrt(head width). Both of Transformers' attention
scale switches fold exactly into the query third of the fused QKV matrix; other activations are refused. `Conv1D`
weights are stored as (inputs, outputs), and are transposed as views, without a copy.
"""

import re
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.core.hyperparameters import LARGEST, Hyperparameters
from dgpt2_quant.core.quant_types import TensorType

from .folder import Checkpoint
from .rows import BlockReader, RowReader
from .safetensors_file import StoredTensor

_TANH_GELU = ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_accurate", "gelu_python_tanh")
# Transformers' generic names (`GPT2Config.attribute_map`), which take precedence there
_ALIASES = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
}
_BUFFERS = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # causal masks; `h.0.attn.c_attn.bias` is a weight
_OUTPUT = "lm_head.weight"
_OUTSIDE = {
    "output_norm.bias": "ln_f.bias",
    "output_norm.weight": "ln_f.weight",
    "position_embd.weight": "wpe.weight",
    "token_embd.weight": "wte.weight",
}
_IN_BLOCK = {
    "attn_norm": "ln_1",
    "attn_output": "attn.c_proj",
    "attn_qkv": "attn.c_attn",
    "ffn_down": "mlp.c_proj",
    "ffn_norm": "ln_2",
    "ffn_up": "mlp.c_fc",
}
_CONV1D = ("attn_output.weight", "attn_qkv.weight", "ffn_down.weight", "ffn_up.weight")


@dataclass(frozen=True)
class CheckpointTensor:
    """A checkpoint tensor under llama.cpp's name. `shape` is (outputs, inputs) for a matrix."""

    name: str
    shape: tuple[int, ...]
    _checkpoint: Checkpoint
    _key: str
    _query_scale: float = 1.0
    stored: TensorType | None = None  # no blocks that could be copied

    @property
    def label(self) -> str:
        """The name in messages: the checkpoint's, and llama.cpp's."""
        return f"{self._key!r} ({self.name})"

    def read(self) -> npt.NDArray[np.floating[Any]]:
        """Reads the tensor as float16, float32 or float64, as stored; a matrix may be a transposed view."""
        data = self._stored.read()
        if self.name.endswith(_CONV1D):
            data = data.T
        if self._query_scale != 1.0:
            data = data.astype(np.float32 if data.dtype == np.float16 else data.dtype)
            with np.errstate(over="ignore"):  # `quantize` refuses an infinity, with the tensor's name
                data[: self.shape[0] // 3] *= self._query_scale
        return data

    def reader(self) -> RowReader:
        """Reads rows, called with (first row, number of rows). A transposed matrix is read as a whole, at once."""
        if len(self.shape) == 2 and not self.name.endswith(_CONV1D):
            return self._stored.read
        data = self.read().reshape(-1, self.shape[-1])
        return lambda first, rows: data[first : first + rows]

    @property
    def _stored(self) -> StoredTensor:
        return self._checkpoint.tensors[self._key]

    def block_reader(self) -> BlockReader:
        raise TypeError(f"{self.label} is not stored in blocks")


def read_hyperparameters(config: dict[str, Any]) -> Hyperparameters:
    """Reads `config.json`. Raises `CheckpointError` if it is not a GPT-2, or not possible in GGUF."""
    kind = config.get("model_type")
    if kind != "gpt2":
        raise CheckpointError(
            f"config.json says model_type {kind!r}; this tool converts GPT-2 models (model_type 'gpt2')",
            "For other architectures use llama.cpp's convert_hf_to_gguf.py.",
        )
    activation = config.get("activation_function", "gelu_new")
    if activation not in _TANH_GELU:
        raise CheckpointError(
            f"config.json says activation_function {activation!r}; llama.cpp's GPT-2 computes only a tanh GELU "
            f"({', '.join(_TANH_GELU)}), so the converted model would be wrong"
        )
    if _switch(config, "add_cross_attention", False):
        raise CheckpointError("config.json says add_cross_attention, which llama.cpp's GPT-2 lacks")
    width = _size(config, "n_embd", 768, LARGEST["width"])
    heads = _size(config, "n_head", 12, LARGEST["heads"])
    if width % heads:
        raise CheckpointError(f"config.json: n_embd {width} is not a multiple of n_head {heads}")
    epsilon = config.get("layer_norm_epsilon", 1e-5)
    if not isinstance(epsilon, int | float) or not 0 < np.float32(epsilon) < 1:  # float32 as in the file
        raise CheckpointError(f"config.json: layer_norm_epsilon is {epsilon!r}, not between 0 and 1")
    return Hyperparameters(
        layers=_size(config, "n_layer", 12, LARGEST["layers"]),
        width=width,
        heads=heads,
        inner=4 * width if config.get("n_inner") is None else _size(config, "n_inner", 0, LARGEST["inner"]),
        context=_size(config, "n_positions", config.get("n_ctx", 1024), LARGEST["context"]),
        vocabulary=_size(config, "vocab_size", 50257, LARGEST["vocabulary"]),
        norm_epsilon=float(epsilon),
    )


def model_tensors(checkpoint: Checkpoint, sizes: Hyperparameters) -> list[CheckpointTensor]:
    """The model's tensors in file order; each must exist in the checkpoint, with the expected shape.

    Mask buffers are skipped, and so is an output matrix equal to the embedding (41 MB in DistilGPT2).
    Raises `CheckpointError` that names a missing, misshapen or unknown tensor.
    """
    prefix = "transformer." if any(key.startswith("transformer.") for key in checkpoint.tensors) else ""
    tied = _is_tied(checkpoint, f"{prefix}wte.weight")
    scales = _query_scales(checkpoint.config, sizes)
    tensors = []
    for name, shape in sizes.shapes(tied=tied).items():
        key = _checkpoint_key(name, prefix)
        stored = checkpoint.tensors.get(key)
        if stored is None:
            raise CheckpointError(
                f"{checkpoint.folder} lacks the tensor {key!r}, which its config.json implies",
                "Check n_layer, and that all shards exist.",
            )
        expected = tuple(reversed(shape)) if name.endswith(_CONV1D) else shape
        if stored.shape != expected:
            raise CheckpointError(
                f"tensor {key!r} has the shape {list(stored.shape)}; config.json implies {list(expected)}"
            )
        scale = scales[int(name.split(".")[1])] if ".attn_qkv." in name else 1.0
        tensors.append(CheckpointTensor(name, shape, checkpoint, key, scale))
    _refuse_unknown(checkpoint, {tensor._key for tensor in tensors}, prefix)
    return tensors


def _checkpoint_key(name: str, prefix: str) -> str:
    if name == "output.weight":
        return _OUTPUT
    if name in _OUTSIDE:
        return prefix + _OUTSIDE[name]
    _, number, part, kind = name.split(".")
    return f"{prefix}h.{number}.{_IN_BLOCK[part]}.{kind}"


def _is_tied(checkpoint: Checkpoint, embedding_key: str) -> bool:
    head, embedding = checkpoint.tensors.get(_OUTPUT), checkpoint.tensors.get(embedding_key)
    if head is None and not _switch(checkpoint.config, "tie_word_embeddings", True):
        raise CheckpointError(
            f"config.json says tie_word_embeddings false, but {checkpoint.folder} lacks the tensor {_OUTPUT!r}",
            "Check that all shards exist, or set tie_word_embeddings to true if the output matrix is the embedding.",
        )
    if head is None or embedding is None:
        return True
    if (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
        return False
    return bool(np.array_equal(head.read(), embedding.read()))


def _query_scales(config: dict[str, Any], sizes: Hyperparameters) -> list[float]:
    """The factor for each layer's queries that makes llama.cpp's fixed 1/sqrt(head width) correct."""
    unscaled = 1.0 if _switch(config, "scale_attn_weights", True) else sqrt(sizes.width // sizes.heads)
    by_layer = _switch(config, "scale_attn_by_inverse_layer_idx", False)
    return [unscaled / (layer + 1 if by_layer else 1) for layer in range(sizes.layers)]


def _refuse_unknown(checkpoint: Checkpoint, used: set[str], prefix: str) -> None:
    for key in checkpoint.tensors:
        if key not in used and key != _OUTPUT and not _BUFFERS.fullmatch(key.removeprefix(prefix)):
            raise CheckpointError(
                f"{checkpoint.folder} has the tensor {key!r}, which a GPT-2 language model lacks",
                "The weights of a classifier or an adapter cannot be converted.",
            )


def _size(config: dict[str, Any], key: str, default: Any, largest: int) -> int:
    key = alias if (alias := _ALIASES.get(key, "")) in config else key
    value = config.get(key, default)
    if type(value) is not int or not 0 < value <= largest:
        raise CheckpointError(f"config.json: {key} is {value!r}, not an integer from 1 to {largest}")
    return value


def _switch(config: dict[str, Any], key: str, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise CheckpointError(f"config.json: {key} is {value!r}, not true or false")
    return value
