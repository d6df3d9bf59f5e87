"""The page loads without errors, from its own host only, and axe-core finds nothing."""

from collections.abc import Callable
from typing import Any

import pytest

from ..serve.conftest import Running
from .conftest import OpenPage

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_loads_and_is_accessible(
    open_page: OpenPage, violations: Callable[[Any], list[str]], scheme: str, width: int
) -> None:
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    page.wait_for_load_state("networkidle")
    assert page.locator("h1").count() == 1
    assert violations(page) == []


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
