"""The recipe `lean`: quantizes a model with less loss than llama-quantize, in the same formats.

It rewrites the model in numbers that are easier to quantize (equalize.py), rounds the blocks' matrices with GPTQ on
calibration text (layers.py, gptq.py), and rounds the embedding for both of its uses. Where the output matrix has a type
with fast kernels, it pads the vocabulary so that they take it (padding.py).
"""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.core.parallel import in_parallel
from dgpt2_quant.core.progress import Progress, Stages
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.core.scratch import NewStore, Store, in_memory
from dgpt2_quant.quantize.calibration.block_weights import KEPT_BYTES, BlockWeights
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix
from dgpt2_quant.quantize.calibration.numpy_gpt2 import Reference, softmax
from dgpt2_quant.quantize.checkpoint.source import ModelSource
from dgpt2_quant.quantize.recipes.lean_steps import steps_without
from dgpt2_quant.quantize.recipes.plan import pad_tokens
from dgpt2_quant.quantize.recipes.tensor_types import ROUNDABLE

from .encoded_tensor import EncodedTensor
from .equalize import Weights, center_embedding, equalize_inputs
from .fisher import Fisher
from .gptq import SWEEPS, Factor, factor, quantize_rows, round_matrix
from .layers import QuantizedTensor, quantize_layers
from .needs import FISHER_TOKENS, STREAM_TOKENS, Needs
from .padding import NO_PADDING, Padding, least_likely

Array = npt.NDArray[np.floating[Any]]
_PAD_TOKENS = 1024  # to measure the probability of the pads on
_EMBEDDING, _OUTPUT, _POSITIONS = "token_embd.weight", "output.weight", "position_embd.weight"
_LOOKUP_SHARE = 0.3  # of the head's weight, for errors in looked-up rows, where no gradients measure it


