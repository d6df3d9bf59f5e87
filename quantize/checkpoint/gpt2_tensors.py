"""A GPT-2 checkpoint in llama.cpp's terms: where each tensor is, and what must be done to it.

llama.cpp's GPT-2 graph has a tanh GELU and a 1/sqrt(head width) built in. Both of Transformers' attention scale
switches fold exactly into the query third of the fused projection. `Conv1D` weights are stored (inputs, outputs) and
transposed, as views; nanoGPT's `Linear` ones are stored (outputs, inputs), and its biases can be absent.
"""

import logging
from collections.abc import Container, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.core.quant_types import TensorType

from .config import switch
from .folder import Checkpoint
from .heads import CLASSES, HEAD_TENSORS
from .layouts import NamedTensors, missing_tensor
from .lora import MERGE, Adapter, replacement
from .rows import BlockReader, RowReader
from .safetensors_file import StoredTensor

_MATRICES = ("attn_output.weight", "attn_qkv.weight", "ffn_down.weight", "ffn_up.weight")
# TRL's value heads, which only training uses
_TRAINING_HEADS = ("v_head.", "value_head.", "q_head.", "reward_head.")
# which key of config.json states an axis of a tensor; axes as in (outputs, inputs)
_AXES = {
    "token_embd.weight": ("vocab_size", "n_embd"),
    "output.weight": ("vocab_size", "n_embd"),
    "position_embd.weight": ("n_positions", "n_embd"),
    "ffn_up.weight": ("n_inner", "n_embd"),
    "ffn_down.weight": ("n_embd", "n_inner"),
    "norm.weight": ("n_embd",),
    "norm.bias": ("n_embd",),
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointTensor:
    """A checkpoint tensor under llama.cpp's name. `shape` is (outputs, inputs) for a matrix."""

    name: str
    shape: tuple[int, ...]
    _key: str  # the layout's name, without prefix
    _shown: str  # the name in the files
    _stored: StoredTensor | None  # None for a bias that the checkpoint does without
    _transposed: bool = False
    _query_scale: float = 1.0
    _adapters: Sequence[Adapter] = ()
    stored: TensorType | None = None  # no blocks that could be copied

    @property
    def label(self) -> str:
        """The name in messages: the checkpoint's, and llama.cpp's."""
        return f"{self._shown!r} ({self.name})"

    def read(self) -> npt.NDArray[np.floating[Any]]:
        """Reads the tensor as float16, float32 or float64, as stored; a matrix may be a transposed view."""
        data = np.zeros(self.shape, np.float32) if self._stored is None else self._stored.read()
        if self._transposed:
            data = data.T
        for adapter in self._adapters:
            data = adapter.merged(self._key, data)
        if self._query_scale != 1.0:
            data = data.astype(np.float32 if data.dtype == np.float16 else data.dtype)
            with np.errstate(over="ignore"):  # `quantize` refuses an infinity, with the tensor's name
                data[: self.shape[0] // 3] *= self._query_scale
        return data

    def reader(self) -> RowReader:
        """Reads rows, called with (first row, number of rows). What must be changed is read as a whole, at once."""
        changed = self._transposed or self._adapters or self._query_scale != 1.0
        if len(self.shape) == 2 and not changed and type(self._stored) is StoredTensor:  # not a strided one
            return self._stored.read
        data = self.read().reshape(-1, self.shape[-1])
        return lambda first, rows: data[first : first + rows]

    def block_reader(self) -> BlockReader:
        raise TypeError(f"{self.label} is not stored in blocks")


def model_tensors(
    checkpoint: Checkpoint, named: NamedTensors, sizes: Hyperparameters, adapters: Sequence[Adapter] = ()
) -> list[CheckpointTensor]:
    """The model's tensors in file order, with the adapters merged in their order.

    With adapters, embedding and output matrix differ as soon as one of the two is changed, as PEFT computes them.
    Mask buffers are skipped, and so is an output matrix equal to the embedding (41 MB in DistilGPT2).
    Raises `CheckpointError` that names a missing, misshapen or unknown tensor.
    """
    _check_layers(checkpoint, named, sizes)
    conv1d = _is_conv1d(named, sizes)
    scales = _query_scales(checkpoint.config, sizes)
    by_key = {named.layout.key(name): shape for name, shape in sizes.shapes(tied=False).items()}
    for adapter in adapters:
        adapter.check(by_key, HEAD_TENSORS)
    tied = _is_tied(checkpoint, named, adapters)
    tensors = []
    for name, shape in sizes.shapes(tied=tied).items():
        key = named.layout.key(name)
        source = named.layout.key("token_embd.weight") if name == "output.weight" and key not in named.tensors else key
        transposed = conv1d and name.endswith(_MATRICES)
        stored = replacement(adapters, key)
        if stored is not None and stored.shape != (shape[::-1] if transposed else shape):
            raise CheckpointError(
                f"{stored.path} replaces {key!r} by a tensor of the shape {list(stored.shape)}; config.json of the base"
                f" model implies {list(shape[::-1] if transposed else shape)}",
                MERGE,
            )
        if stored is None and (stored := _find(checkpoint, named, source, name, by_key)) is not None:
            _check_shape(named, name, source, shape, stored, transposed, checkpoint.stated_in)
        scale = scales[int(name.split(".")[1])] if ".attn_qkv." in name else 1.0
        changing = [adapter for adapter in adapters if adapter.updates_tensor(key)]
        tensors.append(CheckpointTensor(name, shape, key, named.shown(source), stored, transposed, scale, changing))
    _check_unknown(checkpoint, named, {tensor._key for tensor in tensors})
    return tensors


def _check_layers(checkpoint: Checkpoint, named: NamedTensors, sizes: Hyperparameters) -> None:
    start, _, _ = named.layout.block.partition("{}")
    numbers = [key.removeprefix(start).split(".")[0] for key in named.tensors if key.startswith(start)]
    layers = 1 + max((int(number) for number in numbers if number.isdecimal()), default=-1)
    if layers != sizes.layers:
        where = checkpoint.stated_in
        what = "more" if layers > sizes.layers else "fewer"
        hint = f"If the weights are right, set n_layer to {layers} in {where}."
        if layers < sizes.layers:
            hint = f"Save the weights again if blocks are missing; if not, set n_layer to {layers} in {where}."
        raise CheckpointError(
            f"{checkpoint.folder} has {layers} blocks of tensors, {what} than n_layer {sizes.layers} in {where}",
            hint,
        )


def _is_conv1d(named: NamedTensors, sizes: Hyperparameters) -> bool:
    """Whether matrices are stored (inputs, outputs), by most of those that are not square.

    The fused projections never are. A matrix that disagrees is refused later.
    """
    votes = 0
    for name, shape in sizes.shapes(tied=True).items():
        stored = named.tensors.get(named.layout.key(name))
        if name.endswith(_MATRICES) and stored is not None and shape != shape[::-1]:
            votes += (stored.shape == shape[::-1]) - (stored.shape == shape)
    return votes >= 0


def _find(
    checkpoint: Checkpoint, named: NamedTensors, key: str, name: str, known: Container[str]
) -> StoredTensor | None:
    """The tensor; None for a bias that no layer of its kind has."""
    if (stored := named.tensors.get(key)) is not None:
        if 0 in stored.shape:
            raise CheckpointError(
                f"tensor {named.original[key]!r} of {checkpoint.folder} is empty: its weights are in the"
                " files of DeepSpeed's ZeRO-3",
                f"Put them together: `python zero_to_fp32.py {checkpoint.folder} {checkpoint.folder}`.",
            )
        return stored
    norms = ".ln_" if "norm" in name else ".c_"
    if name.endswith(".bias") and not any(other.endswith(".bias") and norms in f".{other}" for other in named.tensors):
        return None
    strange = [other for other in named.tensors if other not in known and not named.layout.buffers.fullmatch(other)]
    raise missing_tensor(checkpoint.folder, named.shown(key), named.original[strange[0]] if strange else None)


def _check_shape(
    named: NamedTensors,
    name: str,
    key: str,
    shape: tuple[int, ...],
    stored: StoredTensor,
    transposed: bool,
    where: str,
) -> None:
    found = tuple(reversed(stored.shape)) if transposed else stored.shape
    if found == shape:
        return
    hint = ""
    expected = tuple(reversed(shape)) if transposed else shape
    axes = next((axes for ending, axes in _AXES.items() if name.endswith(ending)), None)
    if len(shape) == 2 and stored.shape == tuple(reversed(expected)):
        hint = "It is transposed compared with the model's other matrices."
    elif axes and len(found) == len(axes):
        differing = [(axis, is_) for axis, is_, wanted in zip(axes, found, shape, strict=True) if is_ != wanted]
        hint = " and ".join(f"{axis} to {is_}" for axis, is_ in differing)
        hint = f"If the weights are right, set {hint} in {where}."
    raise CheckpointError(
        f"tensor {named.shown(key)!r} has the shape {list(stored.shape)}; {where} implies {list(expected)}",
        hint,
    )


def _is_tied(checkpoint: Checkpoint, named: NamedTensors, adapters: Sequence[Adapter]) -> bool:
    head_key, embedding_key = named.layout.head, named.layout.key("token_embd.weight")
    head, embedding = named.tensors.get(head_key), named.tensors.get(embedding_key)
    is_classifier = not HEAD_TENSORS.isdisjoint(named.tensors)  # most classifiers have no output matrix
    if head is None and not is_classifier and not switch(checkpoint.config, "tie_word_embeddings", True):
        raise CheckpointError(
            f"config.json says tie_word_embeddings false, but {checkpoint.folder} lacks the tensor {head_key!r}",
            "Check that all shards exist, or set tie_word_embeddings to true if the output matrix is the embedding.",
        )
    if any(adapter.updates_tensor(key) for adapter in adapters for key in (head_key, embedding_key)):
        return False
    if any(adapter.changes(key) for adapter in adapters for key in (head_key, embedding_key)):
        head = replacement(adapters, head_key) or head or embedding
        embedding = replacement(adapters, embedding_key) or embedding
    if head is None or embedding is None:
        return True
    if (head.dtype, head.shape) != (embedding.dtype, embedding.shape):
        return False
    if (head.path, head.start) == (embedding.path, embedding.start):
        return True
    return bool(np.array_equal(head.read(), embedding.read()))


def _query_scales(config: dict[str, Any], sizes: Hyperparameters) -> list[float]:
    """The factor for each layer's queries that makes llama.cpp's fixed 1/sqrt(head width) correct."""
    unscaled = 1.0 if switch(config, "scale_attn_weights", True) else sqrt(sizes.width // sizes.heads)
    by_layer = switch(config, "scale_attn_by_inverse_layer_idx", False)
    return [unscaled / (layer + 1 if by_layer else 1) for layer in range(sizes.layers)]


def _check_unknown(checkpoint: Checkpoint, named: NamedTensors, used: set[str]) -> None:
    dropped = []
    for key in named.tensors:
        if key in used or key in HEAD_TENSORS or key == named.layout.head or named.layout.buffers.fullmatch(key):
            continue
        if key.startswith(_TRAINING_HEADS):
            dropped.append(key)
            continue
        raise CheckpointError(
            f"{checkpoint.folder} has the tensor {named.original[key]!r}, which neither a GPT-2 nor a head that can be"
            " converted has",
            f"Save the model without it. Heads that can be converted: {', '.join(one.name for one in CLASSES)}.",
        )
    if dropped:
        _log.warning(
            "%s: a value head, which only training uses, is left out: %s", checkpoint.folder, ", ".join(dropped)
        )
