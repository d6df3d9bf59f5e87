"""The page over time: reload, export and import, API keys, and a server that goes away."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.serve.calls.models import ModelFile
from dgpt2_quant.serve.calls.settings import Settings

from ..serve.conftest import running
from ..waiting import wait_for
from .conftest import OpenPage
from .writing import PATIENCE, configure, continuations, text_of, write

pytestmark = pytest.mark.browser


def test_a_reload_restores_the_document_and_its_marks(page: Any) -> None:
    write(page, "One.\n\nTwo, and then")
    continuations(page)
    page.keyboard.press("Enter")
    write(page, "\n")
    text = text_of(page)
    page.reload()  # at once: what is not saved yet is saved when the page is left
    assert text_of(page) == text
    assert page.evaluate("CSS.highlights.get('model').size") == 1


def test_export_and_import(page: Any, tmp_path: Path) -> None:
    text = "One.\n\n\tTwo “three” 🐻.\n"
    write(page, text)
    page.locator("#settings-button").click()
    with page.expect_download() as waiting:
        page.locator("#export-md").click()
    assert waiting.value.suggested_filename == "text.md"
    saved = tmp_path / "saved.md"
    waiting.value.save_as(saved)
    assert saved.read_text("utf-8") == text
    other = tmp_path / "other.txt"
    other.write_text("Imported.\r\nTwice.\r\n\r\n", "utf-8", newline="")
    page.locator("#file").set_input_files(other)
    wait_for(lambda: text_of(page) == "Imported.\nTwice.\n\n")
    page.locator("#editor").focus()
    page.keyboard.press("Control+z")
    assert text_of(page) == text


def test_a_document_is_imported_from_any_view(open_page: OpenPage, tmp_path: Path) -> None:
    page = open_page("/#compare")
    (tmp_path / "a.txt").write_text("Imported.", "utf-8")
    page.locator("#file").set_input_files(tmp_path / "a.txt")
    wait_for(lambda: text_of(page) == "Imported.")
    assert page.locator("#editor").is_visible()


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_a_long_text_is_pasted_at_once_and_undone_in_one_step(page: Any, end: str) -> None:
    pasted = "\t<b>One</b> &amp; “two”  three. \n" * 5000 + f"four {end}"
    paste = """(text) => {
        const clipboardData = new DataTransfer();
        clipboardData.setData("text/plain", text);
        const event = new ClipboardEvent("paste", {clipboardData, bubbles: true, cancelable: true});
        const start = performance.now();
        document.getElementById("editor").dispatchEvent(event);
        return performance.now() - start;
    }"""
    write(page, "Begin end")
    for keys, before, after in (([], "Begin end", ""), (["ArrowLeft"] * 3, "Begin ", "end")):
        for key in keys:
            page.keyboard.press(key)
        assert page.evaluate(paste, pasted) < 3000
        assert text_of(page) == before + pasted + after
        assert page.evaluate("document.getElementById('editor').childElementCount") == 0
        page.keyboard.press("Control+z")
        assert text_of(page) == "Begin end"
        page.keyboard.press("Control+Shift+z")
        page.keyboard.type("X")
        assert text_of(page) == before + pasted + "X" + after
        page.keyboard.press("Control+z")
        page.keyboard.press("Control+z")


def test_half_a_character_is_continued(page: Any) -> None:
    page.evaluate("localStorage.setItem('dgpt2-quant.document', JSON.stringify({text: '\\ud83d wolf', marks: []}))")
    page.evaluate("addEventListener('pagehide', (event) => event.stopImmediatePropagation(), true)")
    page.reload()
    page.locator("#editor").focus()
    page.keyboard.press("Control+End")
    assert all(continuations(page))
    assert page.locator("#suggestions .note").is_hidden()


def test_a_saved_document_that_is_none_is_ignored(page: Any) -> None:
    page.evaluate("addEventListener('pagehide', (event) => event.stopImmediatePropagation(), true)")
    page.evaluate("localStorage.setItem('dgpt2-quant.document', '{}')")
    page.reload()
    write(page, "Once upon")
    assert all(continuations(page))


def test_two_tabs_show_one_document(page: Any) -> None:
    other = page.context.new_page()
    other.goto("/")
    write(page, "Once upon")
    wait_for(lambda: text_of(other) == "Once upon")
    other.locator("#editor").focus()
    other.keyboard.press("Control+End")
    write(other, " a time")
    wait_for(lambda: text_of(page) == "Once upon a time")
    page.reload()
    assert text_of(page) == "Once upon a time"


def test_without_storage_the_page_works_and_reports_that_nothing_is_saved(open_page: OpenPage) -> None:
    page = open_page("/health")
    page.add_init_script(
        """for (const name of ["localStorage", "sessionStorage"])
             Object.defineProperty(window, name, {get() { throw new DOMException("no", "SecurityError"); }})"""
    )
    page.goto("/")
    wait_for(lambda: page.locator("#model option").count(), PATIENCE)
    write(page, "Once upon")
    assert all(continuations(page))
    assert "Not saved" in page.locator("#saved").inner_text()


def test_the_theme_is_kept(page: Any) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.locator("#settings-button").click()
    page.locator("#theme").select_option("dark")
    assert page.evaluate(background) != light
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_a_key_is_asked_for_once_and_kept_in_the_tab_alone(
    browser: Any, storybook_files: dict[str, Path], problems: list[str]
) -> None:
    files = [ModelFile("storybook", "Q8_0", storybook_files["Q8_0"])]
    with running(files, Settings(port=0, keys=("a-secret",))) as locked:
        context = browser.new_context(base_url=f"http://127.0.0.1:{locked.port}")
        page = context.new_page()
        urls: list[str] = []
        page.on("request", lambda request: urls.append(request.url))
        page.goto("/")
        dialog = page.locator("#key-dialog")
        dialog.wait_for()
        page.locator("#key").fill("ключ")
        page.keyboard.press("Enter")
        wait_for(lambda: "ASCII" in page.locator("#problem").inner_text(), PATIENCE)
        page.locator("#problem button").click()
        for key, label in (("wrong", "needs a key"), ("a-secret", "refused this key")):
            dialog.get_by_text(label).wait_for()
            page.locator("#key").fill(key)
            page.keyboard.press("Enter")
            dialog.wait_for(state="hidden") if key == "a-secret" else None
        wait_for(lambda: page.locator("#model option").count(), PATIENCE)
        page.reload()
        wait_for(lambda: page.locator("#model option").count(), PATIENCE)
        write(page, "Once upon")
        assert len(continuations(page)) == 3
        assert not dialog.is_visible()
        assert "a-secret" not in str(page.evaluate("JSON.stringify(localStorage) + document.cookie"))
        assert not [url for url in urls if "secret" in url]
        other = context.new_page()
        other.goto("/")
        other.locator("#key-dialog").wait_for()
        context.close()


@contextmanager
def process(model: Path, port: int = 0) -> Iterator[tuple[Any, int]]:
    """`dgpt2-quant serve` as a process that can be killed, and its port."""
    command = [sys.executable, "-m", "dgpt2_quant", "serve", "-m", str(model), "--port", str(port), "--threads", "1"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert child.stderr
        line = next(line for line in child.stderr if "Serving" in line)
        found = re.search(r"127\.0\.0\.1:(\d+)", line)
        assert found
        yield child, int(found[1])
    finally:
        child.kill()
        child.wait()
        child.stderr.close()


def test_a_server_that_is_killed_in_mid_stream_leaves_the_text_and_a_retry_works(
    browser: Any, storybook_files: dict[str, Path]
) -> None:
    model = storybook_files["Q8_0"]
    context = browser.new_context()
    page = context.new_page()
    with process(model) as (child, port):
        page.goto(f"http://127.0.0.1:{port}/")
        wait_for(lambda: page.locator("#model option").count(), PATIENCE)
        configure(page, length=200)
        write(page, "Once upon a time")
        page.keyboard.press("Tab")
        wait_for(lambda: page.locator("#suggestion-list li").first.inner_text() != "…", PATIENCE)
        child.send_signal(signal.SIGKILL)
        child.wait()
        wait_for(lambda: page.locator("#suggestions .note").is_visible(), PATIENCE)
        assert "Your text is kept" in page.locator("#suggestions .note").inner_text()
        assert "Your text is kept" in page.locator("#status").inner_text()
        assert text_of(page) == "Once upon a time"
    with process(model, port):
        page.locator("#suggestions [data-do=retry]").click()
        wait_for(lambda: page.locator("#suggestions .note").is_hidden(), PATIENCE)
        wait_for(lambda: page.locator("#suggestion-list li").first.inner_text() != "…", PATIENCE)
        page.keyboard.press("Enter")
        assert len(text_of(page)) > len("Once upon a time")
    context.close()


def test_a_model_that_is_gone_is_replaced_at_the_next_try(page: Any, problems: list[str]) -> None:
    wait_for(lambda: page.locator("#model option").count(), PATIENCE)
    page.evaluate(
        """const select = document.getElementById("model");
           select.replaceChildren(new Option("old:Q8_0"));
           select.dispatchEvent(new Event("input"))"""
    )
    write(page, "Once upon")
    continuations(page)
    assert "'old:Q8_0' does not exist" in page.locator("#suggestions .note").inner_text()
    page.locator("#suggestions [data-do=retry]").click()
    wait_for(lambda: page.locator("#suggestions .note").is_hidden(), PATIENCE)
    assert all(continuations(page))
    assert page.locator("#model").input_value() == "storybook:Q8_0"
    problems.clear()  # the browser's own line about the answer 404


def test_a_server_that_is_gone_is_reported_and_typing_goes_on(open_page: OpenPage, problems: list[str]) -> None:
    page = open_page()
    wait_for(lambda: page.locator("#model option").count(), PATIENCE)
    page.route("**/v1/**", lambda route: route.abort())
    write(page, "Once upon a time")
    page.locator("#shade").click()
    wait_for(lambda: page.locator("#problem").is_visible(), PATIENCE)
    assert "does not answer" in page.locator("#problem").inner_text()
    write(page, " there was")
    page.unroute("**/v1/**")
    page.locator("#problem button").click()
    wait_for(lambda: page.locator("#problem").is_hidden(), PATIENCE)
    assert text_of(page) == "Once upon a time there was"
    problems.clear()  # the browser's own lines about requests that failed
