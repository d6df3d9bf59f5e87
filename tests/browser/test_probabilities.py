"""How likely the model found each token: shading, the ten likeliest under the pointer or the cursor, and the table."""

import math
from typing import Any

import pytest

from ..serve.conftest import Running
from ..waiting import wait_for
from .writing import PATIENCE, configure, is_open, text_of, write

pytestmark = pytest.mark.browser
TEXT = "Once upon a time there was a little bear.\n“Who are you?” said the 🐻."
_POINT = """(offset) => {
  const range = document.createRange();
  const node = document.getElementById('editor').firstChild;
  range.setStart(node, offset); range.setEnd(node, offset + 1);
  const box = range.getBoundingClientRect();
  return [box.left + box.width / 2, box.top + box.height / 2];
}"""
_SHADED = "['p1', 'p2', 'p3', 'p4'].map((name) => CSS.highlights.get(name)?.size ?? 0).reduce((a, b) => a + b)"


def shade(page: Any) -> None:
    page.locator("#shade").click()
    wait_for(lambda: page.evaluate(_SHADED), PATIENCE)


def test_the_table_has_the_numbers_of_the_api(page: Any, server: Running) -> None:
    write(page, TEXT)
    shade(page)
    page.locator("#show-table").click()
    rows = page.evaluate("[...document.querySelectorAll('#table-dialog tbody tr')].map((row) => row.innerText)")
    rows = [row.split("\t") for row in rows]
    scored = server.post("/v1/completions", prompt=TEXT, echo=True, max_tokens=0, logprobs=1).json()["choices"][0]
    assert "".join(token for token, *_ in rows).replace("↵", "\n") == TEXT  # characters of several tokens are one row
    offsets = scored["logprobs"]["text_offset"]
    by_offset = dict.fromkeys(offsets, 0.0)
    for offset, value in zip(offsets[1:], scored["logprobs"]["token_logprobs"][1:], strict=True):
        by_offset[offset] += value
    assert rows[0][1] == "none"
    for (_, shown, *_), logprob in zip(rows[1:], list(by_offset.values())[1:], strict=True):
        share = 100 * math.exp(logprob)
        digits = 0 if share >= 10 else 1 if share >= 0.1 else 3
        if share >= 0.001:
            assert float(shown.removesuffix(" %")) == pytest.approx(share, abs=0.6 * 10**-digits + 0.01 * share)


def test_digits_have_their_place_among_the_likeliest(page: Any) -> None:
    write(page, "In the year 17")
    shade(page)
    page.keyboard.press("F2")
    wait_for(lambda: page.locator("#token-list li").count() == 10, PATIENCE)
    names = page.locator("#token-list .name").all_inner_texts()
    shares = [float(one.removesuffix(" %")) for one in page.locator("#token-list .share").all_inner_texts()]
    assert names != sorted(names)
    assert shares == sorted(shares, reverse=True)


def test_pointing_shows_ten_tokens_and_a_click_replaces_and_goes_on(page: Any) -> None:
    write(page, "Once upon a time there was a little bear who lived in a house.")
    shade(page)
    at = text_of(page).index("little") + 2
    page.mouse.move(*page.evaluate(_POINT, at))
    wait_for(lambda: page.locator("#token-list li").count() == 10, PATIENCE)
    assert page.locator(".token-title").inner_text().startswith("“ little”")
    chosen = page.locator("#token-list li:not(.here)").first
    word = chosen.locator(".name").inner_text()
    chosen.click()
    assert text_of(page) == f"Once upon a time there was a{word} bear who lived in a house."
    assert is_open(page)


def test_the_list_at_the_pointer_covers_no_line_and_moves_no_text(page: Any) -> None:
    write(page, "\n".join(["The bear went home."] * 30))
    shade(page)
    page.evaluate("document.querySelector('#write .scroll').scrollTop = 0")
    wait_for(lambda: page.evaluate(_SHADED), PATIENCE)
    box = page.locator("#write .scroll").bounding_box()
    at = page.locator("#editor").bounding_box()
    x, y = at["x"] + 60, box["y"] + box["height"] - 30
    page.mouse.move(x, y)
    wait_for(lambda: page.locator("#token-list li").count() == 10, PATIENCE)
    list_box = page.locator("#token").bounding_box()
    assert list_box["y"] + list_box["height"] <= y
    assert page.evaluate("document.querySelector('#write .scroll').scrollTop") == 0


def test_f2_goes_through_the_tokens_with_arrow_keys(page: Any) -> None:
    write(page, "Once upon a time there was")
    page.keyboard.press("F2")
    wait_for(lambda: page.locator("#token-list li").count() == 10, PATIENCE)
    assert page.locator(".token-title").inner_text().startswith("“ was”")
    page.keyboard.press("ArrowLeft")
    wait_for(lambda: page.locator(".token-title").inner_text().startswith("“ there”"), PATIENCE)
    wait_for(lambda: "there" in page.locator("#status").inner_text(), PATIENCE)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.locator("#editor").get_attribute("aria-activedescendant") == "likely-1"
    word = page.locator("#likely-1 .name").inner_text()
    page.keyboard.press("Enter")
    assert text_of(page) == f"Once upon a time{word} was"
    page.keyboard.press("Control+z")
    assert text_of(page) == "Once upon a time there was"


def test_only_what_is_in_view_is_shaded_and_edits_are_scored_again(page: Any) -> None:
    words = "The bear went home, and the wind blew over the sea and the sand until the evening came.\n"
    page.evaluate(
        "text => localStorage.setItem('dgpt2-quant.document', JSON.stringify({text, marks: []}))", words * 500
    )
    configure(page)
    shade(page)
    wait_for(lambda: page.evaluate("document.querySelector('#problem').hidden"))
    assert 20 < page.evaluate(_SHADED) < 2500
    page.locator("#editor").focus()
    page.keyboard.press("Control+Home")
    before = page.evaluate(_SHADED)
    page.keyboard.type("Xylophone qq ")
    wait_for(lambda: page.evaluate(_SHADED) != before, PATIENCE)


def test_without_highlights_the_page_is_a_plain_text_area(open_page: Any) -> None:
    page = open_page("about:blank")
    page.add_init_script(
        """Object.defineProperty(HTMLElement.prototype, 'contentEditable', {
             set() { throw new SyntaxError('not supported'); } })"""
    )
    page.goto("/")
    wait_for(lambda: page.locator("#model option").count(), PATIENCE)
    page.locator("textarea#editor").focus()
    page.keyboard.type("Once upon a ti")
    page.keyboard.press("Tab")
    wait_for(lambda: page.locator("#suggestion-list li:not(.growing)").count() == 3, PATIENCE)
    page.keyboard.press("Enter")
    assert page.locator("#editor").input_value().startswith("Once upon a time")
    page.keyboard.press("Control+z")
    assert page.locator("#editor").input_value() == "Once upon a ti"
