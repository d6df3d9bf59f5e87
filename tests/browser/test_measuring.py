"""`tools/measure_page.py` with two rounds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.browser
TOOL = Path(__file__).resolve().parents[2] / "tools" / "measure_page.py"


def test_the_times_and_the_picture_of_the_page(storybook_files: dict[str, Path], tmp_path: Path) -> None:
    model, picture = storybook_files["Q4_0"], tmp_path / "page.png"
    command = [sys.executable, TOOL, model, "--rounds", "2", "--threads", "1", "--screenshot", picture]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0 < found["tab_to_first_text_ms"]["p50"] <= found["tab_to_three_texts_of_20_tokens_ms"]["p95"]
    assert found["key_to_paint_ms"]["p95"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")
