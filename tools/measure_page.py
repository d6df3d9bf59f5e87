"""Measures the writing page in Chromium: Tab to the first text, three continuations of 20 tokens, and key to paint.

usage: measure_page.py MODEL [--rounds N] [--threads N] [--screenshot FILE]

MODEL is anything that `serve` takes. Each round types a word, presses Tab and waits for three whole continuations; then
keys are typed in the middle of a document of 10,000 words, with shading. Times are from the key's event to the frame
that shows its effect, in milliseconds. Needs Playwright and Chromium (`make test-all` installs them). The last line is
JSON. --screenshot also writes the picture of docs/writing.md.
"""

import argparse
import json
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from dgpt2_quant.core.text import load_text
from harness import PROGRAM, print_document, show

_WORDS = 10_000
_PAUSE = 0.12  # seconds between two keys: a fast typist
_START = "Once upon a time there was a little bear who lived in a house by the sea."
_PICTURE = f"""{_START} He had a boat, and every morning he went out with it to catch a fish.

One day the wind was so strong that the boat was gone, and the bear sat down on the sand and wr"""

# Remembers for each key when the list of continuations first had a text, when it was complete, and the next frame.
_WATCH = """() => {
  window.times = [];
  const list = document.getElementById('suggestion-list');
  const painted = (then) => requestAnimationFrame(() => {
    const channel = new MessageChannel();
    channel.port1.onmessage = then;
    channel.port2.postMessage(0);
  });
  document.addEventListener('keydown', (event) => {
    const found = {key: event.key};
    times.push(found);
    painted(() => found.frame = performance.now() - event.timeStamp);
    if (event.key !== 'Tab') return;
    const observer = new MutationObserver(() => {
      const items = [...list.children];
      const now = () => performance.now() - event.timeStamp;
      if (!found.seen && items.some((one) => !one.lastChild.data.startsWith('…'))) {
        found.seen = true;
        painted(() => found.first = now());
      }
      if (!found.complete && items.length && items.every((one) => !one.classList.contains('growing'))) {
        found.complete = true;
        painted(() => found.all = now());
        observer.disconnect();
      }
    });
    observer.observe(list, {subtree: true, childList: true, characterData: true, attributes: true});
  }, true);
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", default="auto", help="of the server; auto, its default, leaves room for Chromium")
    parser.add_argument("--screenshot", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    with served(arguments) as address, opened(address) as (page, version):
        found = {"model": Path(arguments.model).name, "chromium": version, **measure(page, arguments.rounds)}
        if arguments.screenshot:
            picture(page, arguments.screenshot)
    print_document(arguments, found)


def measure(page: Any, rounds: int) -> dict[str, Any]:
    """Percentiles of all times, over `rounds` presses of Tab and five times as many keys."""
    load(page, "", length=20)
    page.evaluate(_WATCH)
    page.locator("#editor").focus()
    words = load_text("evaluation").text.split()
    for number in range(rounds):
        page.keyboard.insert_text(f" {words[number]}")
        page.keyboard.press("Tab")
        while not page.evaluate("times.at(-1).all"):
            time.sleep(0.01)
        page.keyboard.press("Escape")
        show(number + 1, rounds, "press of Tab")
    tabs = [one for one in page.evaluate("times") if one["key"] == "Tab"]

    load(page, document(words), shade=True)
    wait_until(page, "(CSS.highlights.get('p4')?.size ?? 0) > 0")
    page.evaluate(_WATCH)
    page.evaluate("document.querySelector('#write .scroll').scrollTo(0, 1e5)")
    page.mouse.click(640, 400)
    for key in islice(cycle("the little bear went to the sea "), 5 * rounds):
        page.keyboard.press("Space" if key == " " else key)
        time.sleep(_PAUSE)
    keys = page.evaluate("times.map((one) => one.frame)")
    assert len(page.evaluate("document.getElementById('editor').textContent").split()) >= _WORDS
    return {
        "tab_to_first_text_ms": percentiles([one["first"] for one in tabs]),
        "tab_to_three_texts_of_20_tokens_ms": percentiles([one["all"] for one in tabs]),
        "key_to_paint_ms": percentiles(keys),
        "words_of_the_document": _WORDS,
    }


def document(words: Sequence[str]) -> str:
    """A text of 10,000 words in paragraphs of 80."""
    all_words = list(islice(cycle(words), _WORDS))
    return "\n\n".join(" ".join(all_words[start : start + 80]) for start in range(0, _WORDS, 80))


def percentiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {f"p{share}": round(ordered[min(len(ordered) - 1, len(ordered) * share // 100)], 1) for share in (50, 95)}


def picture(page: Any, path: Path) -> None:
    """The page with a shaded text and an open list."""
    load(page, _PICTURE, shade=True, seed="11", length=16)
    page.locator("#editor").focus()
    page.keyboard.press("Control+End")
    wait_until(page, "(CSS.highlights.get('p4')?.size ?? 0) > 0")
    page.keyboard.press("Tab")
    wait_until(page, "document.querySelectorAll('#suggestion-list li:not(.growing)').length === 3")
    page.screenshot(path=path)


def load(page: Any, text: str, **settings: object) -> None:
    """Loads the page with a saved document and settings."""
    time.sleep(1)  # until the page has saved what was typed
    for name, value in {"document": {"text": text, "marks": []}, "settings": settings}.items():
        page.evaluate(
            "([name, value]) => localStorage.setItem(name, value)", [f"dgpt2-quant.{name}", json.dumps(value)]
        )
    page.reload()
    wait_until(page, "document.getElementById('model').options.length > 0")


def wait_until(page: Any, condition: str) -> None:
    while not page.evaluate(condition):
        time.sleep(0.02)


@contextmanager
def served(arguments: argparse.Namespace) -> Iterator[str]:
    """The address of a server for the model."""
    command = [PROGRAM, "serve", "-m", arguments.model, "--port", "0", "--threads", arguments.threads]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert child.stderr
    try:
        address = next(found[0] for line in child.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        threading.Thread(target=child.stderr.read, daemon=True).start()  # a full pipe would stop the server
        yield address
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)


@contextmanager
def opened(address: str) -> Iterator[tuple[Any, str]]:
    """The page in Chromium, and Chromium's version."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.goto(address)
        yield page, browser.version
        browser.close()


if __name__ == "__main__":
    main()
