"""Sensitivity: the KL divergence of the model's predictions when a single matrix is quantized, by type.

It is measured in NumPy on held-back text. The model is computed up to the matrix once, and from there again for each
type, with weights rounded as in `lean` without the sweeps, and activations rounded as in llama.cpp. Results are saved
after every matrix, so that an interrupted search continues and another target measures nothing again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from dgpt2_quant.core.ggml import dequantize
from dgpt2_quant.core.parallel import by_rows, in_parallel, pieces
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.calibration.numpy_gpt2 import Reference
from dgpt2_quant.quantize.lean.activation_rounding import round_activations
from dgpt2_quant.quantize.lean.gptq import factor, quantize_rows, round_matrix
from dgpt2_quant.quantize.lean.layers import QuantizedTensor
from dgpt2_quant.quantize.lean.layerwise import Array, LayerwiseForward
from dgpt2_quant.quantize.lean.model import LeanModel

Effects = dict[str, dict[str, float]]
"""The loss in nats per token, by the names of matrix and type. `LOOKUP` and `HEAD` are the embedding's two uses."""

LOOKUP, HEAD = "lookup", "head"
_POSITIONS = 128  # whose predictions are computed at once


class Predictions(LayerwiseForward):
    """The trained model on a text: its states before every half block, and the loss of changed states."""

    def __init__(self, reference: Reference, chunks: Sequence[Sequence[int]]) -> None:
        super().__init__(reference, chunks)
        self.states = [self.embed(reference.weights)]
        for half in range(self.halves):
            self.states.append(self.half_block(half, self.states[-1]))
        head = reference.weights[reference.head]
        self._wanted = by_rows(lambda x: _log_softmax(x @ head.T), self._scored(self.states[-1]), len(head), _POSITIONS)

    def loss_from(self, half: int, x: Array) -> float:
        """The loss of a state before a half block, with the rest of the model unchanged."""
        for following in range(half, self.halves):
            x = self.half_block(following, x)
        return self.loss(x)

    def loss(self, x: Array, head: QuantizedTensor | None = None) -> float:
        """The mean KL divergence in nats, from the last state, over the second half of each chunk."""
        hidden = self._scored(x)
        kind = head.tensor_type if head else TensorType.F32
        matrix = head.values if head else self.reference.weights[self.reference.head]

        def divergence(piece: slice) -> float:
            wanted = self._wanted[piece]
            found = _log_softmax(round_activations(hidden[piece], kind) @ matrix.T)
            return float(np.einsum("ij,ij->i", np.exp(wanted), wanted - found).sum(dtype=np.float64))

        return sum(in_parallel(divergence, pieces(len(hidden), _POSITIONS))) / len(hidden)

    def _scored(self, x: Array) -> Array:
        """The final norm's outputs for the second half of each chunk."""
        chunks = x.reshape(self.count, self.length, -1)[:, self.length // 2 :]
        return self.reference.norm("output_norm", chunks.reshape(-1, x.shape[1]))


def measure_effects(
    model: LeanModel,
    predictions: Predictions,
    types: Callable[[str], Sequence[TensorType]],
    known: Effects,
    keep: Callable[[Effects], None],
    progress: Progress | None = None,
) -> Effects:
    """Adds the missing `types` of each matrix to `known`; calls `keep` with it after each matrix."""
    names = [LOOKUP, HEAD, "position_embd.weight", *(["token_embd.weight"] if model.tied else [])]
    names += [f"blk.{b}.{m}.weight" for b in range(model.source.sizes.layers) for m in _MATRICES]
    forward = LayerwiseForward(model.reference, model.chunks)
    inputs = forward.inputs(forward.embed(model.reference.weights))
    for number, name in enumerate(names):
        of_block = next(inputs) if name.startswith("blk.") else None
        lacking = [kind for kind in types(name) if kind.name not in known.get(name, {})]
        for kind, loss in _measured(model, predictions, name, lacking, of_block):
            known.setdefault(name, {})[kind.name] = loss
        if lacking:
            keep(known)
        if progress:
            progress(number + 1, len(names), f"effect of quantizing {name}")
    return known


_MATRICES = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")


def _measured(
    model: LeanModel, predictions: Predictions, name: str, types: Sequence[TensorType], inputs: Array | None
) -> Iterator[tuple[TensorType, float]]:
    if not types:
        return
    if inputs is not None:
        yield from _of_block(model, predictions, name, types, inputs)
        return
    for kind in types:
        yield kind, _of_embedding(model, predictions, name, kind)


def _of_embedding(model: LeanModel, predictions: Predictions, name: str, kind: TensorType) -> float:
    weights = model.reference.weights
    if name == "position_embd.weight":
        rounded = model.plain(name, weights[name], kind)
        return predictions.loss_from(0, predictions.embed({**weights, name: rounded.values}))
    if name == HEAD:
        rounded = model.rounded(model.reference.head, kind, model.head_gram, sweeps=0)
        return predictions.loss(predictions.states[-1], rounded)
    both = model.head_gram + model.lookup_gram if name != LOOKUP else model.lookup_gram
    rounded = model.rounded("token_embd.weight", kind, both, sweeps=0)
    x = predictions.embed({**weights, "token_embd.weight": rounded.values})
    for half in range(predictions.halves):
        x = predictions.half_block(half, x)
    return predictions.loss(x, None if name == LOOKUP else rounded)


def _of_block(
    model: LeanModel, predictions: Predictions, name: str, types: Sequence[TensorType], inputs: Array
) -> Iterator[tuple[TensorType, float]]:
    short = name.removesuffix(".weight")
    weights, bias = model.reference.weights[name], model.reference.weights[f"{short}.bias"]
    gram = factor(inputs.T @ inputs / np.float32(len(inputs)))
    half = 2 * int(name.split(".")[1]) + ("ffn" in name)
    for kind in types:
        if model.can_feed_back(kind):
            blocks = round_matrix(name, weights, kind, gram, model.outputs.get(name), sweeps=0)
        else:
            blocks = quantize_rows(name, weights, kind, np.square(inputs).mean(axis=0))
        values = dequantize(name, blocks, kind, weights.shape)

        def linear(called: str, x: Array, kind: TensorType = kind, values: Array = values) -> Array:
            if called == short:
                y: Array = round_activations(x, kind) @ values.T + bias
                return y
            return predictions.reference.linear(called, x)

        yield kind, predictions.loss_from(half + 1, predictions.half_block(half, predictions.states[half], linear))


def simulated_loss(predictions: Predictions, tensors: Mapping[str, QuantizedTensor | Array]) -> float:
    """The loss of a whole quantized model (`LeanModel.tensors`)."""
    tables = {name: tensors[name] for name in ("token_embd.weight", "position_embd.weight")}
    values = {name: table.values if isinstance(table, QuantizedTensor) else table for name, table in tables.items()}

    def linear(name: str, x: Array) -> Array:
        matrix, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        assert isinstance(matrix, QuantizedTensor)
        assert not isinstance(bias, QuantizedTensor)
        y: Array = round_activations(x, matrix.tensor_type) @ matrix.values.T + bias
        return y

    x = predictions.embed(values)
    for half in range(predictions.halves):
        x = predictions.half_block(half, x, linear)
    head = tensors.get("output.weight", tensors["token_embd.weight"])
    assert isinstance(head, QuantizedTensor)
    return predictions.loss(x, head)


def _log_softmax(logits: Array) -> Array:
    shifted: Array = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
