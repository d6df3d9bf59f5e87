"""llama.cpp's messages go to a logger and nowhere else."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from dgpt2_quant.core.errors import RuntimeFailure
from dgpt2_quant.runtime import Model

from ..gguf_edit import rewrite

LOGGER = "dgpt2_quant.llama_cpp"
PROGRAM = """if True:
    import logging, sys
    from dgpt2_quant.runtime import Model
    if len(sys.argv) > 2:
        logging.basicConfig(level=sys.argv[2])
    with Model.load(sys.argv[1], threads=1) as model:
        model.generate("Once upon a time", max_tokens=4)
        model.logits([1, 2, 3])
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_nothing_is_printed(storybook_files: dict[str, Path]) -> None:
    child = run(str(storybook_files["Q4_0"]))
    assert (child.returncode, child.stdout, child.stderr) == (0, "", "")


def test_messages_go_to_the_logger(storybook_files: dict[str, Path]) -> None:
    child = run(str(storybook_files["Q4_0"]), "INFO")
    assert (child.returncode, child.stdout) == (0, "")
    lines = child.stderr.splitlines()
    assert len(lines) > 10
    assert all(f":{LOGGER}:" in line for line in lines)


def test_messages_of_a_load(storybook_files: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, LOGGER):
        Model.load(storybook_files["Q4_0"], threads=1).close()
    assert {record.name for record in caplog.records} == {LOGGER}
    assert "general.architecture str              = gpt2" in caplog.text


def test_the_reason_of_a_failed_load_is_logged(
    storybook_files: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = rewrite(storybook_files["Q4_0"], tmp_path / "odd.gguf", metadata={"general.name": "phi-3"})
    with pytest.raises(RuntimeFailure), caplog.at_level(logging.DEBUG, LOGGER):
        Model.load(file)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert any("error loading model vocabulary" in error for error in errors)
