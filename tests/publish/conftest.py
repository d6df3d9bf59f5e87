"""A finished release of a small model, made once; a test that changes it takes a copy."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.bench.document.schema import BenchJson
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.text import NamedText, load_text
from dgpt2_quant.publish import release as release_module
from dgpt2_quant.publish.release import Release, release
from dgpt2_quant.quantize.checkpoint.folder import file_sha256

from ..bench.documents import document, environment, interval, result


def invented_bench(model: str, *, file: list[Path], text: NamedText, rounds: int, threads: int, **_: Any) -> BenchJson:
    """What `bench` returns for these files, with invented figures; the test of kills runs the real one."""
    rows = []
    for number, path in enumerate(file, 1):
        header = read_header(path, arrays=False)
        facts: dict[str, Any] = {"path": str(path), "sha256": file_sha256(path), "bytes": path.stat().st_size}
        facts |= {"recipe": header.metadata["dgpt2_quant.recipe"], "bits_per_weight": round(header.bits_per_weight, 3)}
        rows.append(result(str(header.quant_type), **facts, kld_interval=interval(0.001 * number)))
    found = document(*rows, environment=environment(threads=threads, rounds_asked=rounds))
    found["model"]["parameters"] = header.parameters
    found["text"].update(name=text.name, sha256=text.sha256)
    return found


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


def make(checkpoint: Path, folder: Path, **options: object) -> Release:
    """A release in little time: three types, a short text next to the checkpoint, invented measurements."""
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
        patch.setattr(release_module, "bench", invented_bench)
        return release(str(checkpoint), output=folder, **options)  # type: ignore[arg-type]
