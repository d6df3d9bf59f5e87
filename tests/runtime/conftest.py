"""Models that many tests of `runtime` share, loaded once in a session."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model, Scheduler

from ..checkpoints import make_checkpoint
from .gguf_edit import rewrite

PROMPTS = ["Once upon a time", "The king", "The wolf", "A poor woodcutter", "In the forest", "My dear child"]
FAILING = [5]  # a prompt that `fragile` fails on


@pytest.fixture(scope="session")
def storybook(storybook_files: dict[str, Path]) -> Iterator[Model]:
    """The bundled checkpoint, unquantized. With one thread: two of them crawl when something else runs meanwhile."""
    with Model.load(storybook_files["F32"], threads=1) as model:
        yield model


@pytest.fixture(scope="session")
def fragile(short_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model that fails on texts with token 5: its embedding is so large that sums overflow. Other texts work."""
    weights = read_header(short_files["F32"]).tensors["token_embd.weight"]
    shape, kind = weights.shape, TensorType.F32
    output = np.fromfile(short_files["F32"], "<f4", weights.nbytes // 4, offset=weights.start).reshape(shape)
    embedding = output.copy()
    embedding[FAILING] = 3e38
    tensors = {
        "token_embd.weight": (shape, kind, embedding.tobytes()),
        "output.weight": (shape, kind, output.tobytes()),
    }
    target = tmp_path_factory.mktemp("fragile") / "fragile.gguf"
    with Model.load(rewrite(short_files["F32"], target, tensors=tensors), threads=1) as model:
        yield model


@pytest.fixture(scope="session")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with 1,024 positions: more than one batch of 512."""
    folder = tmp_path_factory.mktemp("long")
    (file,) = convert(str(make_checkpoint(folder / "checkpoint", context=1024)), type=["f32"], output=folder)
    return Path(file.path)


@pytest.fixture(scope="session")
def model(short_files: dict[str, Path]) -> Iterator[Model]:
    """Two layers, in F32."""
    with Model.load(short_files["F32"], threads=1) as model:
        yield model


@pytest.fixture
def scheduler(model: Model) -> Iterator[Scheduler]:
    """Three texts at a time."""
    with Scheduler(model, parallel=3) as scheduler:
        yield scheduler
