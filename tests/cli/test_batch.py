"""`dgpt2-quant batch`: streams, exit statuses, Ctrl-C and kills."""

import gzip
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.jobs.job_files import errors_path, record_path

from ..jobs.conftest import some_lines, tiny, write_lines
from ..waiting import wait_for
from .program import TOOL, run_bytes, run_text

__all__ = ["tiny"]  # a fixture


def flags(tiny: Path) -> tuple[str, ...]:
    return ("-m", str(tiny), "--threads", "1")


def test_exit_status_and_what_goes_where(tiny: Path, tmp_path: Path) -> None:
    source, output = write_lines(tmp_path / "in.jsonl", some_lines(12)), tmp_path / "out.jsonl"
    done = run_text("batch", source, output, *flags(tiny))
    assert done.returncode == 3
    assert done.stdout == ""
    assert f"12 lines in {output}; " in done.stderr
    assert f"1 lines failed: see {errors_path(output)}." in done.stderr
    assert len(output.read_bytes().splitlines()) == 11
    again = run_text("batch", source, output, *flags(tiny))
    assert (again.returncode, again.stderr.splitlines()[0]) == (3, f"Already finished: 12 lines in {output}.")
    other = run_text("batch", source, output, *flags(tiny), "--seed", "2")
    assert other.returncode == 1
    assert "begun with another --seed: 0, not 2" in other.stderr
    assert "begin anew with --restart, or choose another OUTPUT." in other.stderr
    good = write_lines(tmp_path / "good.jsonl", some_lines(3))
    assert run_text("batch", good, tmp_path / "good.out", *flags(tiny)).returncode == 0


def test_pipes_and_defaults(tiny: Path, tmp_path: Path) -> None:
    lines = [{"prompt": "the"}, {"prompt": "in", "max_tokens": 2}, {"no": 1}]
    data = write_lines(tmp_path / "in.jsonl", lines).read_bytes()
    call = ("batch", "-", "-", *flags(tiny), "--set", "max_tokens=3", "--set", "ignore_eos=true")
    done = run_bytes(*call, stdin=gzip.compress(data))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 3
    assert [one.get("tokens") for one in answers] == [3, 2, None]
    assert answers[2]["error"]["code"] == "unknown_field"
    assert run_bytes(*call, stdin=b"").returncode == 0
    refused = {"--set=max_tokens": "--set must be NAME=VALUE", "--errors=file": "--errors must be inline for stdout"}
    for flag, words in refused.items():
        wrong = run_bytes(*call, flag, stdin=data)
        assert wrong.returncode == 2
        assert words in wrong.stderr.decode()


def test_ctrl_c_ends_it_with_130_and_it_continues(tiny: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", some_lines(400))
    output, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    call = [TOOL, "batch", str(source), str(output), *flags(tiny), "--slice", "16"]
    with started(call) as process:
        wait_for(lambda: progress_of(output) > 0, 60)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert 0 < progress_of(output) < 400
    for path in (output, errors_path(output)):
        assert path.read_bytes()[-1:] == b"\n"
    assert run_text(*call[1:]).returncode == 3
    run_text("batch", source, whole, *flags(tiny), "--slice", "16")
    assert (output.read_bytes(), errors_path(output).read_bytes()) == (
        whole.read_bytes(), errors_path(whole).read_bytes(),
    )  # fmt: skip


KILLS, LINES, SLICE = 50, 2000, 10


@pytest.mark.slow
def test_a_job_that_is_killed_fifty_times_has_the_bytes_of_an_unbroken_one(tiny: Path, tmp_path: Path) -> None:
    """SIGKILL of the process group, at random moments of slices; each hits a process that runs and holds the output."""
    source = write_lines(tmp_path / "in.jsonl", some_lines(LINES))
    output, whole = tmp_path / "out.jsonl", tmp_path / "whole.jsonl"
    call = [TOOL, "batch", str(source), str(output), *flags(tiny), "--slice", str(SLICE)]
    started_at = time.monotonic()
    assert subprocess.run([*call[:3], str(whole), *call[4:]], check=False, stderr=subprocess.DEVNULL).returncode == 3
    slice_seconds = (time.monotonic() - started_at) * SLICE / LINES
    chance, torn = random.Random(1), 0
    for kill in range(KILLS):
        with started(call) as process:
            wait_for(partial(is_of, output, process), 60)
            time.sleep(chance.uniform(0, 4 * slice_seconds))
            assert process.poll() is None, f"the job ended before kill {kill}"
            os.killpg(process.pid, signal.SIGKILL)
            assert process.wait(60) == -signal.SIGKILL
        assert not json.loads(record_of(output))["finished"]
        torn += json.loads(record_of(output))["output"]["bytes"] != output.stat().st_size
    assert run_text(*call[1:]).returncode == 3
    assert output.read_bytes() == whole.read_bytes()
    assert errors_path(output).read_bytes() == errors_path(whole).read_bytes()
    print(f"{torn} of {KILLS} kills left more than the record")


@pytest.mark.slow
def test_memory_is_flat_over_a_hundred_thousand_lines(tiny: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    with source.open("w") as file:
        for number in range(100_000):
            body = {"prompt": "the in", "max_tokens": 1}
            line: dict[str, Any] = {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/completions"}
            file.write(json.dumps({**line, "body": body}) + "\n")
    with started([TOOL, "batch", str(source), str(output), *flags(tiny)]) as process:
        sizes = {}
        while process.poll() is None:
            done = progress_of(output)
            if done >= 10_000 and (memory := resident(process.pid)):
                sizes[done] = memory
            time.sleep(0.2)
        assert process.wait() == 0
    first, *later = [size for _, size in sorted(sizes.items())]
    assert len(later) > 10
    assert max(later) <= 1.05 * first


@contextmanager
def started(call: list[str]) -> Iterator["subprocess.Popen[bytes]"]:
    """The program in a process group of its own, which is killed at the end."""
    with subprocess.Popen(call, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def record_of(output: Path) -> str:
    try:
        return record_path(output).read_text()
    except FileNotFoundError:
        return ""


def is_of(output: Path, process: "subprocess.Popen[bytes]") -> bool:
    """Whether the process has begun the job, or continued it."""
    return f"process {process.pid} " in record_of(output)


def progress_of(output: Path) -> int:
    """The number of lines that are answered."""
    return int(json.loads(record_of(output) or '{"input": {"lines": 0}}')["input"]["lines"])


def resident(pid: int) -> int:
    """The resident memory of a process in KiB; 0 after its end."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")), 0)
