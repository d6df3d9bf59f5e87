"""What a conversion starts from, a checkpoint or a GGUF file, seen as one thing: a GPT-2 under llama.cpp's names."""

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.core.quant_types import TensorType

from .folder import open_checkpoint, source_sha256
from .gguf_model import open_gguf_model
from .gpt2_tensors import model_tensors, read_hyperparameters
from .metadata import model_metadata, tokenizer_metadata
from .resolve import DEFAULT_MODEL, Source, is_gguf_name, resolve
from .rows import BlockReader, RowReader
from .tokenizer import Tokenizer, read_tokenizer


class ModelTensor(Protocol):
    """One tensor. `shape` is (outputs, inputs) for a matrix; `stored` its type where it lies as blocks of ggml's."""

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str:
        """What messages call it."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def stored(self) -> TensorType | None: ...

    def read(self) -> npt.NDArray[np.floating[Any]]:
        """All of it: float16, float32 or float64, in the shape; it may be a strided view."""

    def reader(self) -> RowReader:
        """To read it some rows at a time; a vector is one row. What has to be read as a whole is read now."""

    def block_reader(self) -> BlockReader:
        """To read it as it is stored. Raises `TypeError` where `stored` is None."""


class ModelSource(Protocol):
    """A model to convert. `tensors` are in the order of our files, the head left out that is the embedding again."""

    @property
    def name(self) -> str: ...
    @property
    def sizes(self) -> Hyperparameters: ...
    @property
    def tensors(self) -> Sequence[ModelTensor]: ...

    def sha256(self) -> str:
        """Of its content, which has to be read for it: caches go by this."""

    def origin(self) -> str:
        """The hash that files made from it name as their source: its own, or what it says itself."""

    def metadata(self, sha256: str, level: dict[str, Any]) -> dict[str, Any]:
        """All metadata of a file that is made from it, those of the file's level among them."""

    def tokenizer(self) -> Tokenizer:
        """Read anew with each call."""


class CheckpointModel:
    """A checkpoint folder as a source. Raises `CheckpointError` when it is broken, or no GPT-2."""

    def __init__(self, source: Source) -> None:
        self.name = source.name
        self._source = source
        self._checkpoint = open_checkpoint(source.folder)
        self.sizes = read_hyperparameters(self._checkpoint.config)
        self.tensors = model_tensors(self._checkpoint, self.sizes)
        self._tokens: dict[str, Any] | None = None

    def sha256(self) -> str:
        return source_sha256(self._source.folder)

    def origin(self) -> str:
        return self.sha256()

    def metadata(self, sha256: str, level: dict[str, Any]) -> dict[str, Any]:
        if self._tokens is None:  # encoded once for all levels
            self._tokens = tokenizer_metadata(self.tokenizer())
        parameters = sum(prod(tensor.shape) for tensor in self.tensors)
        common = model_metadata(self._source, sha256, self._checkpoint.license(), self.sizes, parameters)
        return {**common, **level, **self._tokens}

    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self._source.folder, self._checkpoint.config, self.sizes.vocabulary)


def open_model(
    model: str = DEFAULT_MODEL,
    *,
    revision: str | None = None,
    offline: bool = False,
    allow_requantize: bool = False,
    name: str | None = None,
) -> ModelSource:
    """What `model` means: `storybook`, a Hub name, a checkpoint folder, or a `.gguf` file.

    `name` is what to call it, if not by its own name; `allow_requantize` admits GGUF files that are quantized already.
    Raises `DgptQuantError`.
    """
    if name is not None and not (name.strip() and name.isprintable()):
        raise UsageError(f"{name!r} cannot be a model's name", "Give printable characters, such as my-gpt2.")
    if is_gguf_name(model):
        return open_gguf_model(Path(model), revision=revision, allow_requantize=allow_requantize, name=name)
    source = resolve(model, revision=revision, offline=offline)
    return CheckpointModel(replace(source, name=name or source.name))
