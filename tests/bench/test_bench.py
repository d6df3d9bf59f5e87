"""The whole benchmark on the bundled checkpoint."""

import hashlib
import json
import math
import types
import typing
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from dgpt2_quant.bench import measure as measure_module
from dgpt2_quant.bench.bench import bench, bench_files
from dgpt2_quant.bench.document.schema import BenchJson
from dgpt2_quant.bench.measure import Settings, Subject
from dgpt2_quant.bench.report.write_report import write_report
from dgpt2_quant.bench.speed import timing
from dgpt2_quant.bench.speed.disturbance import Usage, Watch
from dgpt2_quant.bench.speed.footprint import Footprint
from dgpt2_quant.bench.speed.grid import Grid
from dgpt2_quant.core.cores import usable_cores
from dgpt2_quant.core.errors import GGUFError, ModelNotFoundError, UsageError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.text import load_text
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model

NO_GRID: dict[str, Any] = {"prompt_sizes": (), "depths": (), "batches": (), "thread_counts": ()}


class Run(NamedTuple):
    document: BenchJson
    folder: Path
    text: Path
    announced: list[str]
    progress: list[tuple[int, int, str]]
    loaded: list[str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A benchmark of two types, one round, a short text."""
    folder = tmp_path_factory.mktemp("bench")
    text = folder / "tale.txt"
    text.write_text(load_text().text[:3000], "utf-8")
    announced: list[str] = []
    progress: list[tuple[int, int, str]] = []
    loaded: list[str] = []
    load = Model.load

    def watched(path: Path, **options: Any) -> Model:
        loaded.append(Path(path).name)
        return load(path, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DGPT2_QUANT_CACHE", str(folder / "cache"))
        patch.setattr(timing, "TEXT_SECONDS", 0.0)  # once is enough here
        patch.setattr(timing, "POINT_SECONDS", 0.0)
        patch.setattr(Model, "load", watched)
        document = bench(
            "storybook",
            type=["q8_0", "Q4_0"],
            text=text,
            rounds=1,
            threads=1,
            prompt_sizes=(4,),
            depths=(8,),
            batches=(2,),
            thread_counts=(2,),
            per_token=folder / "tokens.jsonl",
            announce=announced.append,
            progress=lambda *arguments: progress.append(arguments),
        )
        write_report(document, folder / "report")
        yield Run(document, folder / "report", text, announced, progress, loaded)


def check(value: Any, hint: Any, where: str = "bench.json") -> None:
    """That a value is what the type says, with just its keys, and without NaN and Infinity."""
    if typing.is_typeddict(hint):
        assert isinstance(value, dict), where
        hints = typing.get_type_hints(hint)
        assert set(value) == set(hints), where
        for key, of_key in hints.items():
            check(value[key], of_key, f"{where}.{key}")
    elif typing.get_origin(hint) is list:
        assert isinstance(value, list), where
        for index, item in enumerate(value):
            check(item, typing.get_args(hint)[0], f"{where}[{index}]")
    elif isinstance(hint, types.UnionType):
        (of_value,) = (part for part in typing.get_args(hint) if part is not type(None))
        if value is not None:
            check(value, of_value, where)
    else:
        assert type(value) in ((int, float) if hint is float else (hint,)), f"{where} is {value!r}"
        assert not isinstance(value, float) or math.isfinite(value), f"{where} is {value!r}"


def test_the_document_has_exactly_the_keys_of_the_schema(run: Run) -> None:
    check(run.document, BenchJson)


def test_the_file_is_the_document(run: Run) -> None:
    def refuse(number: str) -> None:
        raise AssertionError(number)

    text = (run.folder / "bench.json").read_text("utf-8")
    assert json.loads(text, parse_constant=refuse) == run.document


def test_one_row_a_type(run: Run) -> None:
    assert [row["type"] for row in run.document["results"]] == ["Q8_0", "Q4_0"]
    report = (run.folder / "report.md").read_text("utf-8").splitlines()
    for name in ("Q8_0", "Q4_0"):
        assert sum(line.startswith(f"| {name} |") for line in report) >= 2  # in several tables


def test_what_was_measured(run: Run) -> None:
    model, text, reference = (run.document[key] for key in ("model", "text", "reference"))
    assert model["name"] == "storybook"
    assert len(model["source_sha256"]) == 64
    assert (text["name"], text["sha256"]) == ("tale.txt", load_text(run.text).sha256)
    assert (text["context"], reference["type"], reference["tokens_scored"]) == (512, "F32", 255)
    assert 512 <= text["tokens"] < 1024


def test_results_match_the_files(run: Run) -> None:
    large, small = run.document["results"]
    for row in (large, small):
        header = read_header(Path(row["path"]))
        assert header.quant_type == row["type"]
        assert row["bytes"] == Path(row["path"]).stat().st_size
        assert row["sha256"] == hashlib.sha256(Path(row["path"]).read_bytes()).hexdigest()
        assert row["bits_per_weight"] == pytest.approx(header.bits_per_weight, abs=1e-3)
        assert run.document["model"]["parameters"] == header.parameters
        assert row["ppl_ratio"] == pytest.approx(row["perplexity"] / run.document["reference"]["perplexity"])
        assert row["recipe"] == "stock"
        assert row["prompt_tps"]["rounds"] == row["decode_tps"]["rounds"] == 1
        assert 0 < row["top1_agreement"] <= 1
        assert sum(part["tokens"] for part in row["by_confidence"]) == 255
        assert row["worst"][0]["kld"] == row["kld_max"]
        assert {(point["measure"], point["tokens"], point["batch"]) for point in row["speed"]} == {
            ("prompt", 4, 1), ("decode", 32, 1), ("decode", 32, 2), ("prompt", 128, 1),
        }  # fmt: skip
    assert large["bytes"] > small["bytes"]
    assert large["kld_mean"] < small["kld_mean"]


def test_each_file_is_loaded_once(run: Run) -> None:
    """By this process; load time and memory are measured in others."""
    assert sorted(run.loaded) == sorted(f"storybook.{name}.gguf" for name in ("F32", "Q8_0", "Q4_0"))


def test_the_files_are_compared_with_each_other_and_with_noise(run: Run) -> None:
    (pair,) = run.document["pairs"]
    assert (pair["a"], pair["b"]) == ("Q8_0", "Q4_0")
    large, small = run.document["results"]
    assert pair["kld_difference"]["value"] == pytest.approx(small["kld_mean"] - large["kld_mean"])
    assert 0 < pair["kld_difference"]["low"] < pair["kld_difference"]["high"]
    floor = run.document["noise_floor"]
    assert floor
    assert floor["kld_mean"] < large["kld_mean"]


def test_a_line_for_each_scored_token(run: Run) -> None:
    rows = [json.loads(line) for line in (run.text.parent / "tokens.jsonl").read_text("utf-8").splitlines()]
    assert len(rows) == 255
    for result in run.document["results"]:
        klds = [row["levels"][result["type"]]["kld"] for row in rows]
        assert sum(klds) / 255 == pytest.approx(result["kld_mean"])


def test_where_it_was_measured(run: Run) -> None:
    environment = run.document["environment"]
    assert (environment["threads"], environment["cores"]) == (1, usable_cores())
    assert environment["llama_cpp_python"] == version("llama-cpp-python")
    assert environment["dgpt2_quant"] == version("dgpt2-quant")
    assert environment["cpu"]


def test_notes_and_progress(run: Run) -> None:
    assert run.announced[0].startswith("Converting storybook to Q8_0, Q4_0, F32")
    assert all(said.startswith("Other programs use this machine") for said in run.announced[1:])
    topics = list(dict.fromkeys(topic.split(",")[0] for *_, topic in run.progress))
    assert topics[-3:] == ["perplexity and KL divergence", "load time and memory", "speed"]
    for topic in topics[-3:]:
        steps = [step for step, _, found in run.progress if found.startswith(topic) and "again" not in found]
        assert steps == list(range(len(steps)))
        assert len(steps) > 1


def test_a_busy_machine_is_announced(
    storybook_files: dict[str, Path], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = Subject("storybook", "", storybook_files["F32"], [storybook_files["Q4_0"]])
    impossible = Settings(grid=Grid(depths=(9999,)))  # ends the benchmark after the note
    for share, busy in ((0.0, False), (0.5, True)):
        monkeypatch.setattr(Watch, "so_far", lambda _, share=share: Usage(1, 0, 1, share))
        said: list[str] = []
        with pytest.raises(UsageError, match="not 9999"):
            bench_files(subject, load_text(run.text), impossible, announce=said.append)
        assert [line.partition(" (")[0] for line in said] == ["Other programs use this machine"] * busy


def refused(error: type[Exception], message: str, model: str = "storybook", **options: Any) -> None:
    """Checks that it is refused before any work."""
    work: list[Any] = []
    with pytest.raises(error, match=message):
        bench(model, announce=work.append, progress=lambda *step: work.append(step), **options)
    assert work == []


def test_one_file_is_refused(storybook_files: dict[str, Path]) -> None:
    refused(UsageError, "`model` must be a checkpoint, not the file", model=str(storybook_files["Q4_0"]))


def test_files_in_addition_to_types(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures a file of another recipe, with a padded vocabulary."""
    monkeypatch.setenv("DGPT2_QUANT_CACHE", str(run.text.parent / "cache"))
    monkeypatch.setattr(timing, "TEXT_SECONDS", 0.0)
    monkeypatch.setattr(timing, "POINT_SECONDS", 0.0)
    monkeypatch.setattr(measure_module, "measure_footprint", lambda *_, **__: Footprint(1.0, 1.0, 1))  # slow, run above
    options: dict[str, Any] = {"text": run.text, "rounds": 1, "threads": 1, **NO_GRID}
    (lean,) = convert(
        "storybook", type="q4_0", output=tmp_path, recipe="lean", calibrate=run.text, without=["feedback"]
    )
    both = bench("storybook", type="q4_0", file=[lean.path], **options)
    alone = bench("storybook", file=[lean.path], **options)
    for document in (both, alone):
        row = document["results"][-1]
        assert (row["type"], row["recipe"], row["path"], row["bytes"]) == ("Q4_0", "lean", lean.path, lean.bytes)
        assert 0 < row["kld_mean"] < 0.2
    assert [row["recipe"] for row in both["results"]] == ["stock", "lean"]
    assert len(alone["results"]) == 1
    (pair,) = both["pairs"]
    assert (pair["a"], pair["b"]) == ("Q4_0", "Q4_0 lean")
    check(both, BenchJson)
    write_report(both, tmp_path / "report")
    assert "| Q4_0 lean |" in (tmp_path / "report" / "report.md").read_text("utf-8")


def test_wrong_files(tmp_path: Path, storybook_files: dict[str, Path]) -> None:
    refused(ModelNotFoundError, "there is no file absent.gguf", file=["absent.gguf"])
    (tmp_path / "text.gguf").write_text("Once upon a time")
    refused(GGUFError, "text.gguf", file=[storybook_files["Q4_0"], tmp_path / "text.gguf"])
    refused(UsageError, "is named twice", file=[storybook_files["Q4_0"], storybook_files["Q4_0"]])


def test_wrong_arguments(tmp_path: Path) -> None:
    refused(UsageError, "unknown quant type 'q4_z'", type=["q4_z"])
    refused(UsageError, "unknown quant type 'best'", reference="best")
    refused(UsageError, "`rounds` must be 1 or more, not 0", rounds=0)
    refused(UsageError, "`patience` must be 0 to .* not -1", patience=-1)
    refused(ModelNotFoundError, "no text 'absent.txt'", text="absent.txt")
    (tmp_path / "latin.txt").write_bytes(b"\xe4" * 9999)
    refused(UsageError, r"latin\.txt is not UTF-8", text=tmp_path / "latin.txt")


def test_an_unknown_model() -> None:
    refused(ModelNotFoundError, "no-such-model", model="./no-such-model")


def test_a_short_text(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("The end.")
    with pytest.raises(UsageError, match="the text has 3 tokens, and needs at least one chunk of 512"):
        bench("storybook", type=["q4_0"], reference="f16", text=tmp_path / "short.txt")
