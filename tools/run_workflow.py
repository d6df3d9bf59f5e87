"""Runs the `run:` steps of a workflow here, as GitHub would: `python tools/run_workflow.py .github/workflows/X.yml`.

Each job gets a clean clone of what is committed (HEAD of the repository that the file is in), its steps run in order in
`bash -eo pipefail`, and jobs follow `needs`, matrix and `if`. Artifacts are folders. uv is that of the tool belt; other
actions are named and skipped. It stops at the first step that fails, with its status. What it does not know (a key, a
function, another shell) is an error, not a guess. Not done as on GitHub: jobs run one after the other on this machine
in this user's home, without timeouts, permissions, caches and services.
"""

import argparse
import hashlib
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from ci_artifacts import ArtifactError, download, upload
from ci_expressions import ExpressionError, evaluate, fill, to_text

_SUMMARY_LIMIT = 1 << 20  # bytes a step; more is refused by GitHub
_OS = {"Linux": "Linux", "Darwin": "macOS"}[platform.system()]
_ARCH = {"x86_64": "X64", "arm64": "ARM64", "aarch64": "ARM64"}[platform.machine()]
_IMAGE = {"Linux": "ubuntu", "macOS": "macos"}[_OS]
_WORKFLOW_KEYS = {"name", "on", "permissions", "concurrency", "env", "defaults", "jobs"}
_CALL_KEYS = {"name", "needs", "if", "permissions", "uses", "with"}
_JOB_KEYS = (_CALL_KEYS - {"uses", "with"}) | {"runs-on", "timeout-minutes", "strategy", "outputs", "env", "steps"}
_STEP_KEYS = {"name", "id", "if", "uses", "with", "run", "env", "shell", "working-directory"}
# not those of the shell that this tool is called from
_NOT_INHERITED = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "CMAKE_ARGS", "UV_PYTHON", "UV_CONFIG_FILE"}


