"""Shared fixtures: private caches, no network, and converted files of storybook."""

import os

# OpenMP's and OpenBLAS's threads spin while they wait; with a busy neighbour a test would take ten times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # the minimum: 2 to this power, in cycles
# If Python writes no bytecode, every child process compiles the package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import gc
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from dgpt2_quant.core.quant_types import QUANT_TYPES
from dgpt2_quant.quantize.checkpoint.resolve import resolve
from dgpt2_quant.quantize.convert import convert
from safetensors.numpy import load_file, save_file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs tests marked `tables` first: a worker begins with the front of its part, which no other takes."""
    items.sort(key=lambda item: item.get_closest_marker("tables") is None)


def pytest_collection_finish() -> None:
    gc.freeze()  # thousands of tests, which collections need not traverse


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Isolates each test from caches of other tests and the user, and from the network."""
    monkeypatch.setenv("DGPT2_QUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_CACHE", "DGPT2_QUANT_DEBUG"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def storybook_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The bundled checkpoint in the CI matrix's quant types, by name. Tests must not change the files."""
    return at_all_levels("storybook", tmp_path_factory.mktemp("storybook"))


@pytest.fixture(scope="session")
def short_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same with only two of its six layers, for tests that compute much."""
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
