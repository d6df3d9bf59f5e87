"""Trains a small GPT-2 of another shape and on another kind of text than storybook, to try recipes on.

usage: train_small.py {dictionary,code,handbook} OUT_FOLDER [MINUTES] [--source PATH]

| model | shape | text (`--source`) |
| --- | --- | --- |
| dictionary | 12 layers, 192 wide | English definitions: gcide.dict.dz of Debian's package dict-gcide |
| code | 6 layers, 320 wide, which 256 does not divide | the standard library of this Python |
| handbook | 4 layers, 256 wide, an output matrix of its own | Russian: html/ru-RU of Debian's package debian-handbook |

Every twentieth piece of the text is held out and written to OUT_FOLDER/MODEL.txt. Needs the extra `peers`. As with
train_storybook.py, a faster machine sees more tokens.
"""

import argparse
import gzip
import re
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tokenizers import ByteLevelBPETokenizer
from train_storybook import encode, shrink, train

_PIECE = 20_000  # characters
_MOST = 16_000_000  # characters of a text
_HELD_OUT = 20  # every twentieth piece


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=KINDS)
    parser.add_argument("out", type=Path)
    parser.add_argument("minutes", type=float, nargs="?", default=20)
    parser.add_argument("--source", type=Path)
    arguments = parser.parse_args()
    kind, out = KINDS[arguments.model], arguments.out
    text = kind.read(arguments.source or kind.source)[:_MOST]
    pieces = [text[at : at + _PIECE] for at in range(0, len(text), _PIECE)]
    held = "".join(pieces[::_HELD_OUT])
    kept = [piece for number, piece in enumerate(pieces) if number % _HELD_OUT]
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{arguments.model}.txt").write_text(held, "utf-8")
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / f"{number:05}.txt" for number in range(len(kept))]
        for file, piece in zip(files, kept, strict=True):
            file.write_text(piece, "utf-8")
        tokenizer = ByteLevelBPETokenizer()
        names = [str(file) for file in files]
        tokenizer.train(names, vocab_size=kind.vocabulary, min_frequency=2, special_tokens=["<|endoftext|>"])
        tokenizer.save_model(str(out))
        tokens = encode(tokenizer, files)
    print(f"{len(tokens):,} tokens to train on, {len(held):,} characters held out")
    model = train(tokens, arguments.minutes, vocab_size=kind.vocabulary, **kind.shape)
    model.save_pretrained(out)
    shrink(out)


def read_dictionary(path: Path) -> str:
    """The definitions without the marks of their sources; dictzip is gzip."""
    text = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
    return re.sub(r"\n +\[(1913 Webster|WordNet 1.5|PJC|[A-Z0-9 +]+)\]", "", text)


def read_code(folder: Path) -> str:
    files = [path for path in sorted(folder.rglob("*.py")) if not {"test", "site-packages"} & {*path.parts}]
    return "\n".join(path.read_text("utf-8", "replace") for path in files)


def read_handbook(folder: Path) -> str:
    return "\n".join(_text_of(path.read_text("utf-8")) for path in sorted(folder.glob("*.html")))


class _Text(HTMLParser):
    """Collects the text of paragraphs, headings and list items."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._skipped = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._skipped += tag in ("script", "style", "head")
        if tag in ("p", "h1", "h2", "h3", "li", "pre", "div"):
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._skipped -= tag in ("script", "style", "head")

    def handle_data(self, data: str) -> None:
        if not self._skipped:
            self.parts.append(data)


def _text_of(html: str) -> str:
    parser = _Text()
    parser.feed(html)
    return re.sub(r"\n\s*\n+", "\n", "".join(parser.parts))


@dataclass(frozen=True)
class _Kind:
    read: Callable[[Path], str]
    source: Path
    vocabulary: int
    shape: dict[str, Any]


KINDS = {
    "dictionary": _Kind(
        read_dictionary, Path("/usr/share/dictd/gcide.dict.dz"), 8192, {"n_layer": 12, "n_embd": 192, "n_head": 6}
    ),
    "code": _Kind(
        read_code, Path(sysconfig.get_path("stdlib")), 8192, {"n_layer": 6, "n_embd": 320, "n_head": 5}
    ),
    "handbook": _Kind(
        read_handbook,
        Path("/usr/share/doc/debian-handbook/html/ru-RU"),
        4096,
        {"n_layer": 4, "n_embd": 256, "n_head": 4, "tie_word_embeddings": False},
    ),
}  # fmt: skip

if __name__ == "__main__":
    main()
