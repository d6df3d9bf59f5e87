"""`import dgpt2_quant`: what it gives, lazily, and that no folder gets in the way of a name."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import dgpt2_quant.bench
import dgpt2_quant.cli.main
import dgpt2_quant.demo
import dgpt2_quant.quantize
import dgpt2_quant.runtime
import pytest
from dgpt2_quant.core.errors import DgptQuantError

import dgpt2_quant

ROOT = Path(__file__).resolve().parent.parent


def test_it_loads_nothing_until_a_name_is_used() -> None:
    code = (
        "import sys, dgpt2_quant; print(sorted({'numpy', 'llama_cpp', 'typer'} & set(sys.modules)))\n"
        "print(dgpt2_quant.UsageError.__name__, dgpt2_quant.__version__)\n"
        "print('numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.splitlines() == ["[]", f"UsageError {version('dgpt2-quant')}", "False"]


@pytest.mark.parametrize("name", dgpt2_quant.__all__)
def test_a_name_gives_the_same_thing_each_time(name: str) -> None:
    """Also after all folders are imported, which sets a module under the folder's name."""
    assert not (ROOT / name).is_dir()
    first = getattr(dgpt2_quant, name)
    assert getattr(dgpt2_quant, name) is first
    assert callable(first) or name == "__version__"
    assert name in dir(dgpt2_quant)


def test_all_errors_are_exported() -> None:
    def below(kind: type) -> set[str]:
        return {kind.__name__}.union(*map(below, kind.__subclasses__()))

    public = {name for name in below(DgptQuantError) if not name.startswith("_")}
    assert public <= set(dgpt2_quant.__all__)
    with pytest.raises(AttributeError, match="no attribute 'modle'"):
        dgpt2_quant.modle  # noqa: B018


def test_errors_are_also_those_of_python() -> None:
    assert issubclass(dgpt2_quant.UsageError, ValueError)
    assert issubclass(dgpt2_quant.WaitTimeoutError, TimeoutError)
