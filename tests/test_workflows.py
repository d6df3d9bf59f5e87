"""The CI: workflows that GitHub would take, pinned and without rights, made of commands that exist; and its tools."""

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


def test_actions_are_pinned_with_the_version_beside() -> None:
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
            assert "github.ref == 'refs/heads/main'" in job["if"]
            assert re.search(r"github.event_name == '(push|schedule)'", job["if"])


@pytest.mark.parametrize("name", WORKFLOWS)
def test_runs_do_not_pile_up(name: str) -> None:
    document = WORKFLOWS[name]
    if list(triggers(document)) == ["workflow_call"]:  # it would wait for its caller, which has the same group
        assert "concurrency" not in document
    else:
        assert "github.ref" in document["concurrency"]["group"]


@pytest.mark.parametrize("key", OWN_STEPS, ids="/".join)
def test_jobs_end_and_say_what_they_run_on(key: tuple[str, str]) -> None:
    job = OWN_STEPS[key]
    assert job["timeout-minutes"] <= 60
    assert WORKFLOWS[key[0]]["defaults"]["run"]["shell"] == "bash", "with -eo pipefail, unlike the default"
    images = job["strategy"]["matrix"]["os"] if "matrix.os" in job["runs-on"] else [job["runs-on"]]
    assert all(re.fullmatch(r"(ubuntu|macos)-\d+(\.\d+)?", image) for image in images)
    for step in job["steps"]:
        if "make setup" in step.get("run", ""):
            assert step["env"]["UV_CONFIG_FILE"] == ".github/ci/uv-${{ runner.os }}-${{ runner.arch }}.toml"


def test_values_from_outside_reach_scripts_as_variables_only() -> None:
    assert not [run for run in RUNS if "${{" in run]


