"""`import dgpt2_quant`: its public names load lazily, and no folder replaces one of them."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from dgpt2_quant.core.errors import DgptQuantError

import dgpt2_quant

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = {
    *("Model", "Scheduler", "pipeline", "set_seed", "convert", "search", "benchmark", "perplexity", "compare"),
    "batch_lines",
    "release",
    "__version__",
}


def python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], capture_output=True, check=True, text=True).stdout


def test_import_loads_nothing_until_a_name_is_used() -> None:
    code = (
        "import sys, dgpt2_quant; print(sorted({'numpy', 'llama_cpp', 'typer'} & set(sys.modules)))\n"
        "print(dgpt2_quant.UsageError.__name__, dgpt2_quant.__version__)\n"
        "print('numpy' in sys.modules)"
    )
    assert python("-c", code).splitlines() == ["[]", f"UsageError {version('dgpt2-quant')}", "False"]


def test_names_stay_the_same_after_all_modules_are_imported() -> None:
    """An import sets each submodule as an attribute of its package."""
    code = """if True:
        import importlib, pkgutil, sys, types, dgpt2_quant
        first = {name: getattr(dgpt2_quant, name) for name in dgpt2_quant.__all__}
        folders = ("bench", "cli", "core", "demo", "jobs", "quantize", "runtime")
        for folder in folders:
            package = importlib.import_module(f"dgpt2_quant.{folder}")
            for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
                importlib.import_module(module.name)
        for name, value in first.items():
            assert getattr(dgpt2_quant, name) is value, name
            assert not isinstance(value, types.ModuleType), name
        from dgpt2_quant.runtime import Model, Scheduler, pipeline, set_seed
        from dgpt2_quant.quantize.convert import convert
        assert (Model, pipeline, convert) == (dgpt2_quant.Model, dgpt2_quant.pipeline, dgpt2_quant.convert)
        assert all(map(callable, (Scheduler, set_seed)))
        print(*first)
    """
    assert set(python("-c", code).split()) == set(dgpt2_quant.__all__)
    assert not {path.name for path in ROOT.iterdir() if path.is_dir()} & set(dgpt2_quant.__all__)


def test_the_public_names_are_the_verbs_and_all_errors() -> None:
    def below(kind: type) -> set[str]:
        return {kind.__name__}.union(*map(below, kind.__subclasses__()))

    errors = {name for name in below(DgptQuantError) if hasattr(sys.modules["dgpt2_quant.core.errors"], name)}
    assert set(dgpt2_quant.__all__) == PUBLIC | errors
    assert set(dgpt2_quant.__all__) <= set(dir(dgpt2_quant))
    with pytest.raises(AttributeError, match="no attribute 'modle'"):
        dgpt2_quant.modle  # noqa: B018


def test_errors_are_also_python_errors() -> None:
    assert issubclass(dgpt2_quant.UsageError, ValueError)
    assert issubclass(dgpt2_quant.WaitTimeoutError, TimeoutError)


def test_python_m_is_the_program() -> None:
    assert python("-m", "dgpt2_quant", "--version").split()[-1] == version("dgpt2-quant")
