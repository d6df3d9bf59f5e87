"""Renders a report as one HTML file, without network or other files, for light and dark mode and small screens.

A content security policy forbids the browser to load anything, and to run any script but the one below, by its hash. So
even a bug in the escaping would not let a model's name run a script.
"""

import base64
import hashlib
import html
import re
from collections.abc import Mapping, Sequence

from dgpt2_quant.bench.document.blocks import Block, Items, Picture, Section, Table, Text, number_columns, visible

from .plot_axes import GRID, INK, PALE, PAPER

_STYLE = """
:root { color-scheme: light dark; --ink: #24292e; --pale: #5d646c; --paper: #fefefe; --grid: #d9dde1; --tint: #f3f5f7;
  --mark: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --pale: #a0a7b0; --paper: #14171b; --grid: #383e46;
  --tint: #1d2127; --mark: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 76rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .4rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--grid); }
h3, summary { font-size: 1rem; font-weight: 600; margin: 1.2rem 0 .5rem; }
summary { cursor: pointer; margin: .5rem 0; }
p, ul { max-width: 48rem; }
ul { padding-left: 1.2rem; }
li { margin: .25rem 0; }
.first ul { background: var(--tint); border-left: .25rem solid var(--mark); padding: .7rem 1rem .7rem 2rem; }
.table { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .3rem .7rem; text-align: left; border-bottom: 1px solid var(--grid); vertical-align: top; }
td { white-space: pre-wrap; min-width: 4rem; }
td.n, th.n { text-align: right; }
td.n { white-space: nowrap; }
thead th { color: var(--pale); font-weight: 600; vertical-align: bottom; cursor: pointer; }
tbody th { font-weight: 600; white-space: nowrap; position: sticky; left: 0; background: var(--paper); }
tbody tr:hover > * { background: var(--tint); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }
figure { margin: 0; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { color: var(--pale); font-size: .875rem; }
"""
# a click on a heading sorts by that column, a second click in reverse
_SCRIPT = """
for (const head of document.querySelectorAll("thead th")) head.onclick = () => {
  const body = head.closest("table").tBodies[0], column = head.cellIndex;
  const sign = head.dataset.sign = -(head.dataset.sign || -1);
  const value = row => row.cells[column].textContent, number = row => parseFloat(value(row));
  const order = (a, b) => number(a) - number(b) || value(a).localeCompare(value(b));
  const known = row => value(row) !== "";
  body.append(...[...body.rows].sort((a, b) => known(b) - known(a) || sign * order(a, b)));
};
"""
_COLOURS = {INK: "--ink", PALE: "--pale", PAPER: "--paper", GRID: "--grid"}


def to_html(sections: Sequence[Section], pictures: Mapping[str, str]) -> str:
    """The whole page; `pictures` has the SVG of each existing plot, others are omitted."""
    digest = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    title = _escaped(sections[0].title if sections else "report")
    body = "\n".join(
        _section(section, pictures, "first" if number == 1 else "") for number, section in enumerate(sections)
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n{body}\n"
        f"<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _section(section: Section, pictures: Mapping[str, str], css_class: str) -> str:
    blocks = _blocks(section.blocks, pictures)
    title = _escaped(section.title)
    if section.folded:
        return f"<details><summary>{title}</summary>\n{blocks}\n</details>"
    kind = f' class="{css_class}"' if css_class else ""
    return f"<section{kind}>\n<h{section.level}>{title}</h{section.level}>\n{blocks}\n</section>"


def _blocks(blocks: Sequence[Block], pictures: Mapping[str, str]) -> str:
    shown = [block for block in blocks if isinstance(block, Picture) and block.name in pictures]
    parts = [_block(block) for block in blocks if not isinstance(block, Picture)]
    if shown:
        parts.append(
            '<div class="plots">\n' + "\n".join(_figure(one, pictures[one.name]) for one in shown) + "\n</div>"
        )
    return "\n".join(parts)


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return f"<p>{_escaped(text)}</p>"
        case Items(items):
            return "<ul>\n" + "\n".join(f"<li>{_escaped(item)}</li>" for item in items) + "\n</ul>"
        case Table():
            return _table(block)
    return ""


def _table(table: Table) -> str:
    css = [' class="n"' if is_number else "" for is_number in number_columns(table)]
    head = "".join(f'<th scope="col"{c}>{_escaped(name)}</th>' for name, c in zip(table.columns, css, strict=True))
    rows = []
    for first, *cells in table.rows:
        others = "".join(f"<td{c}>{_escaped(cell)}</td>" for cell, c in zip(cells, css[1:], strict=True))
        rows.append(f'<tr><th scope="row">{_escaped(first)}</th>{others}</tr>')
    body = "\n".join(rows)
    table_head, table_body = f"<thead><tr>{head}</tr></thead>", f"<tbody>\n{body}\n</tbody>"
    return f'<div class="table" tabindex="0"><table>\n{table_head}\n{table_body}\n</table></div>'


def _figure(picture: Picture, svg: str) -> str:
    caption = _escaped(picture.caption)
    drawing = f'<div role="img" aria-label="{caption}">{_inline(svg, picture.name)}</div>'
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def _inline(svg: str, name: str) -> str:
    """The `<svg>` element, with unique ids and the colours of the page."""
    drawing = svg[svg.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
    drawing = re.sub(r"<!--.*?-->", "", drawing, flags=re.DOTALL)  # which repeat the drawn texts
    drawing = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", drawing)
    for colour, variable in _COLOURS.items():
        drawing = drawing.replace(colour, f"var({variable})")
    return drawing.strip()


def _escaped(text: str) -> str:
    return html.escape(visible(text)).replace(" %", "\u00a0%")  # no line break before the sign
