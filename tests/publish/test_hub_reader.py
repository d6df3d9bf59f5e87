"""The Hub's own reader, `@huggingface/gguf`, on the files of a release."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.core.quant_types import QUANT_TYPES
from dgpt2_quant.publish.release import Release
from dgpt2_quant.quantize.checkpoint.model_name import file_name

pytestmark = pytest.mark.peer
SCRIPT = Path(__file__).with_name("read_gguf.mjs")
MODULE = Path(sys.prefix) / "node" / "node_modules" / "@huggingface" / "gguf" / "dist" / "index.mjs"  # by the Makefile


def read(files: list[Path], names: list[str]) -> Any:
    command = ["node", SCRIPT, MODULE.as_uri(), *files, "--labels", *names]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_it_parses_every_file_of_a_release(made: Release) -> None:
    rows = made.document["results"]
    found = read([made.folder / row["path"] for row in rows], [])["files"]
    assert [one["type"] for one in found] == [row["type"] for row in rows]
    assert {one["architecture"] for one in found} == {"gpt2"}
    assert {one["parameters"] for one in found} == {made.document["model"]["parameters"]}


def test_it_finds_the_label_of_every_type_in_the_file_name() -> None:
    names = [
        file_name("gpt2-q8_0-mine", t, recipe).upper() for t in QUANT_TYPES.values() for recipe in ("stock", "lean")
    ]
    assert read([], names)["labels"] == [name for name in QUANT_TYPES for _ in range(2)]
    assert read([], ["IMATRIX.GGUF"])["labels"] == [None]
