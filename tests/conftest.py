"""Fixtures: each test has its own caches and no Hub; the files of `storybook` are converted once a session."""

import os

# Threads of OpenMP and OpenBLAS spin while they wait; next to a busy process a test would take ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # the minimum: 2 to the power of 4 cycles
# Without bytecode every child process would compile our modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import gc
import hashlib
import json
import re
import shutil
import signal
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from dgpt2_quant.core.quant_types import QUANT_TYPES
from dgpt2_quant.quantize.checkpoint.resolve import resolve
from dgpt2_quant.quantize.convert import convert
from safetensors.numpy import load_file, save_file

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job; the tests send interrupts
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a skipped test fails")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and item.config.option.no_skips and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"skipped, which --no-skips forbids: {report.longrepr}"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts tests marked `tables` first: a worker runs the front of its part itself, and no other worker takes it."""
    items.sort(key=lambda item: item.get_closest_marker("tables") is None)


def pytest_collection_finish() -> None:
    gc.freeze()  # garbage collections need not visit thousands of tests


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolates each test from the caches of others and of the user, and from the network."""
    monkeypatch.setenv("DGPT2_QUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_CACHE", "DGPT2_QUANT_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def storybook_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundled checkpoint at the types of the CI matrix, by their names. A test must not change them."""
    return at_all_levels("storybook", tmp_path_factory.mktemp("storybook"))


@pytest.fixture(scope="session")
def short_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same with the first two of its six layers, for tests that compute much. The checkpoint is next to them."""
    folder = tmp_path_factory.mktemp("short")
    whole, short = resolve("storybook").folder, folder / "storybook"
    shutil.copytree(whole, short)
    tensors = load_file(whole / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if not re.search(r"\bh\.[2-5]\.", n)}, short / "model.safetensors")
    config = json.loads((whole / "config.json").read_text("utf-8"))
    (short / "config.json").write_text(json.dumps({**config, "n_layer": 2}), "utf-8")
    return at_all_levels(str(short), folder)


def at_all_levels(model: str, folder: Path) -> dict[str, Path]:
    levels = [quant_type for quant_type in QUANT_TYPES.values() if quant_type.ci]
    return {file.type: Path(file.path) for file in convert(model, type=levels, output=folder)}


@pytest.fixture(scope="session")
def sha256() -> Callable[[Path], str]:
    return lambda path: hashlib.sha256(path.read_bytes()).hexdigest()
