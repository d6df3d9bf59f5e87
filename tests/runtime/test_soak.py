"""A short run of tools/soak.py: a model that is reloaded many times takes the memory of one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "stress.py"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not report it")
@pytest.mark.slow
def test_thirty_reloads_stay_within_one_and_a_half_models(storybook_files: dict[str, Path]) -> None:
    command = [sys.executable, TOOL, "soak", storybook_files["Q8_0"], "--cycles", "30"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    *lines, last = done.stdout.splitlines()
    found = json.loads(last)
    assert len(lines) == 11, done.stderr
    assert found["growth_models"] <= 1.5, done.stdout
    assert done.returncode == 0, done.stderr
    assert found["threads"] == 1
