"""Weights that are read block by block: the same as those of the whole model, and no more of them in memory."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.core.parallel import calculating, in_parallel
from dgpt2_quant.quantize.calibration import collect
from dgpt2_quant.quantize.calibration.block_weights import BlockWeights
from dgpt2_quant.quantize.calibration.collect import imatrix
from dgpt2_quant.quantize.calibration.numpy_gpt2 import Reference, from_source
from dgpt2_quant.quantize.checkpoint.source import ModelSource, open_model

from ...checkpoints import make_checkpoint

BLOCK = 26_000  # bytes, rounded up


@dataclass
class Counted:
    """A tensor that counts how often it is read."""

    tensor: Any
    reads: Counter[str]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tensor, name)

    def read(self) -> Any:
        self.reads[self.tensor.name] += 1
        return self.tensor.read()


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    return open_model(str(make_checkpoint(tmp_path / "tiny", layers=4, width=32, inner=32, context=16)))


@pytest.fixture
def reads(source: Any) -> Counter[str]:
    counted: Counter[str] = Counter()
    source.tensors = [Counted(tensor, counted) for tensor in source.tensors]
    return counted


def test_weights_are_those_of_the_whole_model(source: ModelSource) -> None:
    whole, blocks = from_source(source).weights, BlockWeights(source, kept_bytes=0)
    assert list(blocks) == list(whole)
    assert len(blocks) == len(whole)
    for name in reversed(list(whole)):
        assert np.array_equal(blocks[name], whole[name])
        assert blocks[name].dtype == np.float32
    assert "output.weight" not in blocks
    for name in ("output.weight", "blk.9.ffn_up.weight"):
        with pytest.raises(KeyError):
            _ = blocks[name]


def test_a_block_is_read_once_while_it_is_used(source: ModelSource, reads: Counter[str]) -> None:
    weights = BlockWeights(source, kept_bytes=0)
    names = [name for name in weights if name.startswith("blk.1.")]
    with calculating(4):
        list(in_parallel(weights.__getitem__, names * 20))
    assert set(reads.values()) == {1}
    assert reads.keys() == set(names)
    _ = weights["blk.2.ffn_up.bias"], weights["blk.1.ffn_up.bias"]
    assert reads["blk.1.ffn_up.bias"] == 2


def test_last_used_blocks_are_kept_within_the_limit(source: ModelSource, reads: Counter[str]) -> None:
    weights = BlockWeights(source, kept_bytes=2 * BLOCK)
    for block in (0, 1, 0, 2, 0, 1):  # 1 is dropped for 2
        _ = weights[f"blk.{block}.ffn_up.bias"]
    assert [reads[f"blk.{block}.ffn_up.bias"] for block in range(3)] == [1, 2, 1]
    assert not weights.fit
    assert BlockWeights(source).fit


def test_blocks_are_rewritten_after_reading(source: ModelSource) -> None:
    doubled = BlockWeights(source, lambda block: {name: 2 * data for name, data in block.items()}, 0)
    for name, data in from_source(source).weights.items():
        assert np.array_equal(doubled[name], 2 * data)


def test_texts_pass_the_blocks_together(source: ModelSource, reads: Counter[str]) -> None:
    texts = [[1, 2, 3], [4, 5, 6, 7], [8]]
    reference = Reference(source.sizes, BlockWeights(source, kept_bytes=0))
    together = reference.hidden_of(texts, [None] * 3)
    assert reads["blk.2.ffn_up.bias"] == 1
    assert all(np.array_equal(found, reference.hidden(text)) for found, text in zip(together, texts, strict=True))


def test_importance_of_a_model_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_checkpoint(tmp_path / "tiny", layers=2, width=32, inner=32, context=16)
    (tmp_path / "text.txt").write_text("0123456789 " * 20)
    whole = imatrix(str(model), text=tmp_path / "text.txt", output=tmp_path / "whole.gguf")
    monkeypatch.setattr(collect, "BlockWeights", lambda source: BlockWeights(source, kept_bytes=0))
    streamed = imatrix(str(model), text=tmp_path / "text.txt", output=tmp_path / "streamed.gguf")
    assert streamed.encode() == whole.encode()
