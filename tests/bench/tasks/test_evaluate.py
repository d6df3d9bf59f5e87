"""Tasks by name, level by level: documents, changes against F16 with their intervals, and what is refused."""

import gzip
import json
import math
import typing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.bench.tasks.evaluate import GROUPS, TASKS, evaluate, find_tasks
from dgpt2_quant.bench.tasks.metrics import Metric, Scores, common_prefix, fit, summarize
from dgpt2_quant.bench.tasks.schema import TaskJson
from dgpt2_quant.bench.tasks.table import COLUMNS, prompt_lines, task_rows, task_title
from dgpt2_quant.core.errors import ModelNotFoundError, UsageError
from dgpt2_quant.core.text import load_text
from dgpt2_quant.runtime import Model

from ..data.test_datasets import tarred, zipped
from .test_cbt import FILE as CBT_FILE
from .test_crows_pairs import PAIRS, csv_file

MEAN = {"mean": Metric(0, over=1)}


READ = {"parse_special": True, "notes": []}


def scores(values: Any) -> Scores:
    return Scores([np.column_stack([values, np.ones(len(values))])])


class TestIntervals:
    def test_the_interval_of_a_mean_matches_its_standard_error(self) -> None:
        values = np.random.default_rng(1).normal(3, 2, 2000)
        found = summarize(MEAN, scores(values), None)["mean"]
        error = values.std() / math.sqrt(len(values))
        assert found["value"] == pytest.approx(values.mean())
        assert found["low"] == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
        assert found["high"] == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
        assert found["change_against_f16"] is found["change_low"] is found["change_high"] is None

    def test_a_change_is_paired(self) -> None:
        random = np.random.default_rng(2)
        values = random.normal(3, 2, 1000)
        changed = values + random.normal(0.05, 0.1, 1000)
        found = summarize(MEAN, scores(changed), scores(values))["mean"]
        error = (changed - values).std() / math.sqrt(1000)
        assert found["change_against_f16"] == pytest.approx((changed - values).mean())
        assert found["change_low"] == pytest.approx((changed - values).mean() - 1.96 * error, abs=0.2 * error)
        # unpaired it would be thirty times as wide
        assert found["change_high"] - found["change_low"] < (found["high"] - found["low"]) / 10
        assert found["change_low"] > 0

    def test_equal_scores_have_a_change_of_zero(self) -> None:
        found = summarize(MEAN, scores(np.arange(50)), scores(np.arange(50)))["mean"]
        assert (found["change_against_f16"], found["change_low"], found["change_high"]) == (0, 0, 0)

    def test_metrics_are_ratios_of_sums(self) -> None:
        part = np.array([[10.0, 1], [10, 9]])
        assert summarize(MEAN, Scores([part]), None)["mean"]["value"] == 2

    def test_a_single_item_has_no_interval(self) -> None:
        found = summarize(MEAN, scores([2.0]), scores([1.0]))["mean"]
        assert (found["value"], found["low"], found["change_against_f16"], found["change_low"]) == (2, None, 1, None)

    def test_draws_without_an_item_of_a_kind_are_skipped(self) -> None:
        part = np.zeros((20, 2))
        part[:2] = 1
        found = summarize(MEAN, Scores([part]), None)["mean"]
        assert (found["value"], found["low"], found["high"]) == (1, 1, 1)

    def test_a_single_item_of_a_kind_has_no_interval(self) -> None:
        part = np.zeros((20, 2))
        part[0] = 1
        found = summarize(MEAN, Scores([part]), Scores([part]))["mean"]
        assert (found["value"], found["low"], found["change_low"]) == (1, None, None)

    def test_blocks_are_drawn_whole(self) -> None:
        values = np.repeat(np.random.default_rng(7).normal(size=30), 10)  # ten copies tell no more than one
        blocks = np.repeat(np.arange(30), 10)
        found = summarize(MEAN, Scores([np.column_stack([values, np.ones(300)])], blocks=blocks), None)["mean"]
        copied = summarize(MEAN, scores(values[::10]), None)["mean"]
        assert found == {key: value and pytest.approx(value) for key, value in copied.items()}

    def test_a_value_that_overflows_has_no_change(self) -> None:
        perplexity = {"perplexity": Metric(0, over=1, of=np.exp)}
        found = summarize(perplexity, scores([800.0, 900]), scores([1.0, 2]))["perplexity"]
        assert set(found.values()) == {None}
        found = summarize(perplexity, scores([1.0, 2]), scores([800.0, 900]))["perplexity"]
        assert found["value"] == pytest.approx(math.exp(1.5))
        assert (found["change_against_f16"], found["change_low"]) == (None, None)
        some = summarize(perplexity, scores([1.0, 1200]), scores([1.0, 2]))["perplexity"]  # of some draws e^1200
        assert some["value"] == pytest.approx(math.exp(600.5))
        assert (some["low"], some["high"]) == (None, None)

    def test_the_same_scores_give_the_same_interval(self) -> None:
        values = np.random.default_rng(5).normal(size=100)
        assert summarize(MEAN, scores(values), None) == summarize(MEAN, scores(values), None)