def test_the_tests_run_on_linux_and_macos_from_the_oldest_python_on() -> None:
    matrix = JOBS["tests", "test"]["strategy"]["matrix"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {image.split("-")[0] for image in matrix["os"]} == {"ubuntu", "macos"}
    assert f">={matrix['python'][0]}" == project["requires-python"]


@pytest.mark.parametrize("file", sorted(SETTINGS.glob("uv-*.toml")), ids=lambda file: file.stem)
def test_hosted_runners_compile_the_same_for_a_named_processor(file: Path) -> None:
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["uv"]
    theirs = tomllib.loads(file.read_text("utf-8"))
    assert theirs["build-constraint-dependencies"] == ours["build-constraint-dependencies"]
    here = ours["extra-build-variables"]["llama-cpp-python"]
    there = theirs["extra-build-variables"]["llama-cpp-python"]
    flags = set(there["CMAKE_ARGS"].split())
    assert "-DGGML_NATIVE=OFF" in flags
    assert set(here["CMAKE_ARGS"].split()) - {"-DGGML_NATIVE=ON"} <= flags
    same = ("SKBUILD", "CFLAGS", "CXXFLAGS") if "Linux" in file.stem else ("SKBUILD",)  # clang does not know the flags
    assert {key: here[key] for key in here if key.startswith(same)} == {
        key: there[key] for key in there if key.startswith(same)
    }


def test_the_matrix_is_that_of_the_registry(tmp_path: Path) -> None:
    assert JOBS["bench", "bench"]["strategy"]["matrix"] == {"type": "${{ fromJSON(needs.levels.outputs.types) }}"}
    [step] = [step for step in JOBS["bench", "levels"]["steps"] if step.get("id") == "levels"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "GITHUB_OUTPUT": str(tmp_path / "output")}
    subprocess.run(["bash", "-eo", "pipefail", "-c", step["run"]], cwd=tmp_path, env=environment, check=True)
    name, _, levels = (tmp_path / "output").read_text().partition("=")
    assert name == "types"
    assert json.loads(levels) == [one.name for one in QUANT_TYPES.values() if one.ci and one.name != "F32"]


def test_the_baseline_has_every_level_of_the_matrix() -> None:
    from dgpt2_quant.bench.document.read import read_document

    baseline = read_document(SETTINGS / "storybook.json")
    assert {row["type"] for row in baseline["results"]} == {one.name for one in QUANT_TYPES.values() if one.ci} - {
        "F32"
    }
    assert not [row["path"] for row in baseline["results"] if Path(row["path"]).is_absolute()], "somebody's machine"


@pytest.mark.parametrize("run", [run for run in RUNS if "dgpt2-quant " in run])
def test_commands_name_verbs_and_flags_that_there_are(run: str) -> None:
    from dgpt2_quant.cli.main import app
    from typer.main import get_command

    verbs = get_command(app).commands
    for command in re.findall(r"^dgpt2-quant ([^|>\n]*)", run.replace("\\\n", " "), re.MULTILINE):
        verb, *words = shlex.split(command.replace("${REVISION:+", "").replace("}", ""))
        assert verb in verbs
        options = {option for parameter in verbs[verb].params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= options, f"dgpt2-quant {command}"


def test_make_knows_its_targets() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert {target for run in RUNS for target in re.findall(r"^make (\w+)", run, re.MULTILINE)} <= set(targets)


def commit(folder: Path, **workflows: str) -> Path:
    """A repository with these workflows in it; the first one's file."""
    (folder / ".github" / "workflows").mkdir(parents=True)
    for name, text in workflows.items():
        (folder / ".github" / "workflows" / f"{name}.yml").write_text(text)
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "--quiet", "--initial-branch=main"], ["add", "."], [*who, "commit", "--quiet", "-m", "x"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    return folder / ".github" / "workflows" / f"{next(iter(workflows))}.yml"


def run_workflow(*arguments: Path | str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, TOOLS / "run_workflow.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


WHOLE = """
name: Whole
on:
  workflow_dispatch:
    inputs:
      greeting: {type: string, default: hello}
defaults: {run: {shell: bash}}
env: {GREETING: "${{ inputs.greeting }}"}
jobs:
  last:
    runs-on: ubuntu-24.04
    needs: [each, elsewhere]
    steps:
      - {uses: "actions/download-artifact@1", with: {pattern: "part-*", path: parts, merge-multiple: true}}
      - {run: "cat parts/*.txt >> $GITHUB_STEP_SUMMARY; test ! -e left-behind"}
      - {uses: "somebody/else@1", with: {to: "${{ github.ref }}"}}
  first:
    runs-on: ubuntu-24.04
    outputs: {names: "${{ steps.make.outputs.names }}"}
    steps:
      - {id: make, run: 'echo "names=[\\"a\\", \\"b\\", \\"c\\"]" >> $GITHUB_OUTPUT; touch left-behind'}
      - {run: 'echo MORE=more >> $GITHUB_ENV'}
      - {run: 'mkdir bin; printf "#!/bin/sh\\necho tool" > bin/tool; chmod +x bin/tool; echo $PWD/bin >> $GITHUB_PATH'}
      - {run: 'test $MORE = more; test "$(tool)" = tool'}
      - {if: "runner.os == 'Nowhere' || env.MORE != 'more'", run: "exit 9"}
  each:
    runs-on: ubuntu-24.04
    needs: first
    strategy: {matrix: {name: "${{ fromJSON(needs.first.outputs.names) }}"}}
    steps:
      - {run: 'echo "$GREETING $NAME" > "$NAME.txt"', env: {NAME: "${{ matrix.name }}"}}
      - {uses: "actions/upload-artifact@1", with: {name: "part-${{ matrix.name }}", path: "${{ matrix.name }}.txt"}}
  elsewhere:
    needs: first
    uses: ./.github/workflows/called.yml
    with: {word: "${{ needs.first.outputs.names }}"}
"""
CALLED = """
on:
  workflow_call:
    inputs:
      word: {type: string, required: true}
defaults: {run: {shell: bash}}
jobs:
  only:
    runs-on: ubuntu-24.04
    steps:
      - {run: 'test "$WORD" = "[\\"a\\", \\"b\\", \\"c\\"]"', env: {WORD: "${{ inputs.word }}"}}
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the workflow wants ubuntu")
def test_run_workflow_runs_jobs_as_they_need_each_other(tmp_path: Path) -> None:
    file = commit(tmp_path / "repository", whole=WHOLE, called=CALLED)
    (tmp_path / "repository" / "left-behind").touch()  # not committed, so not in a clean clone
    done = run_workflow(file, "--input", "greeting=hi", "--matrix-limit", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    heads = [line for line in done.stdout.splitlines() if line.startswith("== ")]
    assert heads[:4] == ["== first", "== each (a)", "== each (b)", "== each (c): skipped, by --matrix-limit"]
    assert heads[-1] == "== last"
    assert "   | hi a\n   | hi b\n" in done.stdout, "the summary"
    assert "exit 9: skipped by its condition" in done.stdout
    assert 'somebody/else is not run here: {"to": "refs/heads/main"}' in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="the workflow wants ubuntu")
def test_run_workflow_stops_at_the_first_failure_with_its_status(tmp_path: Path) -> None:
    steps = "[{run: 'false | true'}, {run: 'echo not $((1 + 1))'}]"
    shells = "defaults: {run: {shell: bash}}"
    for number, (text, status, said) in enumerate(
        [
            (f"jobs: {{a: {{runs-on: ubuntu-24.04, steps: {steps}}}}}\n{shells}", 1, "failed with status 1"),
            (f"jobs: {{a: {{runs-on: ubuntu-24.04, steps: [{{run: exit 7}}]}}}}\n{shells}", 7, "status 7"),
            ("jobs: {a: {runs-on: ubuntu-24.04, steps: [{run: 'true'}]}}", 1, "say `shell: bash`"),
            ("jobs: {a: {runs-on: ubuntu-24.04, services: {}, steps: []}}", 1, "services is not known"),
            ("jobs: {a: {needs: b, runs-on: ubuntu-24.04, steps: []}}", 1, "the job b is not there"),
            ("jobs: {a: {if: 'sometimes()', runs-on: ubuntu-24.04, steps: []}}", 1, "sometimes is not known"),
        ]
    ):
        done = run_workflow(commit(tmp_path / str(number), one=f"on: workflow_dispatch\n{text}"))
        assert done.returncode == status
        assert said in done.stderr
        assert "not 2" not in done.stdout


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("github.event_name == 'PUSH' && github.ref != 'refs/heads/main'", True),
        ("!github.missing || false", True),
        ("inputs.revision || 'it''s'", "it's"),
        ("(true || true) && false", False),
        ("fromJSON('[1, 2]')", [1, 2]),
        ("github.event-name", None),
    ],
)
def test_expressions(expression: str, value: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(TOOLS)
    from ci_expressions import ExpressionError, evaluate, fill

    contexts = {"github": {"event_name": "push", "ref": "refs/heads/x"}, "inputs": {"revision": ""}}
    assert evaluate(expression, contexts, {"fromJSON": json.loads}) == value
    assert fill("<${{ github.ref }} ${{ true }}>", contexts, {}) == "<refs/heads/x true>"
    for wrong in ("matrix.type", "1 2", "(true", "github.ref == ", "contains('a', 'b')", "github.ref ? 1"):
        with pytest.raises(ExpressionError):
            evaluate(wrong, contexts, {})


@pytest.mark.skipif(sys.platform != "linux", reason="the workflow wants ubuntu")
@pytest.mark.parametrize(("caller", "status"), [("quant-matrix", 1), ("real-model", 0)])
def test_a_baseline_that_is_gone_is_red_where_one_is_required(caller: str, status: int, tmp_path: Path) -> None:
    """The callers' own inputs and the gate's own steps, in a repository without any baseline."""
    bench = WORKFLOWS["bench"]
    given = JOBS[caller, "bench"]["with"] | {"revision": "", "text": "evaluation"}
    gate = [step for step in JOBS["bench", "report"]["steps"] if "inputs.baseline" in step.get("if", "")]
    called = {**bench, "on": triggers(bench), "jobs": {"gate": {"runs-on": "ubuntu-24.04", "steps": gate}}}
    del called[True]
    calls = {"on": "workflow_dispatch", "jobs": {"a": {"uses": "./.github/workflows/bench.yml", "with": given}}}
    done = run_workflow(commit(tmp_path / "repository", calls=yaml.safe_dump(calls), bench=yaml.safe_dump(called)))
    assert done.returncode == status, done.stdout + done.stderr
    assert f"::{'error' if status else 'notice'}::{given['baseline']} is not there" in done.stdout


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
