"""The blocks of a report before it is rendered as Markdown or HTML: sections with texts, lists, tables and plots.

All texts are plain text; the renderers escape them. Names and tokens come from untrusted models and files: `visible`
and `quoted` keep them on one line and show invisible characters.
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
    """Rows of cells; an empty cell is an unknown value."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A plot by its name in `plots.PLOTS`; `caption` explains it."""

    name: str
    caption: str


Block = Text | Items | Table | Picture


@dataclass(frozen=True)
class Section:
    """A part of the report. `level` is that of its heading, 1-3; `folded` sections open on demand."""

    title: str
    blocks: Sequence[Block] = field(default_factory=list)
    level: int = 2
    folded: bool = False


def is_number(cell: str) -> bool:
    """Whether a table cell is aligned as a number."""
    return bool(cell) and cell[0] in "+-0123456789"


def number_columns(table: Table) -> list[bool]:
    """Which columns have only numbers and unknown values."""
    columns = [[row[index] for row in table.rows] for index in range(len(table.columns))]
    return [any(cells) and all(is_number(cell) or not cell for cell in cells) for cells in columns]


def visible(text: str) -> str:
    """The text with invisible characters and line breaks as escapes."""
    return "".join(_escaped(c) if unicodedata.category(c) in _UNSEEN else c for c in text)


def quoted(text: str, longest: int = 40) -> str:
    """A text in quotation marks, which show its spaces; only the end of a long one."""
    cut = text if len(text) <= longest else "…" + text[1 - longest :]
    return '"' + visible(cut.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def shortened(text: str, longest: int = 24) -> str:
    """A name, shortened to fit a plot or a sentence."""
    seen = visible(text)
    return seen if len(seen) <= longest else seen[: longest - 1] + "…"


def _escaped(character: str) -> str:
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
