"""`dgpt2-quant release`: flags, exit statuses, and kills."""

import hashlib
import json
import signal
import subprocess
from pathlib import Path

import pytest
from dgpt2_quant.publish.release import Release

from ..cli.program import TOOL, run_text
from ..waiting import wait_for


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["storybook"], "--output is missing"),
        (["storybook", "--verify", "x"], "--verify cannot be combined with MODEL"),
        (["--verify", "x", "-t", "q8_0"], "--verify cannot be combined with --type"),
        (["storybook", "-o", "x", "--yes"], "--yes needs --push OWNER/NAME"),
        (["storybook", "-o", "x", "--push", "x"], "--push must be a name on the Hub, owner/name, not 'x'"),
        (["storybook", "-o", "x", "--base-model", "x y/z"], "--base-model must be a name on the Hub"),
        (["storybook", "-o", "x", "--recipe", "best"], "--recipe must be stock or lean, not 'best'"),
        (["storybook", "-o", "x", "-t", "q9"], "unknown quant type 'q9'"),
        (["x.gguf", "-o", "x"], "x.gguf is a GGUF file, not a checkpoint"),
    ],
)
def test_wrong_usage_is_refused_before_the_work(words: list[str], message: str, tmp_path: Path) -> None:
    result = run_text("release", *words, folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert not list(tmp_path.iterdir())


def test_verify_prints_a_line_for_each_check_and_fails_with_status_1(copied: Path) -> None:
    right = run_text("release", "--verify", copied, "--threads", "1")
    assert (right.returncode, right.stderr) == (0, "")
    assert right.stdout.splitlines()[-1].endswith(" checks passed.")
    (copied / "params").write_text("{}", "utf-8")
    wrong = run_text("release", "--verify", copied, "--threads", "1")
    assert wrong.returncode == 1
    assert "\nFAIL params: has another SHA-256 than SHA256SUMS states: 44136fa355b3678a…, not " in wrong.stdout
    assert "Download the failed files again" in wrong.stderr
    assert wrong.stdout.splitlines()[-1].endswith(" checks, 1 failed.")
    document = json.loads(run_text("release", "--verify", copied, "--threads", "1", "--json").stdout)
    assert not document["ok"]
    assert [check["name"] for check in document["checks"] if not check["ok"]] == ["params"]


@pytest.mark.slow
def test_a_release_that_was_killed_continues_with_the_same_bytes(
    made: Release, checkpoint: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    command = [TOOL, "release", str(checkpoint), "-o", str(folder), "-t", "f16", "-t", "q8_0", "-t", "q4_0"]
    command += ["--calibrate", "calibration", "--threads", "1", "--rounds", "1"]
    command += ["--text", str(checkpoint.with_name("tales.txt"))]
    for file in ("release.json", "imatrix.gguf", "storybook.F16.gguf", "storybook.Q4_0.gguf", "bench.json"):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
            wait_for(lambda file=file: (folder / file).exists(), 120)  # type: ignore[misc]
            process.send_signal(signal.SIGKILL)
        assert not (folder / "SHA256SUMS").exists()
    assert subprocess.run(command, capture_output=True).returncode == 0
    assert run_text("release", "--verify", folder).returncode == 0
    for name in made.files:
        if name.endswith((".gguf", "LICENSE", "params", "template", ".gitattributes")):
            assert sha256(folder / name) == sha256(made.folder / name), name
    assert not [path for path in folder.iterdir() if path.name.endswith((".part", ".partial"))]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
