"""The wheel, installed in an environment of its own: an editable install hides files that are missing from it."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("bench", "cli", "core", "demo", "dgpt2_quant", "jobs", "publish", "quantize", "runtime", "serve")
SOURCES = (*FOLDERS, "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("build")
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.pyd")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignored)
        else:
            shutil.copyfile(source, folder / name)
    code = "import setuptools.build_meta as backend; print(backend.build_wheel('dist'))"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
    [built] = (folder / "dist").glob("*.whl")
    return built


def test_every_dependency_has_an_upper_bound_that_the_constraints_keep() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    constraints = [
        Requirement(line.rstrip(" \\"))
        for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()
        if line[:1].isalpha()
    ]
    pinned = {one.name: one.specifier for one in constraints if one.marker is None or one.marker.evaluate()}
    optional = [line for lines in project["optional-dependencies"].values() for line in lines]
    for line in (*project["dependencies"], *optional):
        requirement = Requirement(line)
        assert {part.operator for part in requirement.specifier} & {"<", "=="}, line
        if requirement.name in pinned:
            (pin,) = pinned[requirement.name]
            assert requirement.specifier.contains(pin.version), f"{line}, but {pin} in constraints.txt"


def test_the_wheel_has_one_import_name_and_all_files(wheel: Path) -> None:
    names = ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"dgpt2_quant"}
    expected = {
        str(Path("dgpt2_quant", folder.removeprefix("dgpt2_quant"), path.relative_to(ROOT / folder)))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info" not in name} == expected


@pytest.mark.slow
def test_demo_runs_from_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "env"
    venv.create(home)  # without pip, whose set-up takes half a minute; a wheel of Python files is only unpacked
    python = home / "bin" / "python"
    [packages] = home.glob("lib/python*/site-packages")
    ZipFile(wheel).extractall(packages)
    # the dependencies are those of the environment that runs the tests; Python searches a folder that a .pth file
    # names, but does not read the .pth files in it (our editable install)
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    text = packages / "dgpt2_quant" / "demo" / "evaluation.txt"
    text.write_text(text.read_text("utf-8")[:12_000], "utf-8")  # all of it takes half a minute
    work = tmp_path / "work"
    work.mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    where = "import dgpt2_quant.cli.main as m; print(m.__file__)"
    found = subprocess.run([python, "-c", where], cwd=work, env=environment, check=True, capture_output=True, text=True)
    assert Path(found.stdout.strip()).is_relative_to(home)
    # the entry point, as an installer's script calls it; with two of the four types, each timed on one text
    start = (
        "import dgpt2_quant.bench.speed.timing as t, dgpt2_quant.core.quant_types as q; "
        "t.TEXT_SECONDS, q.DEMO_TYPES = 0.0, ('Q5_K_M', 'Q4_0'); "
        "from importlib.metadata import entry_points as e; e(group='console_scripts')['dgpt2-quant'].load()()"
    )
    demo = subprocess.run(
        [python, "-c", start, "demo"], cwd=work, env=environment, check=False, capture_output=True, text=True
    )
    assert demo.returncode == 0, demo.stderr
    results = json.loads((work / "dgpt2-quant-demo" / "bench.json").read_text())["results"]
    assert [result["type"] for result in results] == ["Q5_K_M", "Q4_0"]
    assert [result["kld_mean"] for result in results] == sorted(result["kld_mean"] for result in results)
    assert all(f"| {result['type']} |" in (work / "dgpt2-quant-demo" / "report.md").read_text() for result in results)
    assert demo.stdout.count("Once upon a time") == 3  # the heading, and once for each type
    for line in ("Q4_0", "Reference F32", "Ship "):
        assert line in demo.stdout
