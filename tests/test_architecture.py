"""The architecture: which folder may import which, where C is called, and what a file must look like."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = {"core"}
CALIBRATION = {*CHECKPOINT, "quantize/checkpoint"}
RECIPES = {*CALIBRATION, "quantize/calibration"}
LEAN = {*RECIPES, "quantize/recipes"}
SEARCH = {*LEAN, "quantize/lean"}
QUANTIZE = {*SEARCH, "quantize/search"}
STORE = {*QUANTIZE, "quantize"}
CONVERTER = {*STORE, "quantize/store"}
RUNNER = {"core", "runtime", "runtime/native", "runtime/sampling"}
MEASURES = {*CONVERTER, *RUNNER, "bench/document", "bench/data"}
VERBS = {*MEASURES, "bench", "bench/quality", "bench/speed", "bench/tasks", "bench/report"}
MAY_IMPORT = {  # a folder: the other folders whose modules it may import
    "core": set(),
    "quantize/checkpoint": CHECKPOINT,
    "quantize/calibration": CALIBRATION,
    "quantize/recipes": RECIPES,
    "quantize/lean": LEAN,
    "quantize/search": SEARCH,
    "quantize": QUANTIZE,
    "quantize/store": STORE,
    "runtime/native": {"core"},
    "runtime/sampling": {"core", "runtime/native"},
    "runtime": {"core", "runtime/native", "runtime/sampling"},
    "bench/document": {"core"},
    "bench/data": {*CONVERTER, *RUNNER, "bench/document"},
    "bench/quality": MEASURES,
    "bench/speed": MEASURES,
    "bench/tasks": {*MEASURES, "bench/quality"},
    "bench/report": {"core", "bench/document"},
    "bench": VERBS - {"bench"},
    "serve/calls": {*RUNNER, "bench/document"},
    # what it compares and measures, it does as `bench` does
    "serve/dialects": {*RUNNER, "serve/calls", "bench/quality", "bench/speed"},
    "serve": {*RUNNER, "serve/calls", "serve/dialects"},
    "jobs": {*CONVERTER, *RUNNER},
    "publish": VERBS,
    "cli": {*VERBS, "publish", "serve", "serve/calls", "jobs"},
    "demo": set(),
    "dgpt2_quant": {*VERBS, "jobs", "publish", "cli"},
}
EXCEPT = {"runtime/model.py": {"quantize/store"}}  # Model.from_pretrained takes the names of models
C_FILES = {
    "core/ggml.py",
    "runtime/native/bindings.py",
    "runtime/native/context.py",
    "runtime/native/model.py",
    "runtime/native/sampler.py",
    "runtime/native/huge_pages.py",  # asks the system for memory
    "bench/speed/peer_worker.py",  # runs llama-cpp-python's own class, to be compared with
}
MODULES = sorted(path for folder in MAY_IMPORT for path in (ROOT / folder).glob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports by their absolute names."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.ImportFrom):
            inside = node.level == 1
            assert inside, f"{path}:{node.lineno}: imports of other folders are absolute"


def folder_of(module: str) -> str:
    """The folder that `dgpt2_quant.a.b.c` lies in, as `a/b`."""
    parts = module.split(".")[1:]
    while parts and not (ROOT.joinpath(*parts) / "__init__.py").exists():
        parts.pop()
    return "/".join(parts)


def test_folders_import_only_what_the_table_allows() -> None:
    assert list(TopologicalSorter(MAY_IMPORT).static_order())  # raises CycleError: no two folders need each other
    for path in MODULES:
        name, folder = str(path.relative_to(ROOT)), str(path.parent.relative_to(ROOT))
        for module in imports(path):
            top = module.split(".")[0]
            assert top not in MAY_IMPORT or top == "dgpt2_quant", f"{name}: {module} would be loaded twice"
            if top == "dgpt2_quant":
                allowed = {folder, *MAY_IMPORT[folder], *EXCEPT.get(name, ())}
                assert folder_of(module) in allowed, f"{name} may not import {module}"


def test_files_are_short_and_documented_and_call_c_only_in_the_listed_ones() -> None:
    for path in MODULES:
        name, text = str(path.relative_to(ROOT)), path.read_text("utf-8")
        assert len(text.splitlines()) <= 400, name
        assert path.stem not in sys.stdlib_module_names, name
        assert ast.get_docstring(ast.parse(text)), f"{name} has no docstring"
        calls_c = not {"ctypes", "llama_cpp"}.isdisjoint(imports(path))
        assert calls_c == (name in C_FILES), name


def test_generated_documents_are_fresh() -> None:
    command = [sys.executable, ROOT / "tools" / "generate_docs.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
