"""Ctrl-C and SIGTERM at chosen instants: a status of 128 plus the signal, no traceback, nothing half-written."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .program import TOOL

# Runs the program in forked children, and sends a signal at the n-th call of a Python function, for each n of a list.
# The first child sends none and counts.
AT_CALLS = """
import json, os, signal, sys
number, steps, arguments = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have left it ignored
counted, counting = os.pipe()

def child(at):
    calls = 0
    def see(frame, event, argument):
        nonlocal calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), number)
        if at is None:
            os.pwrite(file, b"%12d" % calls, 0)
    sys.argv = ["dgpt2-quant", *arguments]
    from dgpt2_quant.__main__ import main
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.setprofile(see)
    main()

file = os.open("count", os.O_CREAT | os.O_RDWR)

def run(at):
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    child(at)

assert run(None) == 0
total = int(os.pread(file, 12, 0))
found = {}
for step in range(steps):
    at = total * (step + 1) // (steps + 1)  # not the first: Python itself answers until the program has begun
    found[at] = run(at)
print(json.dumps(found))
"""


def statuses(number: int, steps: int, *arguments: str | Path, folder: Path) -> list[int]:
    """The exit status for a signal at each of some instants, from the program's first import to its end."""
    call = [sys.executable, "-c", AT_CALLS, str(int(number)), str(steps), *map(str, arguments)]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=True)
    assert "Traceback" not in done.stderr, done.stderr
    found = list(json.loads(done.stdout).values())
    assert len(found) == steps
    return found


@pytest.mark.parametrize("call", [("--help",), ("inspect", "{model}")])
def test_ctrl_c_is_status_130_at_any_instant(
    call: tuple[str, ...], storybook_files: dict[str, Path], tmp_path: Path
) -> None:
    """While modules are imported, in typer, in a verb, and while the interpreter ends."""
    arguments = [part.format(model=storybook_files["Q4_0"]) for part in call]
    assert set(statuses(signal.SIGINT, 10, *arguments, folder=tmp_path)) == {130}


# what is interrupted, as a module of the name `program`
PROGRAM = """
import os, signal, weakref
from dgpt2_quant.cli import main

def app(**_):
    {body}

signal.signal(signal.SIGINT, signal.default_int_handler)
main.app = app
main.main()
"""
WITHIN_AN_EXEC = 'exec("raise KeyboardInterrupt")'
WITHIN_A_CALLBACK = """
    thing = set()
    reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.{name}))
    del thing
    signal.pause()
"""


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        (WITHIN_AN_EXEC, 130, "Interrupted.\n"),
        (WITHIN_A_CALLBACK.format(name="SIGINT"), 130, "Interrupted.\n"),
        (WITHIN_A_CALLBACK.format(name="SIGTERM"), 143, ""),
    ],
)
def test_where_python_itself_would_lose_it(tmp_path: Path, body: str, status: int, error: str) -> None:
    """As while modules are imported: a `dataclass` executes a text, and importlib has weak references."""
    (tmp_path / "program.py").write_text(PROGRAM.format(body=body), "utf-8")
    call = [sys.executable, "-m", "program"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", error)


def test_sigterm_is_status_143_and_leaves_nothing_half_written(tmp_path: Path) -> None:
    arguments = ("convert", "storybook", "-t", "q4_0", "-o", "out", "--overwrite")
    assert set(statuses(signal.SIGTERM, 8, *arguments, folder=tmp_path)) == {143}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["storybook.Q4_0.gguf"]


def test_an_ignored_signal_stays_ignored(storybook_files: dict[str, Path]) -> None:
    """As under nohup, and as a shell starts background jobs."""
    code = f"trap '' INT HUP; exec '{TOOL}' run Once -m '{storybook_files['Q4_0']}' -n 400 --temperature 0"
    with subprocess.Popen(["bash", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout
        assert child.stdout.read(4) == b"Once"
        for number in (signal.SIGINT, signal.SIGHUP):
            child.send_signal(number)
        out, error = child.communicate(timeout=60)
    assert (child.returncode, error) == (0, b"")
    assert len(out) > 400
