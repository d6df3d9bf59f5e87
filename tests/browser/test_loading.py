"""The page loads without errors, from its own host only, and axe-core finds nothing in any of its states."""

from collections.abc import Callable
from typing import Any

import pytest

from ..serve.conftest import Running
from ..waiting import wait_for
from .conftest import OpenPage
from .writing import PATIENCE, configure, continuations, write

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_every_view_and_list_is_accessible(
    open_page: OpenPage, violations: Callable[[Any], list[str]], scheme: str, width: int
) -> None:
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    configure(page, length=5)
    assert violations(page) == []
    write(page, "Once upon a time there was a little bear.")
    continuations(page)
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.keyboard.press("F2")
    wait_for(lambda: page.locator("#token-list li").count() == 10, PATIENCE)
    page.keyboard.press("ArrowDown")
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.locator("#show-table").click()
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.locator("#settings-button").click()
    assert violations(page) == []
    page.locator("#settings-close").click()
    page.locator("nav a[href='#types']").click()
    wait_for(lambda: page.locator("#types-table tr").count(), PATIENCE)
    assert violations(page) == []
    page.locator("nav a[href='#compare']").click()
    page.locator("#compare-continue").click()
    wait_for(lambda: page.locator("#compare-stop").is_hidden(), PATIENCE)
    page.locator("#compare-score").click()
    wait_for(lambda: page.locator(".scored").count(), PATIENCE)
    page.locator(".scored").focus()
    page.locator("#compare-scores summary").click()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_the_policy_blocks_scripts_and_requests_of_other_origins(
    page: Any, server: Running, problems: list[str]
) -> None:
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran=1'}))"
    )
    page.evaluate("fetch('http://127.0.0.1:9/').catch(() => 0)")
    assert page.evaluate("window.ran") is None
    assert len([text for text in problems if "Content Security Policy" in text]) >= 2, problems
    problems.clear()
