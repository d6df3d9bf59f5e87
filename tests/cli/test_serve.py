"""`dgpt2-quant serve` as a process: it starts, answers, logs and stops; what it refuses before it starts."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from dgpt2_quant.core.errors import DgptQuantError
from dgpt2_quant.serve.extra import require_extra

from ..waiting import wait_for
from .program import TOOL, run_text

ROOT = Path(__file__).resolve().parents[2]


def test_it_serves_until_a_signal_and_exits_0(short_files: dict[str, Path]) -> None:
    command = [TOOL, "serve", "-m", str(short_files["Q8_0"]), "--port", "0", "--log-json", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        line = process.stderr.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert address, line
        body = {"prompt": "Once upon a time", "max_tokens": 3}
        assert httpx2.post(f"{address[0]}/v1/completions", json=body, timeout=30).status_code == 200
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout) == (0, "")
    entry = json.loads(stderr.splitlines()[0])
    assert (entry["status"], entry["model"], entry["completion_tokens"]) == (200, "storybook:Q8_0", 3)


@pytest.mark.parametrize(
    "has_browser",
    [True, pytest.param(False, marks=pytest.mark.skipif(sys.platform != "linux", reason="would open a browser"))],
)
def test_open_shows_the_page_when_the_models_are_loaded(
    short_files: dict[str, Path], tmp_path: Path, has_browser: bool
) -> None:
    script, opened = tmp_path / "browser", tmp_path / "opened"
    script.write_text(f'#!/bin/sh\necho "$1" > {opened}.part && mv {opened}.part {opened}\n', "utf-8")
    script.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if "DISPLAY" not in name and name != "BROWSER"}
    if has_browser:
        environment["BROWSER"] = str(script)
    command = [TOOL, "serve", "-m", str(short_files["Q8_0"]), "--port", "0", "--threads", "1", "--open"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stderr.readline())
        assert address
        if has_browser:
            wait_for(opened.exists)
            assert opened.read_text("utf-8") == f"{address[0]}\n"
        else:
            assert process.stderr.readline() == f"No browser was found. Open {address[0]} in one.\n"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[1] == ""
        assert process.returncode == 0


def test_another_address_needs_keys() -> None:
    result = run_text("serve", "-m", "storybook", "--host", "0.0.0.0")
    assert result.returncode == 2
    assert "--api-key-file FILE" in result.stderr
    assert "--allow-no-key" in result.stderr


def test_a_port_in_use_is_refused_before_anything_is_converted() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = run_text("serve", "-m", "storybook", "--port", str(port))
    assert result.returncode == 2
    assert f"127.0.0.1:{port}: Address already in use" in result.stderr
    assert "Converting" not in result.stderr


def test_a_damaged_file_ends_the_server(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\0" * 60)
    result = run_text("serve", "-m", str(tmp_path / "bad.gguf"), "--port", "0")
    assert result.returncode == 1
    assert "bad.gguf" in result.stderr


def test_bench_gives_the_figures_of_the_files_that_it_measured(short_files: dict[str, Path], tmp_path: Path) -> None:
    document = json.loads((ROOT / "docs" / "bench" / "storybook.json").read_text("utf-8"))
    document["reference"] |= {"type": "F32", "bytes": short_files["F32"].stat().st_size}
    path = tmp_path / "bench.json"
    path.write_text(json.dumps(document), "utf-8")
    command = [TOOL, "serve", "-m", str(short_files["F32"]), "-m", str(short_files["Q8_0"]), "--port", "0"]
    with subprocess.Popen([*command, "--bench", str(path)], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stderr.readline())
        assert address
        found = httpx2.get(f"{address[0]}/v1/measurements").json()["data"]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert [(one["quant_type"], one["source"]) for one in found] == [("F32", "bench.json"), ("Q8_0", None)]
    assert found[0]["decode_tps"] == document["reference"]["decode_tps"]


def test_a_bench_json_is_read_before_anything_is_converted(tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text("{}", "utf-8")
    result = run_text("serve", "-m", "storybook", "--port", "0", "--bench", str(tmp_path / "bench.json"))
    assert result.returncode == 1
    assert "bench.json is not a bench.json: it lacks schema_version" in result.stderr
    assert "Converting" not in result.stderr


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(DgptQuantError, match="the server needs prometheus_client") as caught:
        require_extra()
    assert "pip install 'dgpt2-quant[serve]'" in caught.value.hint
