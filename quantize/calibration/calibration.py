"""Where the importance matrix of a conversion comes from: a file, a text, or what the model writes itself.

The last takes a while, and is kept in the cache for the next level.
"""

import contextlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from dgpt2_quant.core.cache import cache_folder, made_by, read_entry
from dgpt2_quant.core.errors import DgptQuantError, GGUFError, UsageError
from dgpt2_quant.core.hyperparameters import multiplied
from dgpt2_quant.core.parallel import calculating
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.read_input import Announce
from dgpt2_quant.core.text import NamedText
from dgpt2_quant.quantize.checkpoint.naming import clean_name
from dgpt2_quant.quantize.checkpoint.source import ModelSource

from .collect import CONTEXT, SAMPLED, SAMPLED_TOKENS, Chunked, collect, cut, load_calibration
from .imatrix_file import ImportanceMatrix, importance_metadata, read_importance


def read_given(
    imatrix: str | Path | None,
    text: str | Path | NamedText | None,
    *,
    parse_special: bool = True,
    keep_crlf: bool = False,
    announce: Announce | None = None,
) -> NamedText | str | None:
    """The text, read before a model is looked for, `sampled` for the model's own, or None for none.

    Raises `DgptQuantError` for both, and for a file or a text that cannot be read.
    """
    if imatrix is not None and text is not None:
        raise UsageError("`imatrix` and `calibrate` cannot be combined", "Leave one of the two out.")
    if imatrix is not None:
        read_importance(imatrix)
    if text is None:
        return None
    return load_calibration(text, parse_special=parse_special, keep_crlf=keep_crlf, announce=announce) or SAMPLED


@dataclass(frozen=True)
class Outline:
    """What is known of an importance matrix before it is collected: enough to plan a file.

    `names` are the matrices that have an entry, `metadata` is what a converted file states (the hash may be zeros).
    """

    names: Collection[str]
    metadata: Mapping[str, Any]


class Calibration:
    """What was asked for: at most one of a file and a text (`calibrate.SAMPLED`: the model's own)."""

    def __init__(
        self,
        source: ModelSource,
        imatrix: str | Path | None,
        text: NamedText | str | None,
        announce: Announce | None = None,
    ) -> None:
        self._source, self._imatrix, self._text, self._announce = source, imatrix, text, announce

    def outline(self, *, uses_text: bool = False) -> Outline | None:
        """What is known without collecting; None where no importance matrix was asked for.

        Raises `DgptQuantError`, also for a file of another model; with `uses_text` its text must be the model's, too.
        """
        shapes = {tensor.name: tensor.shape for tensor in self._source.tensors}
        if self._imatrix is not None:
            self._file.check(shapes)
            if uses_text:
                self._file.check_text(self._source.sizes.vocabulary, self._source.sizes.context)
            return Outline(self._file.entries.keys(), self._file.metadata())
        if self._text is None:
            return None
        if isinstance(self._text, str):
            name, count = SAMPLED, -(-SAMPLED_TOKENS // min(CONTEXT, self._source.sizes.context))
        else:
            name, count = self._cut.name, self._cut.count
        names = multiplied(shapes)
        return Outline(names, importance_metadata("0" * 64, [name], len(names), count))

    @calculating()
    def collected(self, progress: Progress | None = None) -> ImportanceMatrix | None:
        """The matrix itself. Raises `DgptQuantError`."""
        if self._imatrix is not None:
            return self._file
        if self._text is None:
            return None
        if not isinstance(self._text, str):
            return collect(self._source, self._cut, progress=progress)
        source = self._source
        name = f"{clean_name(source.name)}-{source.sha256()[:16]}-{made_by()}.gguf"
        kept = cache_folder() / "calibration" / name
        if found := read_entry(kept, self._checked):
            return found
        made = collect(source, cut(source, None, progress=progress), progress=progress)
        with contextlib.suppress(DgptQuantError):  # it only saves time
            made.write(kept, overwrite=True)
        return made

    def _checked(self, path: Path) -> ImportanceMatrix:
        """What lies in the cache. Raises `DgptQuantError` for what this model cannot have left there."""
        found = read_importance(path)
        found.check({tensor.name: tensor.shape for tensor in self._source.tensors})
        found.check_text(self._source.sizes.vocabulary, self._source.sizes.context)
        if not found.tokens:
            raise GGUFError(f"{path} lacks its tokens")
        return found

    @cached_property
    def _file(self) -> ImportanceMatrix:
        assert self._imatrix is not None
        return read_importance(self._imatrix)

    @cached_property
    def _cut(self) -> Chunked:
        assert isinstance(self._text, NamedText)
        return cut(self._source, self._text, announce=self._announce)
