"""`release --push`, with huggingface_hub's own client and a Hub on this machine."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from .fake_upload_hub import Uploads, taking_uploads


@pytest.fixture
def push(copied: Path, checkpoint: Path, tmp_path: Path) -> Any:
    """Runs the program on the finished release."""

    def run(uploads: Uploads, *flags: str) -> subprocess.CompletedProcess[str]:
        environment = {
            **os.environ,
            "HF_ENDPOINT": uploads.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": "hf_secret",
        }
        types = [word for name in ("f16", "q8_0", "q4_0") for word in ("-t", name)]
        command = [sys.executable, "-m", "dgpt2_quant", "release", str(checkpoint), "-o", str(copied), *types]
        command += ["--calibrate", "calibration", "--text", str(checkpoint.with_name("tales.txt"))]
        command += ["--threads", "1", "--rounds", "1", *flags]  # as the release was measured
        return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    return run


def test_the_files_of_the_release_are_uploaded_and_no_others(push: Any, copied: Path) -> None:
    (copied / "notes.txt").write_text("private", "utf-8")
    with taking_uploads() as uploads:
        result = push(uploads, "--push", "me/tales-GGUF", "--yes")
    assert result.returncode == 0, result.stderr
    present = {str(path.relative_to(copied)) for path in copied.rglob("*") if path.is_file()}
    assert uploads.files.keys() == present - {"notes.txt"}
    assert all((copied / name).read_bytes() == data for name, data in uploads.files.items())
    assert uploads.repositories == ["me/tales-GGUF"]
    assert len(uploads.commits) == 1
    assert uploads.tokens == {"Bearer hf_secret"}
    assert f"Uploaded: {uploads.url}/me/x/commit/" in result.stderr
    assert "hf_secret" not in result.stdout + result.stderr


def test_brackets_in_a_file_name_are_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "gpt2[v2].Q4_0.gguf").write_bytes(b"GGUF")
    with taking_uploads() as uploads:
        script = "import sys; from pathlib import Path; from dgpt2_quant.publish.push import push\n"
        script += "push(Path(sys.argv[1]), sys.argv[2:], 'me/x')"
        environment = {**os.environ, "HF_ENDPOINT": uploads.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
        command = [sys.executable, "-c", script, str(tmp_path), "gpt2[v2].Q4_0.gguf"]
        subprocess.run(command, env={**environment, "HF_TOKEN": "hf_secret"}, check=True)
    assert uploads.files.keys() == {"gpt2[v2].Q4_0.gguf"}


def test_without_a_terminal_nothing_is_uploaded(push: Any) -> None:
    with taking_uploads() as uploads:
        result = push(uploads, "--push", "me/tales-GGUF")
    assert result.returncode == 0
    assert not uploads.tokens
    assert "Not uploaded: stdin is not a terminal" in result.stderr
    assert "hf upload me/tales-GGUF " in result.stderr


def test_a_refusal_of_the_hub_is_explained(push: Any, copied: Path) -> None:
    with taking_uploads() as uploads:
        uploads.status = 401
        result = push(uploads, "--push", "me/tales-GGUF", "--yes")
    assert result.returncode == 1
    assert "Error: cannot upload to" in result.stderr
    assert "the Hub answers 401" in result.stderr
    assert "hf auth login" in result.stderr
    assert "hf_secret" not in result.stderr
    assert (copied / "SHA256SUMS").exists()
