"""The house's rules: who imports whom, what no module is called, how long a file may be, and fresh documents."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "quantize": set(),
    "runtime": {"quantize"},
    "bench": {"quantize", "runtime"},
    "cli": {"quantize", "runtime", "bench"},
    "demo": set(),
}
# what runtime takes from quantize
GROUND_FLOOR = {
    "errors",
    "quant_types",
    "gguf_file",
    "gpt2_file",
    "hyperparameters",
    "cores",
    "llama_cpp_version",
    "workers",
}
# and what turns a model's name into a file, for the one module that takes names
FACADE = {"pipeline.py": {"store"}}
MODULES = sorted(path for folder in [*MAY_IMPORT, "dgpt2_quant"] for path in (ROOT / folder).glob("*.py"))


def imports(path: Path) -> list[tuple[str, int]]:
    """Every module that a file imports absolutely, with the line."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.append((node.module, node.lineno))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1, f"{path}:{node.lineno} reaches out of its folder with a relative import"
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_arrows_run_downhill(path: Path) -> None:
    folder = path.parent.name
    for module, line in imports(path):
        top, *rest = module.split(".")
        assert top not in MAY_IMPORT, f"{path}:{line} would load a second copy: say dgpt2_quant.{module}"
        if top == "dgpt2_quant":
            allowed = MAY_IMPORT.get(folder, MAY_IMPORT.keys())  # the root package knows all
            assert rest[0] in allowed, f"{path}:{line}: {folder} may not know {rest[0]}"
            if folder == "runtime":
                assert rest[1] in GROUND_FLOOR | FACADE.get(path.name, set()), (
                    f"{path}:{line}: not of quantize's ground floor"
                )


def test_each_c_library_is_touched_in_one_file() -> None:
    touching = {
        f"{p.parent.name}/{p.name}" for p in MODULES for module, _ in imports(p) if module in ("ctypes", "llama_cpp")
    }
    ours = {
        "core/ggml.py",
        "runtime/native/bindings.py",
        "runtime/native/model_context.py",
        "runtime/native/sampler.py",
    }
    # the first asks the system for memory; the second runs llama-cpp-python's own class, to be measured against
    assert touching == ours | {"runtime/native/huge_pages.py", "bench/speed/peer_worker.py"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_files_are_short_and_named_like_no_standard_module(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 400
    assert path.stem not in sys.stdlib_module_names
    assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), "says what it is for"


def test_generated_documents_are_fresh() -> None:
    command = [sys.executable, ROOT / "tools" / "generate_docs.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
