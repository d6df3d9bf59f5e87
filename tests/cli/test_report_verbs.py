"""`report` and `compare` as scripts call them: exit statuses, what goes to which stream, what is on disk after."""

import copy
import inspect
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.bench import compare as library
from dgpt2_quant.bench.document.schema import BenchJson
from dgpt2_quant.cli.compare import compare

from tests.bench.documents import document, environment, result

from .program import TOOL
from .program import run_text as run

GOOD = document(result("Q8_0"), result("Q4_0"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def write(name: str, content: BenchJson) -> None:
        (tmp_path / name).write_text(json.dumps(content), "utf-8")

    worse: Any = copy.deepcopy(GOOD)
    worse["results"][1]["kld_mean"] *= 1.03
    other: Any = copy.deepcopy(GOOD)
    other["model"]["source_sha256"] = "00" * 32
    write("good.json", GOOD)
    write("worse.json", worse)
    write("other.json", other)
    write("third.json", document(result("F16"), runs=[environment(cpu="Third")]))
    (tmp_path / "broken.json").write_text("{")
    return tmp_path


def test_the_exit_status_of_compare(folder: Path) -> None:
    same = run("compare", "good.json", "good.json", folder=folder)
    assert (same.returncode, same.stderr) == (0, "")
    assert same.stdout.splitlines()[-1] == "Not worse."
    lost = run("compare", "good.json", "worse.json", folder=folder)
    assert (lost.returncode, lost.stderr) == (1, "")
    assert "0.00127 (+3.00 %)!" in lost.stdout
    assert lost.stdout.splitlines()[-2:] == ["Q4_0: mean KL divergence 0.00127, 0.00123 before, +3.00 %.", "Worse."]
    assert run("compare", "worse.json", "good.json", folder=folder).returncode == 0
    allowed = run("compare", "good.json", "worse.json", "--kld-tolerance", "0.05", folder=folder)
    assert allowed.returncode == 0


def test_compare_in_json(folder: Path) -> None:
    lost = run("compare", "good.json", "worse.json", "--json", folder=folder)
    found = json.loads(lost.stdout)
    assert (lost.returncode, lost.stderr, found["worse"]) == (1, "", True)
    assert list(found) == ["worse", "reasons", "notes", "missing", "added", "tolerances", "changes"]
    assert [one["figure"] for one in found["changes"] if one["worse"]] == ["kld_mean"]
    assert set(found["changes"][0]) == {"type", "recipe", "figure", "old", "new", "change", "compared", "worse"}


def test_the_exit_status_without_a_reader(folder: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    call = [TOOL, "compare", "good.json"]
    for new, status in (("worse.json", 1), ("good.json", 0)):
        done = subprocess.run([*call, new], stdout=write, stderr=subprocess.PIPE, cwd=folder, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (status, b"")
    os.close(write)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ("compare good.json other.json", 1, "model.source_sha256"),
        ("compare good.json broken.json", 1, "broken.json is not valid JSON"),
        ("compare none.json good.json", 1, "there is no file none.json"),
        ("compare good.json .", 1, "is a folder"),
        ("compare good.json", 2, "NEW.json"),
        ("compare good.json good.json --kld-tolerance -1", 2, "--kld-tolerance must be 0 or more"),
        ("compare good.json good.json --speed-tolerance nan", 2, "--speed-tolerance must be 0 or more"),
        ("report", 2, "RESULT.json"),
        ("report good.json other.json -o out", 1, "good.json and other.json cannot be compared"),
        ("report good.json worse.json -o out", 1, "Q4_0 differs between good.json and worse.json"),
        ("report broken.json -o out", 1, "broken.json"),
        ("report good.json -o good.json", 1, "good.json is a file, not a folder"),
    ],
)
def test_errors_are_a_sentence(arguments: str, status: int, says: str, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    done = run(*arguments.split(), folder=folder)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert says in done.stderr
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(folder.rglob("*")) == before


def test_report_merges_runs(folder: Path) -> None:
    done = run("report", "good.json", "third.json", "-o", "out/all", folder=folder)
    assert (done.returncode, done.stderr) == (0, "Report: out/all/report.html\n")
    assert [line.split()[0] for line in done.stdout.splitlines()[2:5]] == ["Q8_0", "Q4_0", "F16"]
    assert "several runs" in done.stdout
    written = json.loads((folder / "out/all/bench.json").read_text("utf-8"))
    assert [run["cpu"] for run in written["runs"]] == ["A Processor 9000", "Third"]
    assert (folder / "out/all/plots/size_kld.png").is_file()
    assert run("compare", "good.json", "out/all/bench.json", folder=folder).returncode == 0
    again = run("report", "good.json", "-o", "out/all", folder=folder)
    assert (again.returncode, again.stdout) == (1, "")
    assert "bench.json already exists" in again.stderr
    last = run("report", "good.json", "-o", "out/all", "--overwrite", "--json", folder=folder)
    assert json.loads(last.stdout) == json.loads((folder / "out/all/bench.json").read_text("utf-8"))


def test_report_creates_a_folder_by_default(folder: Path) -> None:
    assert run("report", "good.json", folder=folder).returncode == 0
    assert len(list(folder.glob("dgpt2-quant-report/*/report.html"))) == 1


def test_the_flags_are_the_keywords_of_the_library() -> None:
    def defaults(function: Any) -> dict[str, Any]:
        parameters = inspect.signature(function).parameters
        return {name: parameters[name].default for name in parameters if name.endswith("_tolerance")}

    assert defaults(compare) == defaults(library.compare)
    assert len(defaults(compare)) == 4
