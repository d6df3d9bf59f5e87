"""The writing page in Chromium: a server with two quant types, and pages that may ask no other host."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from dgpt2_quant.serve.calls.models import ModelFile

from ..serve.conftest import Running, running

_ARGUMENTS = (
    "--no-sandbox",  # root has none
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
OpenPage = Callable[..., Any]


@pytest.fixture(scope="module")
def server(storybook_files: dict[str, Path]) -> Iterator[Running]:
    """storybook as Q8_0 and as Q4_0, in that order."""
    with running([ModelFile("storybook", name, storybook_files[name]) for name in ("Q8_0", "Q4_0")]) as found:
        yield found


@pytest.fixture(scope="module")  # not longer: until it is closed, this thread counts as one that runs an event loop
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium; `make test-all` installs it on Debian")
    with sync_playwright() as started:
        found = started.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield found
        found.close()


@pytest.fixture
def problems() -> Iterator[list[str]]:
    """Errors of the pages' consoles and scripts, and requests to other hosts. Any that is left fails the test."""
    found: list[str] = []
    yield found
    assert not found


@pytest.fixture
def open_page(browser: Any, server: Running, problems: list[str]) -> Iterator[OpenPage]:
    """`open_page(path="/", **options)` opens the page; the options are those of Playwright's `new_context`."""
    contexts = []

    def check_host(route: Any) -> None:
        if urlsplit(route.request.url).netloc == f"127.0.0.1:{server.port}":
            route.continue_()
        else:
            problems.append(f"a request to {route.request.url}")
            route.abort()

    def open_one(path: str = "/", **options: Any) -> Any:
        context = browser.new_context(base_url=f"http://127.0.0.1:{server.port}", **options)
        contexts.append(context)
        context.route("**/*", check_host)
        page = context.new_page()
        page.on("console", lambda said: problems.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(path)
        return page

    yield open_one
    for context in contexts:
        context.close()


@pytest.fixture
def page(open_page: OpenPage) -> Any:
    """The writing page, loaded."""
    return open_page()


@pytest.fixture
def violations() -> Callable[[Any], list[str]]:
    """`violations(page)` lists what axe-core finds: the rule, and the element's HTML."""
    from axe_playwright_python.sync_playwright import Axe

    def find(page: Any) -> list[str]:
        found = Axe().run(page).response["violations"]
        return [f"{rule['id']}: {node['html']}" for rule in found for node in rule["nodes"]]

    return find
