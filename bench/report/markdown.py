"""Renders a report as GitHub's Markdown.

Characters that could be markup become character references (`&#124;`). CommonMark treats those as plain characters
everywhere (section 2.5), also in table cells, where a backslash is not enough.
"""

import re
from collections.abc import Mapping, Sequence

from dgpt2_quant.bench.document.blocks import Block, Items, Picture, Section, Table, Text, number_columns, visible

_MARKUP = re.compile(r"[&<>\\`*\[\]|~$^{}@]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])|(?<=[a-z]):(?=//)|(?<=www)\.", re.I)
_LINE_START = re.compile(r"^([#+=\-]|\d+[.)])(?=\s|$)")


def to_markdown(sections: Sequence[Section], pictures: Mapping[str, str]) -> str:
    """The whole page; `pictures` has the address of each existing plot, others are omitted."""
    lines: list[str] = []
    for section in sections:
        title = escaped(section.title)
        lines += [f"<details><summary>{title}</summary>" if section.folded else f"{'#' * section.level} {title}", ""]
        for block in section.blocks:
            if found := _block(block, pictures):
                lines += [*found, ""]
        lines += ["</details>", ""] * section.folded
    return "\n".join(lines).rstrip("\n") + "\n"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table, numbers aligned right. The cells are Markdown."""
    rules = ["---:" if is_number else "---" for is_number in number_columns(Table(columns, rows))]
    return [f"| {' | '.join(cells)} |" for cells in (columns, rules, *rows)]


def escaped(text: str) -> str:
    """Plain text, escaped for a line of Markdown."""
    safe = _MARKUP.sub(lambda match: _references(match[0]), visible(text))
    return _LINE_START.sub(lambda match: match[1][:-1] + _references(match[1][-1]), safe)


def _references(characters: str) -> str:
    return "".join(f"&#{ord(character)};" for character in characters)


def _block(block: Block, pictures: Mapping[str, str]) -> list[str]:
    match block:
        case Text(text):
            return [escaped(text)]
        case Items(items):
            return [f"- {escaped(item)}" for item in items]
        case Table(columns, rows):
            return markdown_table([*map(escaped, columns)], [[*map(escaped, row)] for row in rows])
        case Picture(name, caption) if name in pictures:
            return [f"![{escaped(caption)}]({pictures[name]})"]
    return []
