"""The layouts of `test_layouts.py` compared with Transformers.

Neither PyTorch nor Transformers is a dependency: without them these tests are skipped.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.quantize.calibration.numpy_gpt2 import from_gguf

from ..checkpoints import make_checkpoint
from ..forward import forward
from .test_layouts import LAYOUTS, TEXT, converted, relative

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.peer

# Transformers ignores the old n_ctx and uses its default of 1024.
TOLD: dict[str, dict[str, Any]] = {"n_ctx only": {"n_positions": 64}}


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


def load(kind: str, folder: Path, **options: Any) -> Any:
    return getattr(transformers, kind).from_pretrained(folder, dtype=torch.float64, **options)


def logits_of(model: Any) -> npt.NDArray[np.float64]:
    with torch.no_grad():
        result: npt.NDArray[np.float64] = model(torch.tensor([TEXT])).logits[0].numpy()
    return result


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_equals_transformers(layout: str, tmp_path: Path) -> None:
    folder = LAYOUTS[layout].make(tmp_path / "model")
    told = TOLD.get(layout, {})
    logits = logits_of(load("GPT2LMHeadModel", folder, **told))
    with torch.no_grad():
        hidden = load("GPT2Model", folder, **told)(torch.tensor([TEXT])).last_hidden_state[0].numpy()
    ours, independent = from_gguf(converted(folder), np.float64), forward(folder, TEXT)
    assert relative(ours.logits(TEXT), logits) < LAYOUTS[layout].rounding
    assert relative(ours.hidden(TEXT), hidden) < LAYOUTS[layout].rounding
    # the oracle of the tests that run without Transformers
    assert relative(independent.logits, logits) < 1e-12
    assert relative(independent.hidden, hidden) < 1e-12


@pytest.mark.parametrize("layout", ["prefixed names", "unscaled by layer"])
def test_eager_and_sdpa_attention_agree(layout: str, tmp_path: Path) -> None:
    folder = LAYOUTS[layout].make(tmp_path / "model")
    for implementation in ("eager", "sdpa"):
        logits = logits_of(load("GPT2LMHeadModel", folder, attn_implementation=implementation))
        assert relative(forward(folder, TEXT).logits, logits) < 1e-12


@pytest.mark.parametrize("tied", [True, False])
def test_saved_model_is_converted(tied: bool, tmp_path: Path) -> None:
    """A GPT2LMHeadModel with a tied or untied output matrix, saved by `save_pretrained`."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=262, n_positions=64, n_embd=48, n_layer=3, n_head=4, tie_word_embeddings=tied
    )
    model = transformers.GPT2LMHeadModel(config).to(torch.float32).eval()
    folder = make_checkpoint(tmp_path / "model")
    model.save_pretrained(folder)
    assert relative(from_gguf(converted(folder), np.float64).logits(TEXT), logits_of(model.double())) < 1e-9


def test_saved_base_model_is_converted(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=262, n_positions=64, n_embd=48, n_layer=2, n_head=4)
    model = transformers.GPT2Model(config).eval()
    folder = make_checkpoint(tmp_path / "model")
    model.save_pretrained(folder)
    with torch.no_grad():
        hidden = model.double()(torch.tensor([TEXT])).last_hidden_state[0].numpy()
    assert relative(from_gguf(converted(folder), np.float64).hidden(TEXT), hidden) < 1e-9


@pytest.mark.parametrize("n_head", [None, 6])
def test_transformers_reads_num_attention_heads(n_head: int | None, tmp_path: Path) -> None:
    config = {"n_head": n_head, "num_attention_heads": 4}
    folder = make_checkpoint(tmp_path / "model", width=48, config=config)
    logits = logits_of(load("GPT2LMHeadModel", folder))
    assert relative(forward(folder, TEXT, n_head=4).logits, logits) < 1e-12
