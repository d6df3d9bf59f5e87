"""Opens a model for conversion: a checkpoint or a GGUF file, both as a GPT-2 with llama.cpp's tensor names."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.core.quant_types import TensorType

from .config import read_hyperparameters
from .folder import open_checkpoint, source_sha256
from .gguf_model import open_gguf_model
from .gpt2_tensors import model_tensors
from .heads import read_head
from .layouts import name_tensors
from .lora import merged_sha256, parse_lora, read_adapter
from .metadata import model_metadata, tokenizer_metadata
from .resolve import DEFAULT_MODEL, Source, find_adapter, is_gguf_name, resolve, with_adapters
from .rows import BlockReader, RowReader
from .tokenizer import Tokenizer, read_tokenizer

_log = logging.getLogger(__name__)


class ModelTensor(Protocol):
    """A tensor; `shape` is (outputs, inputs) for a matrix, `stored` its type if it is stored in ggml's blocks."""

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str:
        """The name in messages."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def stored(self) -> TensorType | None: ...

    def read(self) -> npt.NDArray[np.floating[Any]]:
        """Reads the tensor as float16, float32 or float64; it may be a strided view."""

    def reader(self) -> RowReader:
        """A reader for rows; a vector is one row. A tensor that must be read as a whole is read at once."""

    def block_reader(self) -> BlockReader:
        """A reader for encoded rows. Raises `TypeError` if `stored` is None."""


class ModelSource(Protocol):
    """A model to convert; `tensors` are in file order, without an output matrix that is equal to the embedding."""

    @property
    def name(self) -> str: ...
    @property
    def sizes(self) -> Hyperparameters: ...
    @property
    def tensors(self) -> Sequence[ModelTensor]: ...

    def sha256(self) -> str:
        """The hash of the content, which must be read for it; part of cache keys."""

    def origin(self) -> str:
        """The source hash for the metadata of converted files: its own, or the one that it states."""

    def metadata(self, sha256: str, type_metadata: dict[str, Any]) -> dict[str, Any]:
        """All metadata of a converted file, including those of its quant type (`type_metadata`)."""

    def tokenizer(self) -> Tokenizer:
        """The tokenizer."""


class CheckpointModel:
    """A checkpoint as a source, with the adapters merged. Raises `CheckpointError` if it is broken, or not a GPT-2."""

    def __init__(self, source: Source) -> None:
        self.name = source.name
        self._source = source
        self._checkpoint = open_checkpoint(source.folder, source.weights)
        self._adapters = [read_adapter(folder, weight) for folder, weight in source.adapters]
        self.sizes = read_hyperparameters(self._checkpoint.config, self._checkpoint.stated_in)
        named = name_tensors(self._checkpoint.folder, self._checkpoint.tensors)
        self.tensors = model_tensors(self._checkpoint, named, self.sizes, self._adapters)
        self._head = read_head(self._checkpoint, named, self.sizes, self._adapters)
        self._tokenizer: Tokenizer | None = None
        self._tokens: dict[str, Any] | None = None
        self._sha256: str | None = None

    def sha256(self) -> str:
        if self._sha256 is None:  # it takes seconds for a large model
            own = source_sha256(self._source.folder, self._source.weights)
            self._sha256 = merged_sha256(own, self._adapters)
        return self._sha256

    def origin(self) -> str:
        return self.sha256()

    def metadata(self, sha256: str, type_metadata: dict[str, Any]) -> dict[str, Any]:
        if self._tokens is None:  # encoded once for all quant types
            self._tokens = tokenizer_metadata(self.tokenizer())
        parameters = sum(prod(tensor.shape) for tensor in self.tensors)
        common = model_metadata(self._source, sha256, self._checkpoint.license(), self.sizes, parameters)
        if self._adapters:
            common["dgpt2_quant.adapters"] = [adapter.label() for adapter in self._adapters]
        head: dict[str, Any] = {}
        if self._head:
            head = replace(self._head, prefix_space=self.tokenizer().prefix_space).to_metadata()
        return {**common, **type_metadata, **head, **self._tokens}

    def tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:  # once, because it warns
            self._checkpoint.check_tokenizer(self.sizes.vocabulary)
            read = partial(
                read_tokenizer,
                config=self._checkpoint.config,
                vocabulary=self.sizes.vocabulary,
                is_classifier=self._head is not None,
            )
            self._tokenizer = read(self._source.folder)
            for adapter in self._adapters:
                if adapter.has_tokenizer() and read(adapter.folder) != self._tokenizer:
                    _log.warning("%s has a tokenizer or chat template; the base's is used", adapter.folder)
        return self._tokenizer


def open_model(
    model: str = DEFAULT_MODEL,
    *,
    revision: str | None = None,
    offline: bool = False,
    allow_requantize: bool = False,
    name: str | None = None,
    lora: Sequence[str | Path] = (),
) -> ModelSource:
    """Opens a model: `storybook`, a Hub name, a checkpoint folder or file of weights, or a `.gguf` file.

    `lora` has PEFT adapters to merge in this order, folders or Hub names, each `NAME` or `NAME=WEIGHT`. `name` replaces
    the model's own name; `allow_requantize` allows GGUF files that are already quantized.
    Raises `DgptQuantError`.
    """
    if name is not None and not (name.strip() and name.isprintable()):
        raise UsageError(f"`name` cannot be {name!r}", "Give printable characters, such as my-gpt2.")
    if is_gguf_name(model):
        if lora:
            raise UsageError(f"`lora` is for checkpoints; {model} is a GGUF file", "Name the original checkpoint.")
        return open_gguf_model(Path(model), revision=revision, allow_requantize=allow_requantize, name=name)
    adapters = [parse_lora(str(text)) for text in lora]
    source = resolve(model, revision=revision, offline=offline)
    if adapters:
        folders = [(find_adapter(folder, offline=offline), weight) for folder, weight in adapters]
        source = with_adapters(source, folders)
    return CheckpointModel(replace(source, name=name or source.name))
