"""What the tests do on the page: type, ask for continuations, read the text."""

import json
from typing import Any

from ..waiting import wait_for

PATIENCE = 30  # seconds


def configure(page: Any, **settings: object) -> None:
    """Saves settings as the page does, and loads it again."""
    page.evaluate("text => localStorage.setItem('dgpt2-quant.settings', text)", json.dumps(settings))
    page.reload()
    wait_for(lambda: page.locator("#model option").count(), PATIENCE)


def write(page: Any, text: str) -> None:
    """Types a text at the cursor; the editor gets the focus first."""
    page.locator("#editor").focus()
    for number, line in enumerate(text.split("\n")):
        if number:
            page.keyboard.press("Enter")
        page.keyboard.insert_text(line)


def text_of(page: Any) -> str:
    """The document: a last line break that shows no line is the browser's own."""
    found: str = page.evaluate("document.getElementById('editor').textContent")
    return found.removesuffix("\n")


def continuations(page: Any, key: str = "Tab") -> list[str]:
    """Presses a key that asks for three continuations, and returns them when they are complete."""
    page.keyboard.press(key)
    return offered(page)


def offered(page: Any) -> list[str]:
    """The continuations in the open list, when they are complete."""
    wait_for(lambda: page.evaluate(_COMPLETE), PATIENCE)
    texts = page.evaluate("[...document.querySelectorAll('#suggestion-list li')].map((one) => one.childNodes[1].data)")
    return [text.replace("↵", "\n") for text in texts]


_COMPLETE = """(() => {
  const all = [...document.querySelectorAll('#suggestion-list li')];
  return !document.getElementById('suggestions').hidden && all.length && all.every((one) => one.className === '');
})()"""


def is_open(page: Any) -> bool:
    """Whether the list of continuations is shown."""
    return bool(page.locator("#suggestions").is_visible())
