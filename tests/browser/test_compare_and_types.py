"""The views Compare and Types: their numbers are those of the API and of the library."""

import re
from typing import Any

import numpy as np
import pytest

from ..serve.conftest import Running
from ..waiting import wait_for
from .conftest import OpenPage
from .writing import PATIENCE, configure

pytestmark = pytest.mark.browser
TEXT = "Once upon a time there was a little bear.\nHe lived by the sea, and he had “no” friend."
NAMES = ["storybook:Q8_0", "storybook:Q4_0"]


@pytest.fixture
def compare(page: Any) -> Any:
    configure(page, seed="5", length=30)
    page.locator("nav a[href='#compare']").click()
    page.locator("#compare-text").fill(TEXT)
    return page


def rows_of(page: Any, table: str) -> list[list[str]]:
    rows: list[list[str]] = page.evaluate(
        "(rows) => [...document.querySelectorAll(rows)].map((row) => [...row.cells].map((cell) => cell.innerText))",
        f"{table} tbody tr",
    )
    return rows


def number(text: str) -> float:
    return float(text.replace("\N{MINUS SIGN}", "-").removesuffix(" %"))


def test_the_scores_are_those_of_the_api_and_of_the_library(compare: Any, server: Running) -> None:
    compare.locator("#compare-score").click()
    wait_for(lambda: compare.locator("#compare-scores .card").count(), PATIENCE)
    answer = server.post("/v1/compare", text=TEXT, models=NAMES).json()
    reference, other = answer["models"]
    summary = rows_of(compare, "#compare-scores .table-box")
    assert [row[0] for row in summary] == NAMES
    assert number(summary[1][1]) == pytest.approx(other["perplexity"], abs=1e-3)
    assert number(summary[1][3]) == pytest.approx(other["mean_kld"], abs=1e-5)
    assert number(summary[1][4]) == pytest.approx(100 * other["same_top"], abs=0.06)
    compare.locator("#compare-scores summary").click()
    wait_for(lambda: compare.locator("#compare-scores details table").count())
    rows = rows_of(compare, "#compare-scores details")
    scores = [server.models.loaded[name].model.score(TEXT) for name in NAMES]
    moved = np.asarray(scores[1], np.float64) - np.asarray(scores[0], np.float64)
    shown = np.array([number(row[3]) for row in rows[1:]])
    assert np.abs(shown - moved[-len(shown) :]).max() <= 1e-4
    assert [number(row[4]) for row in rows[1:]] == pytest.approx(other["kld"][1:], abs=1e-5)
    assert len(rows) == len(reference["logprobs"])


def test_a_text_of_many_contexts_is_continued(compare: Any) -> None:
    compare.locator("#compare-text").fill(TEXT * 50)
    compare.locator("#compare-continue").click()
    wait_for(lambda: compare.locator("#compare-stop").is_hidden(), PATIENCE)
    assert compare.locator("#compare-streams .hint").first.inner_text().startswith("30 tokens")


def test_a_text_of_many_tokens_has_shorter_lists(compare: Any) -> None:
    compare.locator("#compare-text").fill("雪は白い。" * 500)  # 15 tokens each
    compare.locator("#compare-score").click()
    wait_for(lambda: compare.locator("#compare-scores .card").count(), PATIENCE)
    compare.locator(".scored").focus()
    assert 0 < compare.locator(".details ol").first.locator("li").count() < 10


def test_a_token_shows_the_likeliest_of_both_models(compare: Any, server: Running) -> None:
    compare.locator("#compare-score").click()
    wait_for(lambda: compare.locator(".scored").count(), PATIENCE)
    compare.locator(".scored").focus()
    for _ in range(4):
        compare.keyboard.press("ArrowRight")
    answer = server.post("/v1/compare", text=TEXT, models=NAMES).json()
    lists = compare.locator(".details ol")
    assert lists.count() == 2
    for column, model in zip((0, 1), answer["models"], strict=True):
        shown = lists.nth(column).locator("li").all_inner_texts()
        assert len(shown) == 10
        assert shown[0].split("\n")[0].strip() == model["top"][5][0]["text"].strip()
    kinds = compare.evaluate("[...document.querySelectorAll('.tok')].map((one) => one.className)")
    assert any("less" in kind for kind in kinds)
    assert any("more" in kind for kind in kinds)


def test_the_first_token_that_differs_is_marked(compare: Any, server: Running) -> None:
    compare.locator("#compare-continue").click()
    wait_for(lambda: compare.locator("#compare-stop").is_hidden(), PATIENCE)
    asked = {"prompt": TEXT, "seed": 5, "max_tokens": 30, "temperature": 0.8, "top_p": 0.95, "return_token_ids": True}
    ids = [server.post("/v1/completions", model=name, **asked).json()["choices"][0]["token_ids"] for name in NAMES]
    differs = next(place for place, (one, two) in enumerate(zip(*ids, strict=False)) if one != two)
    facts = compare.locator("#compare-streams .hint").all_inner_texts()
    assert "reference" in facts[0]
    assert f"first difference: token {differs + 1}" in facts[1]
    assert compare.locator("#compare-streams mark").count() == 1
    assert re.search(r"30 tokens, \d+ tokens/s", facts[1])


def test_a_measurement_fills_the_table_and_the_plot(open_page: OpenPage, server: Running) -> None:
    page = open_page("/#types")
    page.route("**/v1/measurements", lambda route: route.fallback(post_data='{"rounds": 1}'))
    wait_for(lambda: page.locator("#types-table tbody tr").count() == 2, PATIENCE)
    assert page.locator("#pareto").is_hidden()
    page.locator("#measure").click()
    wait_for(lambda: page.locator("#measure-note").inner_text() == "Measured.", 120)
    listed = server.client.get("/v1/measurements").json()["data"]
    rows = rows_of(page, "#types-table")
    assert [row[0] for row in rows] == NAMES
    assert rows[0][3] == "reference"
    assert number(rows[1][3].split()[0]) == pytest.approx(listed[1]["kld"]["value"], rel=0.01)
    assert [number(row[6]) for row in rows] == pytest.approx([one["decode_tps"]["median"] for one in listed], abs=0.6)
    assert page.locator("#pareto circle").count() == 1
    assert "Q4_0" in page.locator("#pareto figcaption").inner_text()
