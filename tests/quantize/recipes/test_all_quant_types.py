"""Every quant type of the registry, from checkpoint to logits: llama.cpp computes what an independent decoder reads."""

from pathlib import Path

import numpy as np
import pytest
from dgpt2_quant.core.quant_types import QUANT_TYPES
from dgpt2_quant.quantize.calibration.numpy_gpt2 import from_gguf
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model

from ...checkpoints import make_checkpoint

pytestmark = pytest.mark.tables

TOKENS = [5, 17, 200, 261, 3, 84, 120, 9]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model that 256 divides, at all quant types, calibrated on a text of its own."""
    folder = tmp_path_factory.mktemp("quant_types")
    model = make_checkpoint(folder / "model", layers=2, width=256, inner=512, context=64)
    (folder / "text.txt").write_text("Once upon a time there was a king who had a daughter. " * 20)
    made = convert(str(model), type=list(QUANT_TYPES), output=folder, calibrate=folder / "text.txt")
    return {file.type: Path(file.path) for file in made}


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_llama_cpp_computes_what_the_blocks_say(quant_type: str, files: dict[str, Path]) -> None:
    with Model.load(files[quant_type], threads=1) as model:
        computed = np.asarray(model.logits(TOKENS))
    assert np.isfinite(computed).all()
    if quant_type in ("Q1_0", "Q2_0"):  # gguf-py has no decoder for them
        return
    expected = from_gguf(files[quant_type]).logits(TOKENS)
    # llama.cpp rounds the activations to 8 bits, too
    assert np.sqrt(np.mean((computed - expected) ** 2)) < 0.03 * expected.std()
