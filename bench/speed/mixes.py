"""Made-up GPT-2 files in which each kind of matrix has a type of its own: what kernels are timed with.

What is in a matrix makes no difference to its time, so a few rows of random weights are quantized once for each type
and laid one after another until the matrix is full. The files are written to be loaded at once and thrown away.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from dgpt2_quant.core.atomic_file import explain_errors
from dgpt2_quant.core.ggml import quantize
from dgpt2_quant.core.gguf_file import EncodedValue, encode_header, encode_value, padded, tensor_bytes
from dgpt2_quant.core.hyperparameters import Hyperparameters, matmul_weights
from dgpt2_quant.core.quant_types import TensorType

_TILE_ROWS = 32  # random rows, of which a matrix is made
_SCALE = 0.02  # of the weights, as GPT-2 begins with: activations stay finite

Entry = tuple[tuple[int, ...], TensorType]
"""What a time belongs to: a matrix's shape (outputs, inputs) and its type."""


@dataclass(frozen=True)
class Mix:
    """A file: the model's sizes, and a type for each kind of matrix (`kinds_of`)."""

    sizes: Hyperparameters
    types: Mapping[str, TensorType]

    def tensor_types(self) -> dict[str, TensorType]:
        """A type for each tensor; the position table, of which a token reads one row, is F16."""
        shapes = self.sizes.shapes()
        kinds = {name: self.types[_kind(name)] for name in matmul_weights(shapes)}
        return {
            name: kinds.get(name, TensorType.F32 if len(shape) == 1 else TensorType.F16)
            for name, shape in shapes.items()
        }

    def entries(self) -> Counter[Entry]:
        """How many matrices of each shape and type a token meets."""
        shapes, types = self.sizes.shapes(), self.tensor_types()
        return Counter((shapes[name], types[name]) for name in matmul_weights(shapes))


def kinds_of(sizes: Hyperparameters) -> dict[str, tuple[int, ...]]:
    """The kinds of matrix that a token meets, and their shapes: the output matrix, and four that each layer has."""
    shapes = sizes.shapes()
    return {_kind(name): shapes[name] for name in matmul_weights(shapes)}


def _kind(name: str) -> str:
    return name.split(".")[-2]


@dataclass
class MixWriter:
    """Writes mixes; what several of them share is made once."""

    _tiles: dict[tuple[TensorType, int], bytes] = field(default_factory=dict)
    _tokens: dict[int, EncodedValue] = field(default_factory=dict)

    def write(self, mix: Mix, path: Path) -> None:
        """Raises `OutputError` when the disk is full, or may not be written to."""
        shapes, types = mix.sizes.shapes(), mix.tensor_types()
        head = encode_header(self._metadata(mix.sizes), {name: (shapes[name], types[name]) for name in shapes})
        with explain_errors(path), path.open("xb", buffering=0) as file:
            file.write(head)
            for name, shape in shapes.items():
                tile, size = self._tile(types[name], shape[-1]), tensor_bytes(shape, types[name])
                for start, end in pairwise([*range(0, size, len(tile)), size]):
                    file.write(tile[: end - start])
                file.write(bytes(padded(size) - size))

    def _tile(self, tensor_type: TensorType, columns: int) -> bytes:
        key = tensor_type, columns
        if key not in self._tiles:
            rows = np.random.default_rng(columns).standard_normal((_TILE_ROWS, columns), np.float32) * _SCALE
            (blocks,) = quantize(f"of {columns} columns", rows, [tensor_type])
            self._tiles[key] = blocks.tobytes()
        return self._tiles[key]

    def _metadata(self, sizes: Hyperparameters) -> dict[str, Any]:
        count = sizes.vocabulary
        if count not in self._tokens:
            # every token has a text, so that each one that is written is a piece of its own
            self._tokens[count] = encode_value([f"t{number}" for number in range(count)])
        return {
            "general.architecture": "gpt2",
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": self._tokens[count],
            "tokenizer.ggml.merges": ["t 0"],
            "tokenizer.ggml.bos_token_id": 0,
            "tokenizer.ggml.eos_token_id": 0,
            **sizes.to_metadata(),
        }
