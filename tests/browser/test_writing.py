"""Continuations at the cursor: asked for, chosen, taken by words, undone, and joined to the text."""

import re
from typing import Any

import pytest

from ..serve.conftest import Running
from ..waiting import wait_for
from .writing import configure, continuations, is_open, offered, text_of, write

pytestmark = pytest.mark.browser
START = "Once upon a time, in a little"


def test_tab_offers_three_continuations_and_enter_accepts_one(page: Any) -> None:
    write(page, START)
    found = continuations(page)
    assert len(found) == 3
    assert all(found)
    assert page.locator("#editor").get_attribute("aria-activedescendant") == "continuation-0"
    assert page.locator("#status").inner_text().startswith("3 continuations. 1:")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert text_of(page) == START + found[1]
    assert not is_open(page)
    assert page.evaluate("CSS.highlights.get('model').size") == 1


def test_a_continuation_is_inserted_at_the_cursor(page: Any) -> None:
    write(page, "The bear\nwent home.")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("End")
    found = continuations(page, "Control+Space")
    page.locator("#suggestion-list li").nth(2).click()
    assert text_of(page) == f"The bear{found[2]}\nwent home."


def test_the_empty_document_and_a_new_line_are_continued(page: Any) -> None:
    page.locator("#editor").focus()
    assert all(continuations(page))
    page.keyboard.press("Escape")
    write(page, "The end.\n\n")
    assert all(continuations(page))
    page.keyboard.press("Enter")
    assert text_of(page).startswith("The end.\n\n")


def test_twenty_accepted_texts_are_undone_and_redone_exactly(page: Any) -> None:
    configure(page, length=5, seed="3")
    write(page, START)
    states = [text_of(page)]
    for _ in range(20):
        continuations(page)
        page.keyboard.press("Enter")
        states.append(text_of(page))
    assert len(set(states)) == 21
    marked = page.evaluate("CSS.highlights.get('model').size")
    for state in reversed(states[:-1]):
        page.keyboard.press("Control+z")
        assert text_of(page) == state
    assert page.evaluate("CSS.highlights.get('model').size") == 0
    for state in states[1:]:
        page.keyboard.press("Control+Shift+z")
        assert text_of(page) == state
    assert page.evaluate("CSS.highlights.get('model').size") == marked == 20


def test_control_right_takes_one_word_and_keeps_the_rest(page: Any) -> None:
    write(page, START)
    words = continuations(page)[0]
    page.keyboard.press("Control+ArrowRight")
    first = re.match(r"\s*\S+", words)
    assert first
    assert text_of(page) == START + first[0]
    assert offered(page)[0] == words[first.end() :]
    page.keyboard.press("Enter")
    assert text_of(page) == START + words


def test_tab_again_gives_three_more_and_the_first_ones_are_kept(page: Any) -> None:
    write(page, START)
    first = continuations(page)
    second = continuations(page)
    assert first != second
    assert page.locator("[data-show=set]").inner_text() == "2 of 2"
    assert continuations(page, "Shift+Tab") == first
    assert continuations(page) == second
    page.keyboard.press("Escape")
    assert not is_open(page)
    assert text_of(page) == START


def test_typing_closes_the_list(page: Any) -> None:
    write(page, START)
    continuations(page)
    page.keyboard.type(" x")
    assert text_of(page) == START + " x"
    assert not is_open(page)


def test_a_seed_gives_the_same_continuations_again(page: Any) -> None:
    configure(page, seed="7", length=8)
    write(page, START)
    first = continuations(page)
    page.keyboard.press("Escape")
    assert continuations(page) == first


@pytest.mark.parametrize(
    ("cut", "rest"), [("Once upon a ti", r"me\b"), ("Once upon ", r"\S"), ("Once upon a", " time")]
)
def test_a_continuation_completes_what_is_there(page: Any, cut: str, rest: str) -> None:
    configure(page, temperature=0, length=5)
    write(page, cut)
    found = continuations(page)[0]
    assert re.match(rest, found)
    page.keyboard.press("Enter")
    assert text_of(page) == cut + found


def test_to_the_end_of_the_sentence(page: Any) -> None:
    configure(page, seed="1")
    write(page, START)
    found = continuations(page, "Control+Enter")
    assert all(not re.search(r"[.!?]\W?\s", text.strip()) for text in found)
    assert any(re.search(r"[.!?]\W?$", text) for text in found)


def test_keys_of_an_input_method_are_left_alone(page: Any) -> None:
    write(page, START)
    page.evaluate(
        """document.getElementById('editor').dispatchEvent(
            new KeyboardEvent('keydown', {key: 'Tab', isComposing: true, bubbles: true, cancelable: true}))"""
    )
    assert not is_open(page)


def test_escape_then_tab_leaves_the_editor_and_a_setting_turns_tab_off(page: Any) -> None:
    write(page, START)
    page.keyboard.press("Escape")
    assert "leaves the text" in page.locator("#status").inner_text()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") != "editor"
    configure(page, tab=False)
    page.locator("#editor").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") != "editor"
    assert not is_open(page)


def test_everything_works_from_the_keyboard(page: Any) -> None:
    def focus_on(name: str) -> None:
        for _ in range(30):
            if page.evaluate("document.activeElement.id") == name:
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"the focus does not reach {name}")

    focus_on("editor")
    page.keyboard.type(START)
    found = continuations(page)
    page.keyboard.press("Enter")
    page.keyboard.press("Escape")
    page.keyboard.press("Tab")
    focus_on("shade")
    page.keyboard.press("Enter")
    wait_for(lambda: page.locator("#inspect").is_visible())
    focus_on("inspect")
    page.keyboard.press("Enter")
    wait_for(lambda: page.locator("#token-list li").count() == 10)
    page.keyboard.press("Escape")
    assert text_of(page) == START + found[0]


def test_the_prompt_of_a_long_document_keeps_its_end(page: Any, server: Running) -> None:
    paragraph = "The bear went home, and the wind blew over the sea and the sand until the evening came. " * 4
    page.evaluate(
        "text => localStorage.setItem('dgpt2-quant.document', JSON.stringify({text, marks: []}))", paragraph * 60
    )
    configure(page, length=5)
    page.locator("#editor").focus()
    page.keyboard.press("Control+End")
    page.keyboard.type("Then the b")
    assert all(continuations(page))
