"""The recipe `lean`: quantizes a model with less loss than llama-quantize, in the same formats.

It rewrites the model in numbers that are easier to quantize (equalize.py), rounds the blocks' matrices with GPTQ on
calibration text (layers.py, gptq.py), rounds the embedding for both of its uses, and pads the vocabulary so that
llama.cpp's fastest kernels take the output matrix (padding.py).
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.hyperparameters import Hyperparameters, pad_count
from dgpt2_quant.core.parallel import in_parallel
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix
from dgpt2_quant.quantize.calibration.numpy_gpt2 import Reference, from_source, softmax
from dgpt2_quant.quantize.checkpoint.source import ModelSource
from dgpt2_quant.quantize.recipes.lean_steps import steps_without
from dgpt2_quant.quantize.recipes.tensor_types import ROUNDABLE

from .encoded_tensor import EncodedTensor, encode_tensor
from .equalize import Weights, center_embedding, equalize_inputs
from .fisher import LOOKUP, Fisher, fisher
from .gptq import SWEEPS, Factor, factor, quantize_rows, round_matrix
from .layers import QuantizedTensor, as_quantized, quantize_layers
from .padding import NO_PADDING, Padding, least_likely

Array = npt.NDArray[np.floating[Any]]
_FISHER_TOKENS = 4096  # of the calibration text: gradients cost twice a forward pass, and their means settle soon
_STREAM_TOKENS = 16_384  # of it go through the quantized model; more gained nothing measurable
_PAD_TOKENS = 1024  # to measure the probability of the pads on
_LOOKUP_SHARE = 0.3  # of the head's weight, for errors in looked-up rows, where no gradients measure it


class LeanModel:
    """A model that is prepared once, to be quantized at several mixes of types."""

    def __init__(
        self,
        source: ModelSource,
        importance: ImportanceMatrix,
        skip_steps: Iterable[str] = (),
        progress: Progress | None = None,
    ) -> None:
        """`importance` should hold its calibration text and the sums of the inputs, as that of `imatrix` does."""
        self.source, self.importance, self.progress = source, importance, progress
        self.skip_steps = tuple(skip_steps)
        self.steps = steps_without(self.skip_steps).possible_with(importance)
        self.chunks = [list(chunk) for chunk in importance.chunks]
        self.reference = Reference(source.sizes, self._rewritten(from_source(source)))
        self.tied = "output.weight" not in self.reference.weights

    @property
    def pads(self) -> int:
        return pad_count(self.source.sizes.vocabulary) if self.steps.padding else 0

    @property
    def sizes(self) -> Hyperparameters:
        return self.source.sizes.padded(self.pads)

    @cached_property
    def fisher(self) -> Fisher:
        return fisher(self.reference, self.first_chunks(_FISHER_TOKENS), self.progress)

    def first_chunks(self, tokens: int) -> list[list[int]]:
        """The beginning of the calibration text, of about this number of tokens."""
        return self.chunks[: max(1, tokens // len(self.chunks[0]))]

    @cached_property
    def outputs(self) -> dict[str, Factor]:
        """Factors of the Fisher matrices of the blocks' matrices, outputs' side."""
        if not (self.steps.feedback and self.steps.gradients):
            return {}
        names = [name for name in self.fisher.grams if name != LOOKUP]
        return dict(zip(names, in_parallel(factor, (self.fisher.grams[name] for name in names)), strict=True))

    @cached_property
    def head_gram(self) -> Array:
        """The weights of errors in a row of the output matrix."""
        if self.chunks and self.steps.feedback:
            return self.fisher.hidden
        entry = self.importance.entries.get(self.reference.head)
        if entry is None:  # llama-imatrix collects none for a tied embedding
            return np.eye(self.source.sizes.width)
        return np.diag(entry.mean_squares.astype(np.float64))

    @cached_property
    def lookup_gram(self) -> Array:
        """The weights of errors in a row that is looked up, on the same scale."""
        if self.chunks and self.steps.feedback and self.steps.gradients:
            return self.fisher.lookup
        share = _LOOKUP_SHARE * float(np.trace(self.head_gram)) / len(self.head_gram)
        return np.eye(len(self.head_gram)) * share

    def can_feed_back(self, tensor_type: TensorType) -> bool:
        """Whether GPTQ rounds matrices of the type; the C quantizer rounds the others."""
        return self.steps.feedback and tensor_type in ROUNDABLE

    def encoded(self, types: Mapping[str, TensorType]) -> tuple[list[EncodedTensor], Padding]:
        """The model at these types, in the order of its file; a type for `output.weight` splits a tied embedding."""
        tensors = self.tensors(types)
        padding = self._padding(tensors)
        order = self.sizes.shapes(tied="output.weight" not in tensors)
        return [encode_tensor(name, tensors[name], shape, padding) for name, shape in order.items()], padding

    def tensors(self, types: Mapping[str, TensorType]) -> dict[str, QuantizedTensor | Array]:
        """All tensors of the model at these types, without pad rows."""
        weights = self.reference.weights
        table = "position_embd.weight"
        found: dict[str, QuantizedTensor | Array] = {table: self.plain(table, weights[table], types[table])}
        found |= self._embeddings(types)
        found |= {name: np.asarray(data, np.float32) for name, data in weights.items() if data.ndim == 1}
        if self.chunks:
            lookup = {name: values_of(found[name]) for name in ("token_embd.weight", "position_embd.weight")}
            chunks = self.first_chunks(_STREAM_TOKENS)
            found |= quantize_layers(self.reference, lookup, chunks, types, self.outputs, self.steps, self.progress)
        return found | {name: self.plain(name, weights[name], types[name]) for name in weights if name not in found}

    def _rewritten(self, reference: Reference) -> Weights:
        weights: Weights = dict(reference.weights)
        if self.steps.centring or self.steps.scaling:
            weights = equalize_inputs(
                weights,
                reference.sizes,
                self.importance,
                centre=self.steps.centring,
                scale=self.steps.scaling,
            )
        if self.steps.centring and self.chunks:
            weights = center_embedding(weights, self.frequencies)
        return weights

    @property
    def frequencies(self) -> npt.NDArray[np.float64]:
        """How often each token occurs in the calibration text."""
        tokens = np.concatenate(self.chunks) if self.chunks else np.empty(0, np.int64)
        return np.bincount(tokens, minlength=self.source.sizes.vocabulary).astype(np.float64)

    def _embeddings(self, types: Mapping[str, TensorType]) -> dict[str, QuantizedTensor | Array]:
        grams = {"token_embd.weight": self.lookup_gram, "output.weight": self.head_gram}
        if self.tied and "output.weight" not in types:
            grams = {"token_embd.weight": self.head_gram + self.lookup_gram}
        return {name: self.rounded(name, types[name], gram) for name, gram in grams.items()}

    def rounded(self, name: str, tensor_type: TensorType, gram: Array, *, sweeps: int | None = None) -> QuantizedTensor:
        """An embedding, with errors weighted by `gram`."""
        weights = self.reference.weights[name if name in self.reference.weights else "token_embd.weight"]
        if not self.can_feed_back(tensor_type):
            return self.plain(name, weights, tensor_type, np.diag(gram))
        if sweeps is None:
            sweeps = SWEEPS if self.steps.sweeps else 0
        data = np.asarray(weights, np.float32)
        return as_quantized(
            name, round_matrix(name, data, tensor_type, factor(gram), sweeps=sweeps), tensor_type, data.shape
        )

    def plain(
        self, name: str, weights: Array, tensor_type: TensorType, weighing: Array | None = None
    ) -> QuantizedTensor:
        """A tensor that the C quantizer rounds."""
        entry = self.importance.entries.get(name)
        if weighing is None and entry is not None:
            weighing = entry.mean_squares
        chosen = None if weighing is None else np.asarray(weighing, np.float32)
        return as_quantized(name, quantize_rows(name, weights, tensor_type, chosen), tensor_type, weights.shape)

    def _padding(self, tensors: Mapping[str, QuantizedTensor | Array]) -> Padding:
        if not self.pads:
            return NO_PADDING
        head = tensors.get("output.weight", tensors["token_embd.weight"])
        twin = least_likely(values_of(head), self._mean_hidden())
        found = [softmax(self.reference.logits(chunk))[:, twin] for chunk in self._some_text()]
        return Padding(self.pads, twin, self.pads * float(np.concatenate(found).mean()))

    def _some_text(self) -> list[list[int]]:
        """The beginning of the calibration text; without one, tokens from all over the vocabulary."""
        if self.chunks:
            return self.first_chunks(_PAD_TOKENS)
        sizes = self.source.sizes
        return [np.linspace(0, sizes.vocabulary - 1, sizes.context).astype(int).tolist()]

    def _mean_hidden(self) -> Array:
        """The mean of the final norm's outputs, shape (width,): over the calibration text where it was collected.

        llama-imatrix collects none.
        """
        entry = self.importance.entries.get(self.reference.head)
        if entry is not None and entry.mean is not None:
            return entry.mean
        mean: Array = np.concatenate([self.reference.hidden(chunk) for chunk in self._some_text()]).mean(axis=0)
        return mean


def values_of(tensor: QuantizedTensor | Array) -> Array:
    """The weights, as the blocks represent them."""
    return tensor.values if isinstance(tensor, QuantizedTensor) else tensor
