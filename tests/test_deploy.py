"""deploy/ and the release workflow: commands, paths and instruction sets that exist and agree. Nothing is built."""

import http.server
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from dgpt2_quant.cli.main import app
from dgpt2_quant.core.versions import INSTRUCTIONS, SUPPORTED
from typer.main import get_command

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text("utf-8"))["services"]["dgpt2-quant"]
SERVICE = (ROOT / "deploy" / "dgpt2-quant.service").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
RELEASE = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8"))


def _build_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_llama_cpp", ROOT / "deploy" / "build_llama_cpp.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BUILD = _build_script()


def instruction(name: str) -> str:
    """The arguments of the Dockerfile's last instruction of a name."""
    return re.findall(rf"^{name} (.*)", DOCKERFILE, re.M)[-1].strip()


def service(name: str) -> list[str]:
    return re.findall(rf"^{name}=(.*)", SERVICE, re.M)


def commands() -> dict[str, list[str]]:
    """The arguments of the program in each file."""
    program, *arguments = shlex.split(service("ExecStart")[0])
    assert program.endswith("/bin/dgpt2-quant")
    assert json.loads(instruction("ENTRYPOINT")) == ["dgpt2-quant"]
    return {"Dockerfile": json.loads(instruction("CMD")), "compose.yaml": COMPOSE["command"], "unit": arguments}


@pytest.mark.parametrize("name", commands())
def test_the_command_is_accepted(name: str) -> None:
    verb, *arguments = commands()[name]
    assert verb == "serve"
    values = get_command(app).commands["serve"].make_context("serve", arguments).params
    [model] = values["model"]
    assert Path(model).is_absolute()
    assert values["api_key_file"]
    assert values["port"] == 8080
    if name == "unit":
        assert values["host"] == "127.0.0.1"
    else:  # the port is published from the container's own address
        assert values["host"] == "0.0.0.0"
        assert str(values["api_key_file"]) == f"/run/secrets/{COMPOSE['secrets'][0]}"
        assert instruction("EXPOSE") == COMPOSE["ports"][0].split(":")[-1] == "8080"
        folder = COMPOSE["volumes"][0].split(":")[1]
        assert model.startswith(f"{folder}/")
        assert folder in json.loads(instruction("VOLUME"))


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_the_health_check_follows_the_health_route(status: int | None, healthy: bool) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if status and self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        _, _, code = json.loads(instruction("HEALTHCHECK").partition("CMD ")[2])
        assert "8080" in code
        if status is None:
            server.shutdown()
            server.server_close()
        port = str(server.server_address[1])
        done = subprocess.run([sys.executable, "-c", code.replace("8080", port)], stderr=subprocess.PIPE, check=False)
        assert (done.returncode == 0) is healthy
        server.shutdown()


def test_the_image_is_built_from_the_files_that_the_package_needs() -> None:
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    assert set(PROJECT["tool"]["setuptools"]["package-dir"].values()) <= kept
    assert {"LICENSE", "README.md"} <= kept
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+", DOCKERFILE, re.M):
        for source in sources.split():
            assert source == "." or (ROOT / source).is_file()
            assert source == "." or source in kept


def test_the_compose_file_fits_its_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run([*command, ROOT / "deploy" / "compose.yaml"], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_image_runs_as_a_user_without_rights() -> None:
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", instruction("USER"))
    assert COMPOSE["read_only"] is True
    assert COMPOSE["cap_drop"] == ["ALL"]


def test_requests_have_time_to_end() -> None:
    from dgpt2_quant.serve.calls.settings import Settings

    longest = 2 * Settings().shutdown_seconds
    assert int(service("TimeoutStopSec")[0]) >= longest
    assert int(COMPOSE["stop_grace_period"].removesuffix("s")) >= longest


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_accepts_the_unit_and_finds_it_protected(tmp_path: Path) -> None:
    unit = tmp_path / "dgpt2-quant.service"
    unit.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", SERVICE, flags=re.M), "utf-8")
    checked = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")
    subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", unit], capture_output=True, check=True
    )


def test_instruction_sets_agree_everywhere() -> None:
    sets = list(BUILD.INSTRUCTION_SETS)
    assert sets == [one["isa"] for one in RELEASE["jobs"]["wheels"]["strategy"]["matrix"]["include"]]
    assert list(map(BUILD.local_version, sets)) == list(INSTRUCTIONS)
    default = re.search(r"^ARG ISA=(\S+)", DOCKERFILE, re.M)
    assert default
    assert default[1] in sets
    assert COMPOSE["build"]["args"]["ISA"] == f"${{ISA:-{default[1]}}}"


@pytest.mark.parametrize(("file", "name"), [("uv-Linux-X64", "x86-64-v3"), ("uv-macOS-ARM64", "arm64")])
def test_hosted_runners_build_for_one_of_the_instruction_sets(file: str, name: str) -> None:
    text = (ROOT / ".github" / "ci" / f"{file}.toml").read_text("utf-8")
    theirs = tomllib.loads(text)["extra-build-variables"]["llama-cpp-python"]
    assert theirs["CMAKE_ARGS"] == BUILD.build_variables(name)["CMAKE_ARGS"]


@pytest.mark.parametrize("name", BUILD.INSTRUCTION_SETS)
def test_wheels_are_built_with_the_settings_of_the_project_for_a_named_instruction_set(name: str) -> None:
    ours = PROJECT["tool"]["uv"]["extra-build-variables"]["llama-cpp-python"]
    built = BUILD.build_variables(name)
    flags = built["CMAKE_ARGS"].split()
    assert "-DGGML_NATIVE=OFF" in flags
    assert set(ours["CMAKE_ARGS"].split()) - set(flags) == {"-DGGML_NATIVE=ON"}
    assert {key for key in ours if built[key] != ours[key]} <= {"CMAKE_ARGS", "CMAKE_BUILD_PARALLEL_LEVEL"}


def test_the_wheel_has_a_local_version(tmp_path: Path) -> None:
    module = tmp_path / "llama_cpp" / "__init__.py"
    module.parent.mkdir()
    module.write_text(f'from .llama import *\n\n__version__ = "{SUPPORTED}"\n', "utf-8")
    BUILD.set_version(tmp_path, "v3")
    assert module.read_text("utf-8") == f'from .llama import *\n\n__version__ = "{SUPPORTED}+v3"\n'
    module.write_text("from ._version import __version__\n", "utf-8")
    with pytest.raises(SystemExit, match="has no line such as"):
        BUILD.set_version(tmp_path, "v3")


def test_all_constraints_but_the_built_wheels_are_kept() -> None:
    runs = [step.get("run", "") for step in RELEASE["jobs"]["wheels"]["steps"]]
    scripts = {found for text in (DOCKERFILE, *runs) for found in re.findall(r"sed '(.*?)' constraints.txt", text)}
    [script] = scripts
    before = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    filtered = subprocess.run(["sed", script, ROOT / "constraints.txt"], capture_output=True, text=True, check=True)
    after = filtered.stdout.splitlines()
    removed = [line for line in before if line not in after]
    assert removed[0] == f"llama-cpp-python=={SUPPORTED} \\"
    assert all(line.startswith("    --hash=") for line in removed[1:])
    assert len(after) == len(before) - len(removed)
