"""What `lean` needs: close to what was measured, and refused with numbers where a machine has less."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.core.errors import OutputError, RuntimeFailure
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.lean import needs
from dgpt2_quant.quantize.lean.needs import Needs

from ...checkpoints import make_checkpoint


def shape(layers: int, width: int, vocabulary: int = 50257, context: int = 1024) -> Hyperparameters:
    return Hyperparameters(layers, width, width // 64, 4 * width, context, vocabulary, 1e-5)


MEASURED = {  # two threads, 20,480 tokens: bytes at the peak
    "storybook": (shape(6, 256, 8189, 512), "sampling", 502e6),
    "DistilGPT2": (shape(6, 768), "sampling", 1.93e9),
    "2 layers of medium": (shape(2, 1024), "collecting", 2.15e9),
    "2 layers of large": (shape(2, 1280), "collecting", 2.83e9),
    "2 layers of XL": (shape(2, 1600), "collecting", 3.88e9),
}


@pytest.mark.parametrize("model", MEASURED)
def test_memory_is_near_what_was_measured(model: str) -> None:
    sizes, calibration, bytes_ = MEASURED[model]
    assert Needs(sizes, 40, 512, calibration).memory(2) == pytest.approx(bytes_, rel=0.25)


def test_memory_does_not_grow_with_layers_unless_text_is_generated() -> None:
    few, many = (Needs(shape(layers, 1600), 40, 512, "collecting") for layers in (4, 48))
    assert few.memory(2) == many.memory(2)
    assert many.memory(2, searches=True) > 12e9
    assert Needs(shape(48, 1600), 40, 512, "sampling").memory(2) > 9e9
    assert few.scratch() < many.scratch() < 16e9


def tiny(folder: Path) -> dict[str, Any]:
    model = make_checkpoint(folder / "tiny", layers=1, width=32, inner=32, context=16)
    return {"model": str(model), "type": "q4_0", "recipe": "lean", "output": folder / "out"}


def test_too_little_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "available_memory", lambda: 300_000_000)
    with pytest.raises(RuntimeFailure) as caught:
        convert(**tiny(tmp_path))
    assert str(caught.value) == "`lean` needs about 0.4 GB of memory for this model; 0.3 GB are available"
    assert not list(tmp_path.glob("out/*"))
    monkeypatch.setattr(needs, "available_memory", lambda: 6_000_000_000)
    large = Needs(shape(48, 1600), 40, 512, "sampling")
    with pytest.raises(RuntimeFailure, match=r"needs about \d+\.\d GB of memory for this model; 6\.0 GB") as caught:
        large.require(2)
    assert "`calibrate`" in caught.value.hint
    with pytest.raises(RuntimeFailure, match="a search needs about"):
        large.require(2, searches=True)
    monkeypatch.setattr(needs, "available_memory", lambda: None)
    large.require(2)


def test_too_little_disk_space_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = shutil.disk_usage(tmp_path)._replace(free=1_000_000_000)
    monkeypatch.setattr(needs.shutil, "disk_usage", lambda _: used)
    with pytest.raises(OutputError, match=r"needs about \d\.\d GB of disk space for this model; 1\.0 GB are free in /"):
        Needs(shape(48, 1600), 40, 512).require(2)
