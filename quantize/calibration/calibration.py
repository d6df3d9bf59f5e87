"""Provides the importance matrix of a conversion: from a file, from a text, or from text that the model generates.

The last is slow, so its result is cached for further conversions.
"""

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from dgpt2_quant.core.cache_folder import cache_folder, cache_version, read_entry
from dgpt2_quant.core.errors import DgptQuantError, GGUFError, UsageError
from dgpt2_quant.core.hyperparameters import matmul_weights
from dgpt2_quant.core.parallel import calculating
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.read_input import Announce
from dgpt2_quant.core.scratch import NewStore, in_memory
from dgpt2_quant.core.text import NamedText
from dgpt2_quant.quantize.checkpoint.model_name import clean_name
from dgpt2_quant.quantize.checkpoint.source import ModelSource

from .collect import CONTEXT, SAMPLED, SAMPLED_TOKENS, ChunkedText, collect, cut, load_calibration_text
from .imatrix_file import ImportanceMatrix, importance_metadata, read_importance


def read_given(
    imatrix: str | Path | None,
    text: str | Path | NamedText | None,
    *,
    parse_special: bool = True,
    keep_crlf: bool = False,
    announce: Announce | None = None,
) -> NamedText | str | None:
    """Reads the inputs before a model is opened: the text, `sampled` for generated text, or None.

    Raises `DgptQuantError` for both inputs, and for a file or a text that cannot be read.
    """
    if imatrix is not None and text is not None:
        raise UsageError("`imatrix` and `calibrate` cannot be combined", "Omit one of them.")
    if imatrix is not None:
        read_importance(imatrix)
    if text is None:
        return None
    return load_calibration_text(text, parse_special=parse_special, keep_crlf=keep_crlf, announce=announce) or SAMPLED


@dataclass(frozen=True)
class Outline:
    """What is known of an importance matrix before it is collected: enough to plan a file.

    `names` are the matrices that have an entry, `metadata` is what a converted file states (the hash may be zeros).
    The text has `chunks` times `length` tokens.
    """

    names: Collection[str]
    metadata: Mapping[str, Any]
    chunks: int
    length: int


class Calibration:
    """The importance matrix of `source`: from the file `imatrix`, or over `text` (`SAMPLED`: generated text)."""

    def __init__(
        self,
        source: ModelSource,
        imatrix: str | Path | None,
        text: NamedText | str | None,
        announce: Announce | None = None,
    ) -> None:
        self._source, self._imatrix, self._text, self._announce = source, imatrix, text, announce

    def outline(self, *, uses_text: bool = False) -> Outline | None:
        """What is known without collecting; None if no importance matrix was requested.

        Raises `DgptQuantError`, also for a file of another model; with `uses_text` its text must fit the model, too.
        """
        shapes = {tensor.name: tensor.shape for tensor in self._source.tensors}
        if self._imatrix is not None:
            self._file.check(shapes)
            if uses_text:
                self._file.check_text(self._source.sizes.vocabulary, self._source.sizes.context)
            file = self._file
            return Outline(file.entries.keys(), file.metadata(), len(file.chunks), file.chunk_size)
        if self._text is None:
            return None
        names, length = matmul_weights(shapes), min(CONTEXT, self._source.sizes.context)
        if isinstance(self._text, str):
            name, count = SAMPLED, -(-SAMPLED_TOKENS // length)
        else:
            name, count = self._cut.name, self._cut.count
        return Outline(names, importance_metadata("0" * 64, [name], len(names), count), count, length)

    @property
    def step(self) -> Literal["sampling", "collecting"] | None:
        """What `collected` computes: a text and its statistics, the statistics of a text, or nothing."""
        if self._imatrix is not None or self._text is None:
            return None
        if not isinstance(self._text, str):
            return "collecting"
        return None if self._kept.is_file() else "sampling"

    @calculating()
    def collected(self, progress: Progress | None = None, new_store: NewStore = in_memory) -> ImportanceMatrix | None:
        """The matrix, collected if necessary; what that computes is kept in stores. Raises `DgptQuantError`."""
        if self._imatrix is not None:
            return self._file
        if self._text is None:
            return None
        if not isinstance(self._text, str):
            text, names = self._cut, matmul_weights({t.name: t.shape for t in self._source.tensors})
            store = new_store("importance", text.size, list(text.tokens))
            if not all(name in store for name in names):
                for name, entry in collect(self._source, text, progress=progress).entries.items():
                    assert entry.sums is not None
                    store[name] = np.stack([entry.sum_squares, entry.sums])
            return collect(self._source, replace(text, sums={name: store[name] for name in names}))
        if found := read_entry(self._kept, self._checked):
            return found
        generated = cut(self._source, None, store=new_store("sampling", SAMPLED_TOKENS), progress=progress)
        found = collect(self._source, generated)
        with contextlib.suppress(DgptQuantError):  # the cache is optional
            found.write(self._kept, overwrite=True)
        return found

    def _checked(self, path: Path) -> ImportanceMatrix:
        """Reads a cache entry. Raises `DgptQuantError` if it does not fit this model."""
        found = read_importance(path)
        found.check({tensor.name: tensor.shape for tensor in self._source.tensors})
        found.check_text(self._source.sizes.vocabulary, self._source.sizes.context)
        if not found.tokens:
            raise GGUFError(f"{path} lacks its tokens")
        return found

    @cached_property
    def _kept(self) -> Path:
        """The cache entry of the matrix over generated text."""
        name = f"{clean_name(self._source.name)}-{self._source.sha256()[:16]}-{cache_version()}.gguf"
        return cache_folder() / "calibration" / name

    @cached_property
    def _file(self) -> ImportanceMatrix:
        assert self._imatrix is not None
        return read_importance(self._imatrix)

    @cached_property
    def _cut(self) -> ChunkedText:
        assert isinstance(self._text, NamedText)
        return cut(self._source, self._text, announce=self._announce)