@pytest.mark.parametrize(
    ("texts", "length"),
    [([[1, 2, 3], [1, 2, 4]], 2), ([[1, 2], [1, 2, 3]], 1), ([[1], [1]], 0), ([[2, 1], [3, 1]], 0), ([[1, 2]], 1)],
)
def test_common_prefix(texts: list[list[int]], length: int) -> None:
    assert common_prefix(texts) == length


def test_fit_keeps_the_end_of_a_prefix(storybook_files: dict[str, Path]) -> None:
    with Model.load(storybook_files["F32"], ctx_size=10, threads=1) as model:
        assert fit(model, range(20), 3) == [13, 14, 15, 16, 17, 18, 19]
        assert fit(model, [5], 3) == [5]
        assert len(model.score_continuations(fit(model, range(20), 3), [[1, 2, 3]])) == 1
        with pytest.raises(UsageError, match="10 tokens do not fit"):
            fit(model, [5], 10)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each level is converted once for all tests here."""
    monkeypatch.setenv("DGPT2_QUANT_CACHE", str(cache))


def check(value: Any, hint: Any, where: str = "eval.json") -> None:
    """That a value is what the type says, with its keys and no others, and without NaN and Infinity."""
    if typing.is_typeddict(hint):
        hints = typing.get_type_hints(hint)
        assert hint.__required_keys__ <= value.keys() <= hints.keys(), where
        for key, item in value.items():
            check(item, hints[key], f"{where}.{key}")
    elif typing.get_origin(hint) in (list, dict):
        assert isinstance(value, typing.get_origin(hint)), where
        for key, item in enumerate(value) if isinstance(value, list) else value.items():
            check(item, typing.get_args(hint)[-1], f"{where}[{key!r}]")
    else:
        assert isinstance(value, (int, float) if hint is float else hint), f"{where} is {value!r}"
        assert not isinstance(value, float) or math.isfinite(value), f"{where} is {value!r}"


def run(task: str, **options: Any) -> list[TaskJson]:
    documents = evaluate("storybook", task=task, threads=1, **options)
    for document in documents:
        check(document, TaskJson)
    return documents


def test_changes_are_from_f16_of_the_same_run(tmp_path: Path) -> None:
    (tmp_path / "crows.csv").write_bytes(csv_file(PAIRS).content)
    steps: list[tuple[int, int, str]] = []
    [document] = run(
        "crows-pairs",
        type=["q4_0", "f16"],
        data=tmp_path / "crows.csv",
        progress=lambda *step: steps.append(step),
    )
    assert document["data"] == {"name": "crows.csv", "sha256": csv_file(PAIRS).sha256, "items": 4} | READ
    assert (document["context"], document["stride"]) == (512, None)
    assert document["model"]["name"] == "storybook"
    q4_0, f16 = document["results"]
    assert (q4_0["type"], f16["type"]) == ("Q4_0", "F16")
    for name, metric in q4_0["metrics"].items():
        base = f16["metrics"][name]
        assert metric["change_against_f16"] == pytest.approx(metric["value"] - base["value"])
        assert (base["change_against_f16"], base["change_low"], base["change_high"]) == (0, 0, 0)
    [alone] = run("crows-pairs", type="q4_0", data=tmp_path / "crows.csv")  # F16 not asked for, and still compared with
    assert alone["results"] == [q4_0]
    assert {step[2] for step in steps if step[2].startswith("crows")} == {"crows-pairs, F16", "crows-pairs, Q4_0"}


def test_a_group_gives_one_document_per_task(tmp_path: Path) -> None:
    (tmp_path / "crows.csv").write_bytes(csv_file(PAIRS).content)
    crows, prompts = run("bias", data=tmp_path / "crows.csv", type="q8_0", limit=2)
    assert (crows["task"], prompts["task"]) == ("crows-pairs", "card-prompts")
    assert (crows["data"]["items"], prompts["data"]["items"]) == (2, 2)
    assert (crows["data"]["name"], prompts["data"]["name"]) == ("crows.csv", "card-prompts")
    [level] = prompts["results"]
    assert len(level["pairs"]) == 2
    assert [len(shown["top"]) for shown in level["prompts"]] == [5] * 4


def test_both_parts_of_an_archive(tmp_path: Path) -> None:
    archive = tarred(
        tmp_path / "CBTest.tgz",
        {f"CBTest/data/cbtest_{kind}_test_2500ex.txt": CBT_FILE.content for kind in ("CN", "NE")},
    )
    documents = run("cbt", data=archive, type="f16", limit=1)
    assert [document["data"]["name"] for document in documents] == [
        "cbtest_CN_test_2500ex.txt", "cbtest_NE_test_2500ex.txt",
    ]  # fmt: skip
    assert documents[0]["results"] == documents[1]["results"]
    with pytest.raises(ModelNotFoundError, match="cbt-cn-valid"):
        run("cbt-cn", data="cbt-cn-valid", offline=True)


def test_a_gguf_file_is_measured_alone(storybook_files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(load_text().text[:1500], "utf-8")
    options: dict[str, Any] = {"task": "bpb", "data": tmp_path / "text.txt", "threads": 1}
    [alone] = evaluate(str(storybook_files["Q8_0"]), **options)
    [among] = evaluate("storybook", type="q8_0", **options)
    assert alone["model"] == {"name": "storybook.Q8_0", "source_sha256": None}
    assert (alone["context"], alone["stride"]) == (512, 256)
    [here], [there] = alone["results"], among["results"]
    assert (here["type"], there["type"]) == ("Q8_0", "Q8_0")
    for name, metric in here["metrics"].items():
        assert (metric["value"], metric["low"]) == (there["metrics"][name]["value"], there["metrics"][name]["low"])
        assert metric["change_against_f16"] is None
    assert there["metrics"]["bits_per_byte"]["change_against_f16"] is not None


def test_unknown_figures_are_a_dash(storybook_files: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("x" * 600)
    [document] = evaluate(str(storybook_files["F32"]), task="wikitext2", data=tmp_path / "x.txt", threads=1)
    check(document, TaskJson)
    assert document["results"][0]["metrics"]["word_perplexity"]["value"] is None
    rows = {row[1]: row[2:] for row in task_rows(document)}
    assert rows["word perplexity"] == ["-", "", "", ""]
    assert float(rows["token perplexity"][0]) > 1


def test_a_compressed_file_cannot_be_both_parts_of_a_group(tmp_path: Path) -> None:
    (tmp_path / "cbt.txt.gz").write_bytes(gzip.compress(CBT_FILE.content))
    with pytest.raises(UsageError, match="for cbt, which takes 2 files"):
        run("cbt", data=tmp_path / "cbt.txt.gz", type="f16", limit=1)


def test_the_published_archive_is_a_text_too(tmp_path: Path) -> None:
    text = load_text().text[:1500].encode()
    archive = zipped(tmp_path / "a.zip", {"w/wiki.train.raw": b"x", "w/wiki.test.raw": text})
    [document] = run("bpb", data=archive, type="f16", limit=1)
    assert document["data"]["name"] == "wiki.test.raw"


def test_a_smaller_context(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(load_text().text[:1500], "utf-8")
    [document] = run("bpb", data=tmp_path / "text.txt", type="f16", ctx_size=64, stride=48, limit=3)
    assert (document["context"], document["stride"], document["data"]["items"]) == (64, 48, 3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"task": "lambda"}, "`task` must be one of .* not 'lambda'"),
        ({"task": "bpb"}, "bpb needs data"),
        ({"task": "bpb", "data": "lambada"}, "lambada is not running text"),
        ({"task": "card-prompts", "data": "x.csv"}, "the data of card-prompts is built in"),
        ({"task": "cbt", "data": __file__}, "for cbt, which takes 2 files"),
        ({"task": "lambada", "stride": 5}, "lambada has no windows"),
        ({"task": "lambada", "limit": 0}, "`limit` must be 1 or more, not 0"),
        ({"task": "wikitext2", "ctx_size": 0}, "`ctx_size` must be 1 or more, not 0"),
        ({"task": "wikitext2", "stride": -1}, "`stride` must be 1 or more, not -1"),
    ],
)
def test_wrong_arguments_are_refused_before_the_work(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        evaluate("storybook", **options)


def test_missing_data_is_reported_before_the_work(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no data file"):
        evaluate("no/such/model", task="bpb", data=tmp_path / "none.txt")
    with pytest.raises(ModelNotFoundError, match="offline, and the data set lambada"):
        evaluate("no/such/model", task="lambada", offline=True)


def test_type_is_refused_for_a_gguf_file(storybook_files: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="`type` has no effect"):
        evaluate(str(storybook_files["Q8_0"]), task="card-prompts", type="q4_0")


def test_names_of_tasks_and_groups() -> None:
    assert find_tasks("lambada") == ["lambada"]
    assert find_tasks("bias") == ["crows-pairs", "card-prompts"]
    assert all(name in TASKS for names in GROUPS.values() for name in names)


def test_the_printed_table(tmp_path: Path) -> None:
    [document] = run("card-prompts", type=["q8_0", "q4_0"], limit=6)
    rows = task_rows(document)
    assert [row[:2] for row in rows] == [["Q8_0", "js divergence"], ["Q4_0", "js divergence"]]
    assert all(len(row) == len(COLUMNS) for row in rows)
    metric = document["results"][0]["metrics"]["js_divergence"]
    assert float(rows[0][2]) == pytest.approx(metric["value"], rel=1e-3)
    assert " to " in rows[0][3]
    assert rows[0][4][0] in "+-"
    assert "card-prompts: storybook on card-prompts (6 items" in task_title(document)
    lines = prompt_lines(document)
    assert len(lines) == 16
    assert lines[0].startswith("Q8_0  The White man worked as a ... ")
    assert json.loads(json.dumps(document)) == document
    assert typing.get_type_hints(TaskJson).keys() == document.keys()
