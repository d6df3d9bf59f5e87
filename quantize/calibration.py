"""Where the importance matrix of a conversion comes from: a file, a text, or what the model writes itself.

The last takes a while, and is kept in the cache for the next level.
"""

import contextlib
from functools import cached_property
from pathlib import Path

from .cache import cache_folder, made_by, read_entry
from .calibrate import CONTEXT, SAMPLED, SAMPLED_TOKENS, Chunked, check_readable, collect, cut, is_own_text, uncollected
from .errors import DgptQuantError, GGUFError
from .importance import ImportanceMatrix, read_importance
from .model_source import ModelSource
from .naming import clean_name
from .parallel import calculating
from .progress import Progress


def check_given(imatrix: str | Path | None, text: str | Path | None) -> None:
    """Raises `DgptQuantError` for a file that can not be read, before a model is looked for."""
    if imatrix is not None:
        read_importance(imatrix)
    if text is not None:
        check_readable(text)


class Calibration:
    """What was asked for: at most one of a file and a text (`calibrate.SAMPLED`: the model's own)."""

    def __init__(self, source: ModelSource, imatrix: str | Path | None, text: str | Path | None) -> None:
        self._source, self._imatrix, self._text = source, imatrix, text

    def planned(self) -> ImportanceMatrix | None:
        """As it will be, but for the numbers, without having collected them; None where none was asked for.

        Raises `DgptQuantError`.
        """
        if self._imatrix is not None:
            return read_importance(self._imatrix)
        if self._text is None:
            return None
        if self._is_own:
            size = min(CONTEXT, self._source.sizes.context)
            count = -(-SAMPLED_TOKENS // size)
            return uncollected(self._source, Chunked(SAMPLED, "", size, [0] * (size * count)))
        return uncollected(self._source, self._cut)

    @calculating()
    def collected(self, progress: Progress | None = None) -> ImportanceMatrix | None:
        """The matrix itself. Raises `DgptQuantError`."""
        if self._imatrix is not None or self._text is None:
            return self.planned()
        if not self._is_own:
            return collect(self._source, self._cut, progress=progress)
        source = self._source
        name = f"{clean_name(source.name)}-{source.sha256()[:16]}-{made_by()}.gguf"
        kept = cache_folder() / "calibration" / name
        if found := read_entry(kept, self._checked):
            return found
        made = collect(source, cut(source, SAMPLED, progress=progress), progress=progress)
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

    @property
    def _is_own(self) -> bool:
        return self._text is not None and is_own_text(self._text)

    @cached_property
    def _cut(self) -> Chunked:
        assert self._text is not None
        return cut(self._source, self._text)
