"""Progress: lines in logs, a bar on a terminal, never a word on stdout, and never the reason why the work ends."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from dgpt2_quant.cli import progress
from dgpt2_quant.cli.progress import progress_bar

STEPS = """
import sys
from dgpt2_quant.cli import progress
progress.LINE_SECONDS = 0
with progress.progress_bar() as report:
    report(1, 4, "speed, round 1 of 3, [Q4_0] of a model with a long name, again because it was disturbed (load 4.1)")
    report(4, 4, "done")
print("data")
"""


def test_a_line_every_ten_seconds(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with progress_bar() as report:
        for now in (100.5, 109.9, 110.0, 119.0, 165.3):
            report(45, 100, f"speed, round 2 of 3, Q4_0, at {now}")
        now = 180
        report(0, 0, "waiting for Transformers F32 (30 of at most 900 s)")
        for now, done in ((190, 20), (220, 50), (290, 10), (400, 90)):  # noqa: B007 - the clock reads it
            report(done, 200, "blocks")
    out, error = capfd.readouterr()
    assert out == ""
    assert error.splitlines() == [
        "[0:10] speed, round 2 of 3, Q4_0, at 110.0: 45 %",
        "[1:05] speed, round 2 of 3, Q4_0, at 165.3: 45 %",
        "[1:20] waiting for Transformers F32 (30 of at most 900 s)",
        "[1:30] blocks: 10 %",
        "[2:00] blocks: 25 %, 2:30 left",
        "[3:10] blocks: 5 %",  # another stage
        "[5:00] blocks: 45 %, 2:31 left",
    ]


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", "2> >(true)"])
def test_an_unwritable_stderr_is_ignored(stderr: str, tmp_path: Path) -> None:
    script = tmp_path / "steps.py"
    script.write_text(STEPS)
    command = f"exec '{sys.executable}' '{script}' {stderr}"
    done = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (0, b"data\n")


def on_a_terminal(script: str, columns: int = 100, **environment: str) -> tuple[int, str, str]:
    """The status of a Python program, its stdout, and what its stderr, a terminal, was sent."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": str(columns), **environment},
    ) as child:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            shown += part
        assert child.stdout
        out = child.stdout.read()
    os.close(ours)
    return child.returncode, out.decode(), shown.decode()


def test_a_terminal_shows_a_bar() -> None:
    status, out, shown = on_a_terminal(STEPS)
    assert (status, out) == (0, "data\n")
    assert "[Q4_0]" in shown  # no markup
    assert "25%" in shown
    assert "\x1b[2K" in shown  # taken back at the end
    assert shown.count("\n") == 1  # what is too long for the line is cut


def test_a_terminal_without_control_codes_gets_lines() -> None:
    _, _, shown = on_a_terminal(STEPS, TERM="dumb")
    assert [line.split(",")[0] for line in shown.splitlines()] == ["[0:00] speed", "[0:00] done: 100 %"]


def test_a_terminal_that_goes_away() -> None:
    ours, theirs = pty.openpty()
    wait = STEPS.replace("    report(4", "    sys.stdin.read()\n    report(4")
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-c", wait], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=theirs, env=environment
    ) as child:
        os.close(theirs)
        assert os.read(ours, 1)
        os.close(ours)
        out, _ = child.communicate()
    assert (child.returncode, out) == (0, b"data\n")
