"""What a report is made of, before it is Markdown or HTML: sections of texts, lists, tables and plots.

All texts are plain; whatever renders them escapes them. Names and tokens in them come from models and files of
strangers: `visible` and `quoted` keep them on one line and show what can not be seen.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

_UNSEEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}  # controls, direction marks, surrogates, line separators
_SHORT = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Items:
    """A list of sentences."""

    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Rows of cells; an empty cell is a value that is not known."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A plot by its name in `plots.PLOTS`; `caption` says what to see in it."""

    name: str
    caption: str


Block = Text | Items | Table | Picture


@dataclass(frozen=True)
class Section:
    """`level` is 1 for the whole report, 2 for its parts, 3 below; `folded` parts are long and open on demand."""

    title: str
    blocks: Sequence[Block] = field(default_factory=list)
    level: int = 2
    folded: bool = False


def is_number(cell: str) -> bool:
    """Whether a cell of a table is to be aligned as a number."""
    return bool(cell) and cell[0] in "+-0123456789"


def number_columns(table: Table) -> list[bool]:
    """Which columns hold numbers alone (and unknown values)."""
    columns = [[row[index] for row in table.rows] for index in range(len(table.columns))]
    return [any(cells) and all(is_number(cell) or not cell for cell in cells) for cells in columns]


def visible(text: str) -> str:
    """Characters that would not show, or break the line, as escapes."""
    return "".join(_escaped(c) if unicodedata.category(c) in _UNSEEN else c for c in text)


def quoted(text: str, longest: int = 40) -> str:
    """A piece of a text in quotation marks, so that its spaces show; of a long one the end."""
    cut = text if len(text) <= longest else "…" + text[1 - longest :]
    return '"' + visible(cut.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def shortened(text: str, longest: int = 24) -> str:
    """A name that has to fit into a plot or a sentence."""
    seen = visible(text)
    return seen if len(seen) <= longest else seen[: longest - 1] + "…"


def _escaped(character: str) -> str:
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
