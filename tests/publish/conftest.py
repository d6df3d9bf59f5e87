"""A finished release of a small model, made once; a test that changes it takes a copy."""

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.bench.bench import bench
from dgpt2_quant.core.text import load_text
from dgpt2_quant.publish import release as release_module
from dgpt2_quant.publish.release import Release, release

quick_bench: Any = partial(bench, prompt_sizes=[16], depths=[0], batches=[1], thread_counts=[1], patience=0)


@pytest.fixture(scope="session")
def checkpoint(short_files: dict[str, Path]) -> Path:
    """The first two layers of `storybook`, as a checkpoint folder."""
    return next(iter(short_files.values())).parent / "storybook"


@pytest.fixture(scope="session")
def made(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release of three types. A test must not change it."""
    folder = tmp_path_factory.mktemp("release")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DGPT2_QUANT_CACHE", str(folder / "cache"))
        return make(checkpoint, folder / "storybook-GGUF")


@pytest.fixture
def copied(made: Release, tmp_path: Path) -> Path:
    """A copy of the folder of the release, with the times of its files."""
    return shutil.copytree(made.folder, tmp_path / "copied")


def make(checkpoint: Path, folder: Path, *, bench: Any = quick_bench, **options: object) -> Release:
    """A release in little time: three types, a short text next to the checkpoint, one point of the speed grid."""
    text = checkpoint.with_name("tales.txt")
    text.write_text(load_text("evaluation").text[:6000], "utf-8")
    options = {
        "text": text,
        "type": ["f16", "q8_0", "q4_0"],
        "calibrate": "calibration",
        "rounds": 1,
        "threads": 1,
        **options,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(release_module, "bench", bench)
        return release(str(checkpoint), output=folder, **options)  # type: ignore[arg-type]
