"""The layouts of `test_layouts.py`, compared with the logits and hidden states that Transformers computes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.quantize.calibration.numpy_gpt2 import from_gguf

from ...checkpoints import make_checkpoint
from ..forward import forward
from .test_layouts import LAYOUTS, TEXT, converted, relative

pytestmark = pytest.mark.peer

# Transformers ignores the old key n_ctx and would take its default of 1024 positions.
OPTIONS: dict[str, dict[str, Any]] = {"n_ctx only": {"n_positions": 64}}


@pytest.fixture(autouse=True)
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


def load(kind: str, folder: Path, **options: Any) -> Any:
    import torch
    import transformers

    return getattr(transformers, kind).from_pretrained(folder, dtype=torch.float64, **options)


def logits_of(model: Any) -> npt.NDArray[np.float64]:
    import torch

    with torch.no_grad():
        result: npt.NDArray[np.float64] = model(torch.tensor([TEXT])).logits[0].numpy()
    return result


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_logits_of_transformers(layout: str, tmp_path: Path) -> None:
    import torch

    folder = LAYOUTS[layout].make(tmp_path / "model")
    options = OPTIONS.get(layout, {})
    logits = logits_of(load("GPT2LMHeadModel", folder, **options))
    with torch.no_grad():
        hidden = load("GPT2Model", folder, **options)(torch.tensor([TEXT])).last_hidden_state[0].numpy()
    ours, independent = from_gguf(converted(folder), np.float64), forward(folder, TEXT)
    assert relative(ours.logits(TEXT), logits) < LAYOUTS[layout].rounding
    assert relative(ours.hidden(TEXT), hidden) < LAYOUTS[layout].rounding
    # `forward` stands in for Transformers in the tests that run without it
    assert relative(independent.logits, logits) < 1e-12
    assert relative(independent.hidden, hidden) < 1e-12


@pytest.mark.parametrize("layout", ["prefixed names", "unscaled by layer"])
def test_attention_by_either_implementation_is_the_same(layout: str, tmp_path: Path) -> None:
    folder = LAYOUTS[layout].make(tmp_path / "model")
    for implementation in ("eager", "sdpa"):
        logits = logits_of(load("GPT2LMHeadModel", folder, attn_implementation=implementation))
        assert relative(forward(folder, TEXT).logits, logits) < 1e-12


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_that_transformers_saves_is_converted(tied: bool, tmp_path: Path) -> None:
    """GPT2LMHeadModel with a tied or a separate head, written by `save_pretrained`."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=262, n_positions=64, n_embd=48, n_layer=3, n_head=4, tie_word_embeddings=tied
    )
    model = transformers.GPT2LMHeadModel(config).to(torch.float32).eval()
    folder = make_checkpoint(tmp_path / "model")
    model.save_pretrained(folder)
    assert relative(from_gguf(converted(folder), np.float64).logits(TEXT), logits_of(model.double())) < 1e-9


def test_a_base_model_that_transformers_saves_is_converted(tmp_path: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=262, n_positions=64, n_embd=48, n_layer=2, n_head=4)
    model = transformers.GPT2Model(config).eval()
    folder = make_checkpoint(tmp_path / "model")
    model.save_pretrained(folder)
    with torch.no_grad():
        hidden = model.double()(torch.tensor([TEXT])).last_hidden_state[0].numpy()
    assert relative(from_gguf(converted(folder), np.float64).hidden(TEXT), hidden) < 1e-9


@pytest.mark.parametrize("n_head", [None, 6])
def test_transformers_reads_the_heads_by_their_other_name(n_head: int | None, tmp_path: Path) -> None:
    config = {"n_head": n_head, "num_attention_heads": 4}
    folder = make_checkpoint(tmp_path / "model", width=48, config=config)
    logits = logits_of(load("GPT2LMHeadModel", folder))
    assert relative(forward(folder, TEXT, n_head=4).logits, logits) < 1e-12
