"""Streams that are closed or full, and readers that go away: the work is done, or there is one error."""

import subprocess
import sys
from pathlib import Path

import pytest

from .program import TOOL


def shell(command: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """stdout of `command`, its stderr where it was not redirected, and the status of the program in it."""
    command = f"set -o pipefail; {command.replace('PROGRAM', TOOL)}"
    return subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("where", [">&-", ">/dev/full", ">&- <&-"])
@pytest.mark.parametrize(
    "call", ["types", "--help", "run --help", "--version", "run - -m {model} -n 2", "inspect {model}"]
)
def test_an_unwritable_stdout_is_one_error(
    call: str, where: str, storybook_files: dict[str, Path], tmp_path: Path
) -> None:
    call = call.format(model=storybook_files["Q4_0"])
    result = shell(f"PROGRAM {call} {where}", tmp_path)
    lines = result.stderr.splitlines()
    assert (result.returncode, len(lines)) == (1, 2), result.stderr
    assert lines[0].startswith("Error: ")
    assert "stdout" in lines[0]


@pytest.mark.parametrize("where", ["2>&-", "2>/dev/full", "<&-", "<&- 2>&-"])
def test_the_result_is_the_same_without_stdin_and_stderr(where: str, tmp_path: Path) -> None:
    """Also with a note on stderr: the checkpoint is converted first."""
    call = f"DGPT2_QUANT_CACHE='{tmp_path}' PROGRAM run 'The king' -m storybook -t q4_0 -n 3 --temperature 0"
    result = shell(f"{call} {where}", tmp_path)
    assert (result.returncode, result.stdout) == (0, "The king was very angry\n"), result.stderr


@pytest.mark.parametrize("where", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_files_are_complete_with_closed_streams(where: str, storybook_files: dict[str, Path], tmp_path: Path) -> None:
    """Nothing that is printed goes into a file that got the number of a closed stream."""
    result = shell(f"PROGRAM convert storybook -t q4_0 -o . {where}", tmp_path)
    assert result.returncode == 0
    assert (tmp_path / "storybook.Q4_0.gguf").read_bytes() == storybook_files["Q4_0"].read_bytes()


def test_a_closed_stdin_is_reported_when_read(storybook_files: dict[str, Path], tmp_path: Path) -> None:
    for verb in ("run", "features"):
        result = shell(f"PROGRAM {verb} - -m {storybook_files['Q4_0']} <&-", tmp_path)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.splitlines()[0] == "Error: cannot read stdin: it is closed"


def test_errors_keep_their_status_without_stderr(tmp_path: Path) -> None:
    for where in ("2>&-", "2>/dev/full", ">&- 2>&-"):
        assert shell(f"PROGRAM inspect missing.gguf {where}", tmp_path).returncode == 1
        assert shell(f"PROGRAM tpyes {where}", tmp_path).returncode == 2


@pytest.mark.parametrize("call", ["--help", "types", "convert --help", "run Once -m {model} -n 500 --seed 1"])
def test_a_reader_that_goes_away_is_no_error(call: str, storybook_files: dict[str, Path], tmp_path: Path) -> None:
    call = call.format(model=storybook_files["Q4_0"])
    for pipe in ("|", "2>&1 |"):
        result = shell(f"PROGRAM {call} {pipe} head -c 1", tmp_path)
        assert (result.returncode, len(result.stdout), result.stderr) == (0, 1, "")


def test_notes_without_a_reader_are_dropped(tmp_path: Path) -> None:
    call = f"DGPT2_QUANT_CACHE='{tmp_path}' PROGRAM run 'The king' -m storybook -t q4_0 -n 3 --temperature 0"
    result = shell(f"({call} 2>&3 | cat) 3> >(exec 0<&-)", tmp_path)
    assert (result.returncode, result.stdout) == (0, "The king was very angry\n"), result.stderr


def test_python_m_is_the_program(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dgpt2_quant", "--version"], capture_output=True, check=True, text=True
    )
    assert done.stdout.startswith("dgpt2-quant 0.")
