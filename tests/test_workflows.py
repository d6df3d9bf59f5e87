"""The CI workflows: they fit GitHub's schema, pin actions, have few rights, and call commands that exist."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from dgpt2_quant.core.quant_types import QUANT_TYPES

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / "tools"
SETTINGS = ROOT / ".github" / "ci"
FILES = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
WORKFLOWS = {file.stem: yaml.safe_load(file.read_text("utf-8")) for file in FILES}
JOBS = {(file, name): job for file, document in WORKFLOWS.items() for name, job in document["jobs"].items()}
OWN_STEPS = {key: job for key, job in JOBS.items() if "steps" in job}
RUNS = [step["run"] for job in OWN_STEPS.values() for step in job["steps"] if "run" in step]


def triggers(document: dict[Any, Any]) -> dict[str, Any]:
    return document[True]  # YAML 1.1 reads the key `on` as true


def test_workflows_fit_githubs_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *FILES]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_actions_are_pinned_by_commit_with_their_version() -> None:
    pins: dict[str, set[str]] = {}
    for file in FILES:
        for used in re.findall(r"\buses: *(.*)", file.read_text("utf-8")):
            if used.startswith("./"):
                assert (ROOT / used).is_file()
                continue
            assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", used), f"{file.name}: {used}"
            pins.setdefault(used.split("@")[0], set()).add(used)
    assert all(len(pin) == 1 for pin in pins.values()), "an action in two versions"


@pytest.mark.parametrize("name", WORKFLOWS)
def test_rights_are_few(name: str) -> None:
    document = WORKFLOWS[name]
    assert document["permissions"] == {"contents": "read"}
    assert "pull_request_target" not in triggers(document), "it would give strangers' code our rights"
    assert "secrets" not in (ROOT / ".github" / "workflows" / f"{name}.yml").read_text("utf-8")
    for job in document["jobs"].values():
        if "permissions" in job:
            assert job["permissions"] == {"contents": "write"}
            assert re.search(r"github.ref == 'refs/heads/main'|startsWith\(github.ref, 'refs/tags/v'\)", job["if"])
            assert re.search(r"github.event_name == '(push|schedule)'", job["if"])


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflows_have_a_concurrency_group(name: str) -> None:
    document = WORKFLOWS[name]
    if list(triggers(document)) == ["workflow_call"]:  # it would wait for its caller, which has the same group
        assert "concurrency" not in document
    else:
        assert "github.ref" in document["concurrency"]["group"]


@pytest.mark.parametrize("key", OWN_STEPS, ids="/".join)
def test_jobs_have_a_time_limit_and_a_named_image(key: tuple[str, str]) -> None:
    job = OWN_STEPS[key]
    assert job["timeout-minutes"] <= 60
    assert WORKFLOWS[key[0]]["defaults"]["run"]["shell"] == "bash", "with -eo pipefail, unlike the default"
    images = [job["runs-on"]]
    if "matrix.os" in job["runs-on"]:
        matrix = job["strategy"]["matrix"]
        images = matrix["os"] if "os" in matrix else [one["os"] for one in matrix["include"]]
    assert all(re.fullmatch(r"(ubuntu|macos)-\d+(\.\d+)?(-arm)?", image) for image in images)
    for step in job["steps"]:
        if "make setup" in step.get("run", ""):
            assert step["env"]["UV_CONFIG_FILE"] == ".github/ci/uv-${{ runner.os }}-${{ runner.arch }}.toml"


def test_scripts_contain_no_expressions() -> None:
    assert not [run for run in RUNS if "${{" in run]


def test_the_tests_run_on_linux_and_macos_from_the_oldest_python_on() -> None:
    matrix = JOBS["tests", "test"]["strategy"]["matrix"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {image.split("-")[0] for image in matrix["os"]} == {"ubuntu", "macos"}
    assert f">={matrix['python'][0]}" == project["requires-python"]


@pytest.mark.parametrize("file", sorted(SETTINGS.glob("uv-*.toml")), ids=lambda file: file.stem)
def test_hosted_runners_build_with_our_settings(file: Path) -> None:
    """CMake's flags: tests/test_deploy.py."""
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["uv"]
    theirs = tomllib.loads(file.read_text("utf-8"))
    assert theirs["build-constraint-dependencies"] == ours["build-constraint-dependencies"]
    here = ours["extra-build-variables"]["llama-cpp-python"]
    there = theirs["extra-build-variables"]["llama-cpp-python"]
    same = ("SKBUILD", "CFLAGS", "CXXFLAGS") if "Linux" in file.stem else ("SKBUILD",)  # clang does not know the flags
    assert {key: here[key] for key in here if key.startswith(same)} == {
        key: there[key] for key in there if key.startswith(same)
    }