class LeanModel:
    """A model that is prepared once, to be quantized at several mixes of types."""

    def __init__(
        self,
        source: ModelSource,
        importance: ImportanceMatrix,
        skip_steps: Iterable[str] = (),
        stages: Stages | None = None,
        *,
        new_store: NewStore = in_memory,
        kept_bytes: float = KEPT_BYTES,
    ) -> None:
        """`importance` should hold its calibration text and the sums of the inputs, as that of `imatrix` does.

        Results are kept in stores that `new_store` opens (scratch.py), by default in memory; `kept_bytes` is the limit
        of `BlockWeights`.
        """
        self.source, self.importance, self._stages = source, importance, stages or Stages()
        self.skip_steps = tuple(skip_steps)
        self.steps = steps_without(self.skip_steps).possible_with(importance)
        self.chunks = [list(chunk) for chunk in importance.chunks]
        self._new_store = new_store
        self.reference = Reference(source.sizes, BlockWeights(source, self._rewritten, kept_bytes))
        self.needs = Needs(source.sizes, len(self.chunks), importance.chunk_size)
        self.tied = _OUTPUT not in self.reference.weights

    def sizes(self, types: Mapping[str, TensorType]) -> Hyperparameters:
        """Those of the file, with the pad tokens that it has at these types."""
        return self.source.sizes.padded(pad_tokens(self.source.sizes.vocabulary, types, self.steps.left_out))

    @cached_property
    def fisher(self) -> Fisher:
        store = self._new_store("gradients", self.importance.sha256, self.steps.left_out)
        chunks = self.first_chunks(FISHER_TOKENS)
        return Fisher(self.reference, chunks, store, self._stages.begin(self.needs.gradients))

    def first_chunks(self, tokens: int) -> list[list[int]]:
        """The beginning of the calibration text, of about this number of tokens."""
        return self.chunks[: max(1, tokens // len(self.chunks[0]))]

    @property
    def outputs(self) -> Mapping[str, Factor]:
        """Factors of the Fisher matrices of the blocks' matrices, outputs' side."""
        return self.fisher.outputs if self.steps.feedback and self.steps.gradients else {}

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
        store = self._quantized(types)
        sizes = self.sizes(types)
        pads = sizes.vocabulary - self.source.sizes.vocabulary
        padding = self._padding(self._tensor(store, _OUTPUT if _OUTPUT in types else _EMBEDDING, types), pads)
        shapes = sizes.shapes(tied=_OUTPUT not in types)
        return [EncodedTensor(name, shape, types[name], store, padding) for name, shape in shapes.items()], padding

    def tensors(self, types: Mapping[str, TensorType]) -> dict[str, QuantizedTensor | Array]:
        """All tensors of the model at these types, without pad rows."""
        store = self._quantized(types)
        return {name: self._tensor(store, name, types) if data.ndim == 2 else data for name, data in store.items()}

    def _tensor(self, store: Store, name: str, types: Mapping[str, TensorType]) -> QuantizedTensor:
        return QuantizedTensor(name, types[name], store[name], self.source.sizes.shapes(tied=False)[name])

    def _quantized(self, types: Mapping[str, TensorType]) -> Store:
        """All tensors at these types: the blocks of tables and matrices, and vectors in float32."""
        named = sorted(f"{name}={kind.name}" for name, kind in types.items())
        store = self._new_store("tensors", self.importance.sha256, self.steps.left_out, named)
        weights = self.reference.weights
        if _POSITIONS not in store:
            store[_POSITIONS] = self.plain(_POSITIONS, weights[_POSITIONS], types[_POSITIONS]).blocks
        for name, gram in self._embedding_grams(types).items():
            progress = self._stages.begin(self.needs.embedding)
            if name not in store:
                store[name] = self.rounded(name, types[name], gram, progress=progress).blocks
        if self.chunks:
            quantize_layers(
                self.reference,
                lambda: {name: self._tensor(store, name, types).values for name in (_EMBEDDING, _POSITIONS)},
                self.first_chunks(STREAM_TOKENS),
                types,
                self.outputs,
                self.steps,
                store,
                self._stages.begin(self.needs.blocks),
            )
        for name in weights:
            if name not in store:
                data = weights[name]
                store[name] = self.plain(name, data, types[name]).blocks if data.ndim == 2 else data
        return store

    def _rewritten(self, block: Weights) -> Weights:
        """The tensors of a block, or those outside the blocks, as they are quantized."""
        if _EMBEDDING in block:
            return center_embedding(block, self.frequencies) if self.steps.centring and self.chunks else block
        if not (self.steps.centring or self.steps.scaling):
            return block
        return equalize_inputs(block, self.importance, centre=self.steps.centring, scale=self.steps.scaling)

    @property
    def frequencies(self) -> npt.NDArray[np.float64]:
        """How often each token occurs in the calibration text."""
        tokens = np.concatenate(self.chunks) if self.chunks else np.empty(0, np.int64)
        return np.bincount(tokens, minlength=self.source.sizes.vocabulary).astype(np.float64)

    def _embedding_grams(self, types: Mapping[str, TensorType]) -> dict[str, Array]:
        """The weights of errors in a row of the embedding; without an output matrix it is used for both purposes."""
        if _OUTPUT in types:
            return {_EMBEDDING: self.lookup_gram, _OUTPUT: self.head_gram}
        return {_EMBEDDING: self.head_gram + self.lookup_gram}

    def rounded(
        self,
        name: str,
        tensor_type: TensorType,
        gram: Array,
        *,
        sweeps: int | None = None,
        progress: Progress | None = None,
    ) -> QuantizedTensor:
        """An embedding, with errors weighted by `gram`."""
        weights = self.reference.weights[name if name in self.reference.weights else _EMBEDDING]
        if not self.can_feed_back(tensor_type):
            return self.plain(name, weights, tensor_type, np.diag(gram))
        if sweeps is None:
            sweeps = SWEEPS if self.steps.sweeps else 0
        blocks = round_matrix(name, weights, tensor_type, factor(gram), sweeps=sweeps, progress=progress)
        return QuantizedTensor(name, tensor_type, blocks, weights.shape)

    def plain(
        self, name: str, weights: Array, tensor_type: TensorType, weighing: Array | None = None
    ) -> QuantizedTensor:
        """A tensor that the C quantizer rounds."""
        entry = self.importance.entries.get(name)
        if weighing is None and entry is not None:
            weighing = entry.mean_squares
        chosen = None if weighing is None else np.asarray(weighing, np.float32)
        return QuantizedTensor(name, tensor_type, quantize_rows(name, weights, tensor_type, chosen), weights.shape)

    def _padding(self, head: QuantizedTensor, pads: int) -> Padding:
        if not pads:
            return NO_PADDING
        twin = least_likely(head.values, self._mean_hidden())
        found = in_parallel(lambda chunk: softmax(self.reference.logits(chunk))[:, twin], self._some_text())
        return Padding(pads, twin, pads * float(np.concatenate([*found]).mean()))

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