class WorkflowError(Exception):
    """A workflow that can not be run; with the status of the step that failed, if one did."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


class Runner:
    """One run: what all its jobs share."""

    def __init__(self, repository: Path, folder: Path, uv: str | None, event: str, matrix_limit: int | None) -> None:
        self.repository, self.folder, self.uv, self.matrix_limit = repository, folder, uv, matrix_limit
        self.artifacts = folder / "artifacts"
        self.numbers = itertools.count(1)
        branch = _git(repository, "rev-parse", "--abbrev-ref", "HEAD")
        self.github = {
            "event_name": event,
            "ref": f"refs/heads/{branch}",
            "sha": _git(repository, "rev-parse", "HEAD"),
            "repository": f"local/{repository.name}",
            "token": "",
        }

    def workflow(self, file: Path, given: dict[str, Any], only: list[str] | None = None, called: bool = False) -> None:
        """All jobs of a file (or `only` these and what they need), those that are needed first. `given`: its inputs."""
        document = yaml.safe_load(file.read_text("utf-8"))
        document["on"] = document.pop(True, document.get("on"))  # YAML 1.1 reads `on` as true
        _only_known(document, _WORKFLOW_KEYS, file.name)
        triggers = document["on"] if isinstance(document["on"], dict) else {}
        kind = "workflow_call" if called or "workflow_dispatch" not in triggers else "workflow_dispatch"
        declared = (triggers.get(kind) or {}).get("inputs") or {}
        if unknown := given.keys() - declared.keys():
            raise WorkflowError(f"{file.name} has no input {', '.join(sorted(unknown))}")
        inputs = {name: given.get(name, spec.get("default")) for name, spec in declared.items()}
        if missing := [name for name, spec in declared.items() if spec.get("required") and inputs[name] is None]:
            raise WorkflowError(f"{file.name} wants the input {', '.join(missing)}")
        shared = {"github": {**self.github, "workflow": document.get("name", file.name)}, "inputs": inputs}
        needs: dict[str, dict[str, Any]] = {}
        for name in _in_order(document["jobs"], only):
            job = document["jobs"][name]
            contexts = {**shared, "needs": {need: needs[need] for need in _needed(job)}}
            may_run = all(need["result"] == "success" for need in contexts["needs"].values())
            if not (may_run and evaluate(_bare(job.get("if", "true")), contexts, {})):
                print(f"== {name}: skipped", flush=True)
                needs[name] = {"result": "skipped", "outputs": {}}
                continue
            needs[name] = {"result": "success", "outputs": self._job(name, job, document, contexts)}

    def _job(
        self, name: str, job: dict[str, Any], document: dict[str, Any], contexts: dict[str, Any]
    ) -> dict[str, Any]:
        if "uses" in job:
            _only_known(job, _CALL_KEYS, name)
            if not job["uses"].startswith("./"):
                raise WorkflowError(f"{name}: only workflows of this repository can be called, not {job['uses']}")
            print(f"== {name}: {job['uses']}", flush=True)
            inputs = fill(job.get("with", {}), contexts, {})
            self.workflow(self.repository / job["uses"], inputs, called=True)
            return {}
        _only_known(job, _JOB_KEYS | {"defaults"}, name)
        outputs: dict[str, Any] = {}
        axes = fill((job.get("strategy") or {}).get("matrix") or {}, contexts, {"fromJSON": json.loads})
        if axes.keys() & {"include", "exclude"}:
            raise WorkflowError(f"{name}: include and exclude in a matrix are not known here")
        every = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
        here = [one for one in every if fill(job["runs-on"], {**contexts, "matrix": one}, {}).startswith(_IMAGE)]
        chosen = here[: self.matrix_limit]
        for matrix in every:
            label = f"{name} ({', '.join(map(to_text, matrix.values()))})" if matrix else name
            if matrix not in chosen:
                print(f"== {label}: skipped, {'by --matrix-limit' if matrix in here else 'not ' + _OS}", flush=True)
                continue
            print(f"== {label}", flush=True)
            outputs.update(Job(self, label, {**contexts, "matrix": matrix}).run(job, document))
        return outputs


class Job:
    """One job with one choice of its matrix, in a clone of its own."""

    def __init__(self, runner: Runner, label: str, contexts: dict[str, Any]) -> None:
        self.runner, self.label = runner, label
        self.temporary = runner.folder / f"{next(runner.numbers)}"
        self.workspace = self.temporary / runner.repository.name
        self.temporary.mkdir()
        _git(runner.repository, "clone", "--quiet", "--no-hardlinks", str(runner.repository), str(self.workspace))
        runs_in = {"os": _OS, "arch": _ARCH, "temp": str(self.temporary)}
        github = {**contexts["github"], "workspace": str(self.workspace)}
        self.contexts = {**contexts, "github": github, "runner": runs_in, "steps": {}, "env": {}}
        self.functions = {"fromJSON": json.loads, "hashFiles": self._hash_files, "success": lambda: True}
        self.functions |= {"always": lambda: True, "failure": lambda: False, "cancelled": lambda: False}
        inherited = {key: value for key, value in os.environ.items() if key not in _NOT_INHERITED}
        self.environment = inherited | {
            "CI": "true",
            "GITHUB_ACTIONS": "true",
            "GITHUB_WORKSPACE": str(self.workspace),
            "RUNNER_TEMP": str(self.temporary),
            "RUNNER_OS": _OS,
            "RUNNER_ARCH": _ARCH,
            **{f"GITHUB_{name.upper()}": value for name, value in runner.github.items() if name != "token"},
        }

    def run(self, job: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
        """All its steps; its outputs."""
        for level in (document.get("env"), job.get("env")):
            self.contexts["env"] |= {name: to_text(value) for name, value in self._fill(level or {}).items()}
        defaults = {}
        for level in (document, job):
            defaults |= (level.get("defaults") or {}).get("run") or {}
        for step in job["steps"]:
            _only_known(step, _STEP_KEYS, self.label)
            title = step.get("name") or step.get("uses") or step["run"].strip().splitlines()[0]
            if not evaluate(_bare(step.get("if", "true")), self.contexts, self.functions):
                print(f"-- {title}: skipped by its condition", flush=True)
                continue
            print(f"-- {self._fill(title)}", flush=True)
            if "uses" in step:
                self._action(step["uses"].split("@")[0], self._fill(step.get("with", {})))
            else:
                self._command({**defaults, **step}, title)
        return self._fill(job.get("outputs") or {})

    def _fill(self, value: Any) -> Any:
        return fill(value, self.contexts, self.functions)

    def _command(self, step: dict[str, Any], title: str) -> None:
        if step.get("shell") != "bash":
            raise WorkflowError(f"{self.label}, {title}: say `shell: bash`; other shells are not known here")
        script = self.temporary / "step.sh"
        script.write_text(self._fill(step["run"]), "utf-8")
        print("".join(f"   $ {line}\n" for line in script.read_text("utf-8").splitlines()), end="", flush=True)
        files = {name: self.temporary / name.lower() for name in ("OUTPUT", "ENV", "PATH", "STEP_SUMMARY")}
        for file in files.values():
            file.write_text("")
        own = {name: to_text(self._fill(value)) for name, value in (step.get("env") or {}).items()}
        environment = self.environment | self.contexts["env"] | own
        environment |= {f"GITHUB_{name}": str(file) for name, file in files.items()}
        command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)]
        folder = self.workspace / self._fill(step.get("working-directory", "."))
        status = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
        summary = files["STEP_SUMMARY"].read_text("utf-8")
        if summary:
            print("-- job summary\n" + "".join(f"   | {line}\n" for line in summary.splitlines()), end="", flush=True)
        if status:
            raise WorkflowError(f"{self.label}: the step {title!r} failed with status {status}", status)
        if len(summary.encode()) > _SUMMARY_LIMIT:
            raise WorkflowError(f"{self.label}: the summary of {title!r} is larger than {_SUMMARY_LIMIT} bytes")
        if "id" in step:
            self.contexts["steps"][step["id"]] = {"outputs": _read_variables(files["OUTPUT"])}
        self.contexts["env"] |= _read_variables(files["ENV"])
        for line in files["PATH"].read_text("utf-8").split("\n"):
            self._prepend_path(line)

    def _action(self, action: str, inputs: dict[str, Any]) -> None:
        if action == "actions/checkout":
            return  # the workspace is a clone
        if action == "astral-sh/setup-uv":
            if not self.runner.uv:
                raise WorkflowError("there is no uv: `make .tools/bin/uv` brings one")
            self._prepend_path(str(Path(self.runner.uv).parent))
            if "python-version" in inputs:
                self.contexts["env"]["UV_PYTHON"] = inputs["python-version"]
        elif action == "actions/upload-artifact":
            print(
                f"   {inputs['name']}: {', '.join(upload(self.runner.artifacts, self.workspace, inputs))}", flush=True
            )
        elif action == "actions/download-artifact":
            print(f"   {', '.join(download(self.runner.artifacts, self.workspace, inputs))}", flush=True)
        else:
            print(f"   {action} is not run here: {json.dumps(inputs)}", flush=True)

    def _prepend_path(self, folder: str) -> None:
        if folder:
            self.environment["PATH"] = f"{folder}{os.pathsep}{self.environment['PATH']}"

    def _hash_files(self, *patterns: str) -> str:
        found = {file for pattern in patterns if pattern for file in self.workspace.glob(pattern) if file.is_file()}
        digests = b"".join(hashlib.sha256(file.read_bytes()).digest() for file in sorted(found))
        return hashlib.sha256(digests).hexdigest() if found else ""


def _in_order(jobs: dict[str, Any], only: list[str] | None) -> list[str]:
    """Names of jobs (all, or these and what they need), each after those that it needs."""
    ordered: list[str] = []

    def visit(name: str, below: list[str]) -> None:
        if name not in jobs or name in below:
            raise WorkflowError(f"the job {name} {'needs itself' if name in jobs else 'is not there'}")
        for need in _needed(jobs[name]):
            visit(need, [*below, name])
        if name not in ordered:
            ordered.append(name)

    for name in only or jobs:
        visit(name, [])
    return ordered


def _needed(job: dict[str, Any]) -> list[str]:
    needs = job.get("needs") or []
    return [needs] if isinstance(needs, str) else needs


def _bare(condition: Any) -> str:
    """The expression of an `if`, which may be written without `${{ }}`."""
    text = to_text(condition).strip()
    return text[3:-2] if text.startswith("${{") and text.endswith("}}") else text


def _read_variables(file: Path) -> dict[str, str]:
    """What a step wrote to $GITHUB_OUTPUT or $GITHUB_ENV: `name=value`, or `name<<END`, lines, `END`."""
    values = {}
    lines = iter(file.read_text("utf-8").splitlines())
    for line in lines:
        name, sign, value = line.partition("=")
        if "<<" in name or not sign:
            name, _, end = line.partition("<<")
            value = "\n".join(itertools.takewhile(lambda text, end=end: text != end, lines))
        values[name] = value
    return values


def _only_known(mapping: dict[str, Any], known: set[str], where: str) -> None:
    if unknown := mapping.keys() - known:
        raise WorkflowError(f"{where}: {', '.join(sorted(map(str, unknown)))} is not known here")


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the steps of a workflow here, in a clean clone of HEAD.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--job", action="append", default=[], help="only this job (those that it needs as well)")
    parser.add_argument("--input", action="append", default=[], metavar="NAME=VALUE", help="as of workflow_dispatch")
    parser.add_argument("--event", default="workflow_dispatch", help="what is said to have started it")
    parser.add_argument("--matrix-limit", type=int, metavar="N", help="only the first N combinations of a matrix")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder for clones and artifacts; they stay")
    options = parser.parse_args()
    repository = Path(_git(options.file.resolve().parent, "rev-parse", "--show-toplevel"))
    inputs = dict(pair.split("=", 1) for pair in options.input)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.keep or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=options.keep is None)
        try:
            committed = folder / "committed" / repository.name
            _git(repository, "clone", "--quiet", "--no-hardlinks", str(repository), str(committed))
            uv = shutil.which("uv") or shutil.which("uv", path=str(repository / ".tools" / "bin"))
            runner = Runner(committed, folder, uv, options.event, options.matrix_limit)
            runner.workflow(committed / options.file.resolve().relative_to(repository), inputs, options.job)
        except (WorkflowError, ExpressionError, ArtifactError, subprocess.CalledProcessError) as error:
            print(f"Error: {error}", file=sys.stderr)
            return getattr(error, "status", 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
