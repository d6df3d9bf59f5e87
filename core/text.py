"""Loads texts for calibration and evaluation: bundled ones by name, or any UTF-8 input.

As in Python's text mode, a byte order mark is dropped and CRLF is read as LF (unless `keep_crlf`). Notes on the text
report every such change.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from .archive import DataFile, not_text_error
from .errors import ModelNotFoundError, UsageError
from .read_input import Announce, input_exists, read_input

BUNDLED = {"evaluation": "evaluation.txt", "calibration": "calibration.txt"}
_MARK = "\ufeff"


@dataclass(frozen=True)
class NamedText:
    """A text, and the SHA-256 of its bytes as read (unpacked, otherwise unchanged).

    `notes` are sentences on changes to the text. `parse_special` decides whether `<|endoftext|>` is read as that token
    (as in Transformers) or as letters (as in llama-perplexity).
    """

    name: str
    sha256: str
    text: str
    notes: tuple[str, ...] = ()
    parse_special: bool = True

    def announced(self, announce: Announce | None) -> "NamedText":
        """Announces the notes, and returns the text itself."""
        if announce:
            for note in self.notes:
                announce(note)
        return self

    def noting(self, note: str | None, announce: Announce | None = None) -> "NamedText":
        """A copy with one more note, which is announced; the text itself for None."""
        if note is None:
            return self
        if announce:
            announce(note)
        return replace(self, notes=(*self.notes, note))


def load_text(
    text: str | Path | NamedText = "evaluation",
    *,
    prefer: Collection[str] = (),
    parse_special: bool = True,
    keep_crlf: bool = False,
    announce: Announce | None = None,
) -> NamedText:
    """Loads a bundled text by name, or an input as `read_input`; returns a loaded text unchanged.

    `prefer` names members to take from an archive of several; `announce` is called with each note. Raises
    `ModelNotFoundError` for an input that cannot be read, `UsageError` for one that is empty or not UTF-8.
    """
    if isinstance(text, NamedText):
        return text
    if str(text) in BUNDLED and not input_exists(text):
        return bundled_text(str(text), parse_special=parse_special)
    try:
        read = read_input(text, announce=announce)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            error.message, f"Name a file, - for stdin, or one of: {', '.join(BUNDLED)}."
        ) from error
    found = as_text(read.file(prefer=prefer), parse_special=parse_special, keep_crlf=keep_crlf)
    if not found.text:
        raise UsageError(f"the text {found.name} is empty", "Name another text, or - for stdin.")
    return found.announced(announce)


def bundled_text(name: str, *, parse_special: bool = True) -> NamedText:
    """A bundled text, whether or not a file has its name."""
    content = files("dgpt2_quant.demo").joinpath(BUNDLED[name]).read_bytes()
    return as_text(DataFile(name, content), parse_special=parse_special)


def is_bundled(name: str, sha256: str) -> bool:
    """Whether the text with this name and hash is a bundled one."""
    return name in BUNDLED and bundled_text(name).sha256 == sha256


def as_text(file: DataFile, *, parse_special: bool = True, keep_crlf: bool = False) -> NamedText:
    """Decodes a file's content. Raises `UsageError` that names the line of the first byte that is not UTF-8."""
    try:
        text = file.content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_text_error(file.name, file.content, error) from error
    if "\0" in text:
        raise not_text_error(file.name, file.content)
    notes = []
    if text.startswith(_MARK):
        text = text.removeprefix(_MARK)
        notes.append(f"{file.name}: byte order mark dropped")
    if pairs := text.count("\r\n"):
        what = "kept" if keep_crlf else "read as LF"
        text = text if keep_crlf else text.replace("\r\n", "\n")
        notes.append(f"{file.name}: {pairs:,} CRLF line end{'s' * (pairs > 1)}, {what}")
    if alone := text.count("\r") - text.count("\r\n"):
        notes.append(f"{file.name}: {alone:,} carriage return{'s' * (alone > 1)} without a line feed, kept")
    return NamedText(file.name, file.sha256, text, tuple(notes), parse_special)
