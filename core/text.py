"""The texts that importance is collected on, and levels are compared on: what is read, and how it is understood.

A byte order mark at the beginning is not text, and CRLF line ends are read as LF, as Python and Transformers' examples
read a text file; `keep_crlf` leaves them. Whatever is done to a text is said in its notes.
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path

from .archive import DataFile, no_text
from .errors import ModelNotFoundError, UsageError
from .read_input import Announce, input_exists, read_input

BUNDLED = {"evaluation": "evaluation.txt", "calibration": "calibration.txt"}
_MARK = "\ufeff"


@dataclass(frozen=True)
class NamedText:
    """A text, and the hash of its bytes as they were read, unpacked but otherwise unchanged.

    `notes` are sentences on what is not as it looks; `parse_special` says whether `<|endoftext|>` in it is the token
    of that name (as to Transformers) or letters (as to llama-perplexity).
    """

    name: str
    sha256: str
    text: str
    notes: tuple[str, ...] = ()
    parse_special: bool = True

    def announced(self, announce: Announce | None) -> "NamedText":
        """Itself, after its notes were announced."""
        if announce:
            for note in self.notes:
                announce(note)
        return self

    def noting(self, note: str | None, announce: Announce | None = None) -> "NamedText":
        """The same with one more note, which is announced; with None as it is."""
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
    """A bundled text by name, or any UTF-8 input that `read_input` takes; a text that is loaded already as it is.

    `prefer` are the members that are taken from an archive of several; `announce` is called with each note. Raises
    `ModelNotFoundError` for an input that cannot be read, `UsageError` for one that is empty or no UTF-8 text.
    """
    if isinstance(text, NamedText):
        return text
    if str(text) in BUNDLED and not input_exists(text):
        content = files("dgpt2_quant.demo").joinpath(BUNDLED[str(text)]).read_bytes()
        return as_text(DataFile(str(text), content), parse_special=parse_special)
    try:
        read = read_input(text, announce=announce)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            error.message, f"Name a file, - for stdin, or one of: {', '.join(BUNDLED)}."
        ) from error
    found = as_text(read.file(prefer=prefer), parse_special=parse_special, keep_crlf=keep_crlf)
    if not found.text:
        raise UsageError(f"the text {found.name} is empty", "Name a text, or - for stdin.")
    return found.announced(announce)


def as_text(file: DataFile, *, parse_special: bool = True, keep_crlf: bool = False) -> NamedText:
    """A file's content as text. Raises `UsageError` that names the line of the first byte that is no UTF-8."""
    try:
        text = file.content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise no_text(file.name, file.content, error) from error
    if "\0" in text:
        raise no_text(file.name, file.content)
    notes = []
    if text.startswith(_MARK):
        text = text.removeprefix(_MARK)
        notes.append(f"{file.name}: the byte order mark at the beginning is dropped")
    if pairs := text.count("\r\n"):
        what = "kept" if keep_crlf else "read as LF"
        text = text if keep_crlf else text.replace("\r\n", "\n")
        notes.append(f"{file.name}: {pairs:,} CRLF line end{'s' * (pairs > 1)}, {what}")
    if alone := text.count("\r") - text.count("\r\n"):
        notes.append(f"{file.name}: {alone:,} carriage return{'s' * (alone > 1)} without a line feed, kept")
    return NamedText(file.name, file.sha256, text, tuple(notes), parse_special)
