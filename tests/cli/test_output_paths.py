"""Where results go: `~` is the home folder everywhere, and `-` is stdout or refused, never a file of that name."""

import io
import os
from pathlib import Path

import numpy as np
import pytest

from .program import run_bytes, run_text

MODEL = "storybook"


@pytest.mark.parametrize(
    "call",
    [
        ["convert", MODEL, "-t", "q4_0", "-o"],
        ["imatrix", MODEL, "--text", "calibration", "-o"],
        ["bench", "-m", MODEL, "-t", "q4_0", "-o"],
        ["report", "none.json", "-o"],
        ["bench", "-m", MODEL, "-t", "q4_0", "-o", "out", "--per-token"],
        ["perplexity", "-m", MODEL, "--per-token"],
    ],
    ids=lambda call: f"{call[0]} {call[-1]}",
)
def test_a_dash_is_refused_where_stdout_makes_no_sense(call: list[str], tmp_path: Path) -> None:
    for output in ("-", "./-"):
        refused = run_text(*call, output, folder=tmp_path)
        assert refused.returncode == 2
        assert "stdout" in refused.stderr
        assert refused.stdout == ""
    assert not (tmp_path / "-").exists()
    assert not (tmp_path / "out").exists()


def test_features_go_to_stdout(tmp_path: Path) -> None:
    call = ("features", "Once upon a time", "-m", MODEL, "-t", "q8_0", "--pooling", "mean")
    piped = run_bytes(*call, "-o", "-", folder=tmp_path)
    assert piped.returncode == 0, piped.stderr
    assert run_bytes(*call, "-o", "it.npy", folder=tmp_path).returncode == 0
    assert np.array_equal(np.load(io.BytesIO(piped.stdout)), np.load(tmp_path / "it.npy"))
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["it.npy"]
    assert run_bytes(*call, "-o", "-", "--json", folder=tmp_path).returncode == 2


def test_a_tilde_is_the_home_folder(tmp_path: Path) -> None:
    """Quoted, as from a script or a setting: no shell has expanded it."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    settings = {"HOME": str(home), "DGPT2_QUANT_CACHE": "~/dq"}

    def run(*call: str) -> bytes:
        done = run_bytes(*call, folder=work, **settings)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("imatrix", MODEL, "--text", "calibration", "--chunks", "1", "-o", "~/it.gguf")
    run("convert", MODEL, "-t", "q4_0", "--imatrix", "~/it.gguf", "-o", "~/out")
    run("convert", MODEL, "-t", "f16", "-o", "~/it.F16.gguf")
    run("convert", "~/it.F16.gguf", "-t", "q8_0", "-o", "~/it.Q8_0.gguf")
    run("features", "a", "-m", "~/it.Q8_0.gguf", "-o", "~/it.npy")
    assert run("run", "a", "-m", MODEL, "-n", "2", "--seed", "1") == run(
        "run", "a", "-m", MODEL, "-n", "2", "--seed", "1"
    )
    made = {"it.gguf", "it.F16.gguf", "it.Q8_0.gguf", "it.npy", "out", "dq"}
    assert {path.name for path in home.iterdir()} == made
    assert list(work.iterdir()) == []


@pytest.mark.parametrize("call", ["inspect -", "compare - -", "report -", "convert storybook -t q4_0 --imatrix -"])
def test_what_cannot_come_from_stdin_is_refused(call: str, tmp_path: Path) -> None:
    done = run_bytes(*call.split(), folder=tmp_path)
    assert done.returncode in (1, 2)
    assert b"cannot be read from stdin" in done.stderr


def test_a_model_from_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for call in ("run x -m ./pipe", "inspect ./pipe"):
        done = run_bytes(*call.split(), folder=tmp_path)
        assert (done.returncode, b"is a pipe or a device" in done.stderr) == (1, True)
