"""The files of the writing page: small, short, and without another host's name."""

import gzip
import re

from .test_page_routes import FOLDER

MOST_BYTES = 60_000  # compressed, of all files
ESCAPED = 'execCommand("insertHTML", false, html)'  # of pasted text, in editor.js
SVG = "http://www.w3.org/2000/svg"


def test_the_page_is_small_and_asks_no_other_host() -> None:
    files = {path.name: path.read_text("utf-8") for path in FOLDER.iterdir()}
    assert sum(len(gzip.compress(text.encode())) for text in files.values()) <= MOST_BYTES
    for name, text in files.items():
        assert len(text.splitlines()) <= 300, name
        assert not re.search(r"https?://|innerHTML|insertHTML|\beval\b", text.replace(SVG, "").replace(ESCAPED, "")), (
            name
        )