def test_the_matrix_has_the_ci_types_of_the_registry(tmp_path: Path) -> None:
    assert JOBS["bench", "bench"]["strategy"]["matrix"] == {"type": "${{ fromJSON(needs.types.outputs.types) }}"}
    [step] = [step for step in JOBS["bench", "types"]["steps"] if step.get("id") == "types"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GITHUB_OUTPUT": str(tmp_path / "output")}
    subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], cwd=tmp_path, env=environment, check=True)
    name, _, types = (tmp_path / "output").read_text().partition("=")
    assert name == "types"
    assert json.loads(types) == [one.name for one in QUANT_TYPES.values() if one.ci and one.name != "F32"]


def test_the_baseline_has_every_type_of_the_matrix() -> None:
    from dgpt2_quant.bench.document.read import read_document

    baseline = read_document(SETTINGS / "storybook.json")
    assert {row["type"] for row in baseline["results"]} == {one.name for one in QUANT_TYPES.values() if one.ci} - {
        "F32"
    }
    assert not [row["path"] for row in baseline["results"] if Path(row["path"]).is_absolute()], "somebody's machine"


@pytest.mark.parametrize("run", [run for run in RUNS if "dgpt2-quant " in run])
def test_commands_use_existing_verbs_and_flags(run: str) -> None:
    from dgpt2_quant.cli.main import app
    from typer.main import get_command

    verbs = get_command(app).commands
    for command in re.findall(r"^dgpt2-quant ([^|>\n]*)", run.replace("\\\n", " "), re.MULTILINE):
        verb, *words = shlex.split(command.replace("${REVISION:+", "").replace("}", ""))
        assert verb in verbs
        options = {option for parameter in verbs[verb].params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, f"dgpt2-quant {command}"


def test_make_targets_exist() -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert {target for run in RUNS for target in re.findall(r"^make ([\w-]+)", run, re.MULTILINE)} <= set(targets)


def run_steps(name: str, folder: Path, values: dict[str, str], only: str | None = None) -> int:
    """Runs the `run:` steps of a job of bench.yml as GitHub does, without the set-up; the status of the last one.

    Runs the step `only`, or else those without a condition. `values`: those of the `${{ }}` expressions.
    """
    job = JOBS["bench", name]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GITHUB_STEP_SUMMARY": str(folder / "summary.md")}
    for key, text in {**WORKFLOWS["bench"]["env"], **job.get("env", {})}.items():
        environment[key] = re.sub(r"\$\{\{ (.*?) \}\}", lambda found: values[found[1]], text)
    status = 0
    for step in job["steps"]:
        if "run" in step and step["name"] != "Set up" and (step["name"] == only if only else "if" not in step):
            done = subprocess.run(
                ["bash", "-eo", "pipefail", "-c", step["run"]], cwd=folder, env=environment, check=False
            )
            status = done.returncode
            assert only or status == 0, step["name"]
    return status


@pytest.fixture
def values() -> dict[str, str]:
    """The inputs of the call in quant-matrix.yml."""
    inputs = {
        name: about.get("default") for name, about in triggers(WORKFLOWS["bench"])["workflow_call"]["inputs"].items()
    }
    return {f"inputs.{name}": value for name, value in {**inputs, **JOBS["quant-matrix", "bench"]["with"]}.items()}


@pytest.mark.slow
def test_the_matrix_measures_merges_and_compares(tmp_path: Path, values: dict[str, str]) -> None:
    """The steps of bench.yml on two types, compared with the baseline's rows of these two."""
    baseline = json.loads((SETTINGS / "storybook.json").read_text("utf-8"))
    baseline["results"] = [row for row in baseline["results"] if row["type"] in ("Q8_0", "Q4_0")]
    (tmp_path / "baseline.json").write_text(json.dumps(baseline), "utf-8")
    (tmp_path / "tools").symlink_to(TOOLS)
    (tmp_path / "parts").mkdir()
    values["inputs.baseline"] = "baseline.json"
    for quant_type in ("Q8_0", "Q4_0"):
        run_steps("bench", tmp_path, {**values, "matrix.type": quant_type})
        (tmp_path / f"bench-{quant_type}.json").rename(tmp_path / "parts" / f"bench-{quant_type}.json")
    run_steps("report", tmp_path, values)
    summary = (tmp_path / "summary.md").read_text("utf-8")
    assert "| Q8_0 |" in summary
    assert "| Q4_0 |" in summary
    points = json.loads((tmp_path / "merged" / "history-bigger.json").read_text("utf-8"))
    assert {point["name"].split()[0] for point in points} == {"Q8_0", "Q4_0"}
    assert run_steps("report", tmp_path, values, only="Gate") == 0
    baseline["results"][0]["kld_mean"] /= 2
    (tmp_path / "baseline.json").write_text(json.dumps(baseline), "utf-8")
    assert run_steps("report", tmp_path, values, only="Gate") == 1


def test_a_missing_baseline_fails_where_one_is_required(tmp_path: Path, values: dict[str, str]) -> None:
    gates = {step["name"]: step["if"] for step in JOBS["bench", "report"]["steps"] if "if" in step}
    missing = "hashFiles(inputs.baseline) == ''"
    assert gates == {
        "Gate": "hashFiles(inputs.baseline) != ''",
        "No gate": f"{missing} && !inputs.require_baseline",
        "No baseline": f"{missing} && inputs.require_baseline",
    }
    assert [run_steps("report", tmp_path, values, only=name) for name in ("No gate", "No baseline")] == [0, 1]
    assert JOBS["quant-matrix", "bench"]["with"]["require_baseline"] is True


def test_history_has_a_point_for_each_figure(tmp_path: Path) -> None:
    ratio = {"median": 2.5, "min": 2.0, "max": 3.0, "rounds": 5}
    figures = {"perplexity": 20.5, "perplexity_stderr": 0.25, "kld_mean": 0.001, "kld_stderr": 0.0001, "bytes": 1000}
    result = {"type": "Q4_0", **figures, "prompt_ratio": ratio, "decode_ratio": ratio}
    (tmp_path / "bench.json").write_text(json.dumps({"reference": {"type": "F32"}, "results": [result]}))
    command = [sys.executable, TOOLS / "ci_history.py", tmp_path / "bench.json", "-o", tmp_path]
    subprocess.run(command, check=True)
    smaller, bigger = (json.loads((tmp_path / f"history-{name}.json").read_text()) for name in ("smaller", "bigger"))
    assert [(point["name"], point["value"]) for point in smaller] == [
        ("Q4_0 perplexity", 20.5),
        ("Q4_0 KL divergence", 0.001),
        ("Q4_0 size", 1000),
    ]
    assert [(point["name"], point["unit"], point["value"]) for point in bigger] == [
        ("Q4_0 prompt", "x F32", 2.5),
        ("Q4_0 decode", "x F32", 2.5),
    ]
