"""Load time and memory of a file, each in a process of its own."""

import json
from pathlib import Path

import numpy as np
import pytest
from dgpt2_quant.bench.speed import child_process as children
from dgpt2_quant.bench.speed import footprint
from dgpt2_quant.bench.speed.footprint import measure_footprint, peak_rss_bytes
from dgpt2_quant.core.errors import RuntimeFailure

from ..processes import await_end


def test_the_bigger_file_takes_more_memory(short_files: dict[str, Path]) -> None:
    levels = ("F32", "Q4_0")
    large, small = (measure_footprint(short_files[level], threads=1, children=2) for level in levels)
    sizes = [short_files[level].stat().st_size for level in levels]
    # the weights are read, and nothing is in memory twice over
    assert large.peak_rss_bytes - small.peak_rss_bytes > (sizes[0] - sizes[1]) / 2
    for found, size in zip((large, small), sizes, strict=True):
        assert size < found.peak_rss_bytes < size + 500e6
        assert found.load_ms > 0
        assert found.first_token_ms > 0


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match=r"(?s)measuring .*there is no file .*absent\.gguf"):
        measure_footprint(tmp_path / "absent.gguf")


def test_a_broken_file(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    with pytest.raises(RuntimeFailure, match=r"(?s)measuring .*it begins with b'not '"):
        measure_footprint(broken, children=1)


def test_a_child_that_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported while waiting, and all processes that it started end with it."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nsleep 999 &\necho $! >{tmp_path}/pid\nwait\n")
    python.chmod(0o755)
    monkeypatch.setattr(footprint.sys, "executable", str(python))
    monkeypatch.setattr(footprint, "TIMEOUT", 0.5)
    monkeypatch.setattr(children, "WAIT_SECONDS", 0.1)
    said: list[str] = []
    with pytest.raises(RuntimeFailure, match=r"measuring .*slow\.gguf took more than 0\.5 s"):
        measure_footprint(tmp_path / "slow.gguf", report=said.append)
    assert set(said[1:]) == {"waiting for a process that loads slow.gguf (0 of at most 0 s)"}
    await_end(int((tmp_path / "pid").read_text()))


def test_on_a_busy_machine_one_child_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"load_ms": 1.0, "first_token_ms": 2.0, "peak_rss_bytes": 3, "disturbed": True}
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho x >>{tmp_path}/calls\necho '{json.dumps(answer)}'\n")
    python.chmod(0o755)
    monkeypatch.setattr(footprint.sys, "executable", str(python))
    assert measure_footprint(tmp_path / "x.gguf").disturbed is True
    assert (tmp_path / "calls").read_text() == "x\n" * 3  # it is quick
    monkeypatch.setattr(footprint, "DISTURBED_SECONDS", 0.0)
    assert measure_footprint(tmp_path / "x.gguf") == footprint.Footprint(1.0, 2.0, 3, True)
    assert (tmp_path / "calls").read_text() == "x\n" * 4


def test_the_peak_includes_freed_memory() -> None:
    block = np.ones(100 << 20, np.uint8)
    del block
    assert peak_rss_bytes() > 100 << 20
