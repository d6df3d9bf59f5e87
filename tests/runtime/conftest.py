"""Models that many tests of `runtime` share, loaded once a session."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model

from ..quantize.checkpoints import make_checkpoint


@pytest.fixture(scope="session")
def storybook(storybook_files: dict[str, Path]) -> Iterator[Model]:
    """The bundled checkpoint, unquantized. With one thread: two of them crawl when something else runs meanwhile."""
    with Model.load(storybook_files["F32"], threads=1) as model:
        yield model


@pytest.fixture(scope="session")
def long_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model with 1,024 positions: more than one batch of 512."""
    folder = tmp_path_factory.mktemp("long")
    (file,) = convert(str(make_checkpoint(folder / "checkpoint", context=1024)), type=["f32"], output=folder)
    return Path(file.path)
