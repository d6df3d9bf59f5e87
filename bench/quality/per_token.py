"""Scores of single tokens: a line of JSON per scored token, and the tokens that a file changes most."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dgpt2_quant.bench.data.special_text import token_bytes
from dgpt2_quant.bench.document.schema import WrongToken
from dgpt2_quant.core.atomic_file import output_file, refuse_existing
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.paths import user_path
from dgpt2_quant.runtime.model import Model

from .compare_files import Quality
from .logit_rows import FileScores, TokenScores
from .windows import Window

WORST = 5
_BEFORE = 12  # tokens of text shown before a token


class TokenTexts:
    """The texts of scored tokens and of the tokens before them; the model provides the vocabulary."""

    def __init__(self, model: Model, windows: Sequence[Window]) -> None:
        self._bytes = token_bytes(model)
        self._windows = windows
        self._ends = np.cumsum([len(window.targets) for window in windows])

    def of(self, token: int) -> str:
        return self._bytes(int(token)).decode("utf-8", "replace")

    def place(self, index: int) -> tuple[int, int]:
        """The window of the scored token with this index, and its position in the window."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        window = self._windows[number]
        return number, len(window.tokens) - int(self._ends[number]) + index

    def before(self, index: int) -> str:
        number, position = self.place(index)
        tokens = self._windows[number].tokens[max(0, position - _BEFORE) : position]
        return b"".join(map(self._bytes, tokens)).decode("utf-8", "replace")

    def target(self, index: int) -> int:
        number, position = self.place(index)
        return self._windows[number].tokens[position]

    def where(self, index: int) -> dict[str, Any]:
        """The first keys of a line."""
        number, position = self.place(index)
        token = self.target(index)
        return {"window": number, "position": position, "token": token, "text": self.of(token)}


def check_per_token(path: str | Path | None, *, overwrite: bool = False) -> Path | None:
    """The path with `~` expanded. Raises `UsageError` for stdout, `OutputError` as `refuse_existing` does."""
    if path is None:
        return None
    if str(path) == "-":
        raise UsageError(
            "`per_token` must be a file, not stdout, which has the result", "Name one, such as tokens.jsonl."
        )
    refuse_existing(found := user_path(path), overwrite)
    return found


def worst(quality: Quality, file: FileScores, texts: TokenTexts, count: int = WORST) -> list[WrongToken]:
    """The tokens with the largest KL divergence, the largest first."""
    order = np.argsort(-file.kld, kind="stable")[:count]
    return [
        {
            "before": texts.before(index),
            "token": texts.of(texts.target(index)),
            "kld": float(file.kld[index]),
            "reference_top": texts.of(quality.base.top[index]),
            "level_top": texts.of(file.top[index]),
            "reference_p": float(np.exp(-quality.base.nll[index])),
            "level_p": float(np.exp(-file.nll[index])),
        }
        for index in map(int, order)
    ]


def lines(quality: Quality, names: Sequence[str], texts: TokenTexts) -> Iterator[dict[str, Any]]:
    """One document per scored token, in the order of the text: the token, and the scores of the reference and files."""
    base = quality.base
    for index in range(len(base.nll)):
        yield {
            **texts.where(index),
            "reference": _scores(texts, base, index) | {"top_p": float(base.top_p[index])},
            "levels": {
                name: _scores(texts, file, index) | {"kld": float(file.kld[index])}
                for name, file in zip(names, quality.files, strict=True)
            },
        }


def lines_alone(windows: Iterable[TokenScores], texts: TokenTexts) -> Iterator[dict[str, Any]]:
    """The same for one file without a reference, from its scores of each window."""
    index = 0
    for found in windows:
        for row in range(len(found.nll)):
            yield texts.where(index) | _scores(texts, found, row) | {"top_p": float(found.top_p[row])}
            index += 1


def write_lines(documents: Iterator[dict[str, Any]], path: Path, *, overwrite: bool = False) -> None:
    """Writes JSON Lines in UTF-8. Raises `OutputError`."""
    with output_file(path, overwrite=overwrite) as file:
        for document in documents:
            file.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")


def _scores(texts: TokenTexts, scores: TokenScores | FileScores, index: int) -> dict[str, Any]:
    return {"nll": float(scores.nll[index]), "top": texts.of(int(scores.top[index]))}
