"""Tiny models for jobs, and lines of all lengths."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model

from ..checkpoints import TOKENS, make_checkpoint, random_tensors

FAILING = 5  # a token that `fragile` fails on


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 2 layers with 256 positions, as a GGUF file."""
    return _converted(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that fails on texts with the token `FAILING`: its embedding is so large that sums overflow."""
    embedding = random_tensors(0, 2, 64, 256, 256, len(TOKENS))["wte.weight"]
    embedding[FAILING] = 3e38
    return _converted(tmp_path_factory.mktemp("fragile"), head="untied", changed={"wte.weight": embedding})


@pytest.fixture(scope="session")
def model(tiny: Path) -> Iterator[Model]:
    with Model.load(tiny, threads=1) as model:
        yield model


def _converted(folder: Path, **options: Any) -> Path:
    source = make_checkpoint(folder / "checkpoint", context=256, **options)
    (file,) = convert(str(source), type=["f32"], output=folder)
    return Path(file.path)


def some_lines(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts of 1 to 200 bytes with texts of 1 to 30 tokens; a few lines are wrong."""
    random = np.random.default_rng(seed)
    found: list[dict[str, Any]] = []
    for number in range(count):
        text = "".join(random.choice(list("the in an "), random.integers(1, 200)))
        found.append({"prompt": text, "max_tokens": int(random.integers(1, 30))})
        if number % 7 == 3:
            found[-1] = {"task": "score", "text": text + "the"}
        if number % 11 == 5:
            found[-1]["no_field"] = number
    return found


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    return path
