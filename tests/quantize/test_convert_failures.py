"""Conversions that fail: they leave no partial files and lose no old ones."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dgpt2_quant.core.errors import CheckpointError, OutputError
from dgpt2_quant.quantize.convert import convert

from ..checkpoints import make_checkpoint

TYPES = ["F32", "Q8_0", "Q4_0", "Q2_K"]

# prints the tensors, and errors of ours, on stdout
CHILD = """
import json, resource, sys
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.core.errors import DgptQuantError
model, output, types, overwrite, limits = json.loads(sys.argv[1])
for limit in limits:
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        convert(model, type=types, output=output, overwrite=overwrite,
                progress=lambda done, total, name: print(name, flush=True))
        print("done", flush=True)
    except DgptQuantError as error:
        print(f"{type(error).__name__}: {error.message}", flush=True)
"""


def child(output: Path, types: list[str], overwrite: bool = False, limits: tuple[int, ...] = (0,)) -> list[str]:
    return [sys.executable, "-c", CHILD, json.dumps(["storybook", str(output), types, overwrite, limits])]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("tensor", ["wte.weight", "ln_f.bias", "h.1.mlp.c_proj.weight"])
def test_a_damaged_weight_leaves_nothing(tensor: str, tmp_path: Path) -> None:
    shape = {"wte.weight": (262, 64), "ln_f.bias": (64,), "h.1.mlp.c_proj.weight": (256, 64)}[tensor]
    damaged = np.zeros(shape)
    damaged.flat[-1] = np.nan
    folder = make_checkpoint(tmp_path / "model", changed={tensor: damaged})
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="not finite"):
        convert(str(folder), type=TYPES, output=tmp_path / "out")
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failing_disk_leaves_the_old_files(overwrite: bool, tmp_path: Path) -> None:
    (tmp_path / "storybook.F16.gguf").write_bytes(b"old")
    types = ["f16", "q8_0"] if overwrite else ["q8_0", "q4_0"]
    # no file may grow beyond these: in the head, in the embedding, shortly before the end
    limits = (1000, 1_000_000, 5_000_000)
    command = child(tmp_path, types, overwrite, limits)
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    errors = [line for line in said.stdout.splitlines() if "Error" in line]
    assert len(errors) == len(limits)
    assert all(line.startswith("OutputError") and "File too large" in line for line in errors)
    assert said.stderr == ""
    assert names(tmp_path) == ["storybook.F16.gguf"]
    assert (tmp_path / "storybook.F16.gguf").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("options", "reason"), [("size=3m", "the disk is full"), ("ro", "the file system is read-only")]
)
def test_a_full_or_read_only_disk_is_named(options: str, reason: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o {options} tmpfs "$0" || exit 77; "$@"; ls -A "$0" >&2'
    inside = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, str(disk)]
    try:
        command = [*inside, *child(disk, ["q8_0"])]
        said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if said.returncode in (1, 77):
        pytest.skip(f"no file system of one's own here: {said.stderr}")
    target = disk / "storybook.Q8_0.gguf"
    assert said.stdout.splitlines()[-1] == f"OutputError: cannot write {target}: {reason}"
    assert said.stderr == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_a_folder_without_permission_is_named(mode: int, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=mode)
    with pytest.raises(OutputError, match="permission denied"):
        convert("storybook", type=["q8_0"], output=tmp_path / "out")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere files have a hidden name while they are written")
@pytest.mark.parametrize(
    "moment", ["output_norm.bias", "token_embd.weight", "blk.2.ffn_up.weight", "blk.5.ffn_up.weight"]
)
def test_a_kill_leaves_nothing(moment: str, tmp_path: Path) -> None:
    with subprocess.Popen(child(tmp_path, TYPES), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            assert any(line.strip() == moment for line in process.stdout)
        finally:
            process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert names(tmp_path) == []


@pytest.mark.parametrize("moment", ["output_norm.bias", "blk.3.attn_qkv.weight", "blk.5.ffn_up.weight"])
@pytest.mark.parametrize("existed", [False, True])
def test_a_progress_that_is_interrupted_leaves_nothing(moment: str, existed: bool, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, name: str) -> None:
        if name == moment:
            raise KeyboardInterrupt

    output = tmp_path / "out"
    if existed:
        output.mkdir()
    with pytest.raises(KeyboardInterrupt):
        convert("storybook", type=TYPES, output=output, progress=interrupt)
    assert names(tmp_path) == (["out"] if existed else [])
    assert not existed or names(output) == []


@pytest.mark.parametrize("damage", ["weights", "tokenizer", "config"])
def test_folders_that_a_failed_conversion_created_are_removed(damage: str, tmp_path: Path) -> None:
    folder = make_checkpoint(
        tmp_path / "model", changed={"ln_f.bias": np.full(64, np.nan if damage == "weights" else 0)}
    )
    if damage == "tokenizer":
        (folder / "vocab.json").write_text("{")
    if damage == "config":
        (folder / "config.json").write_text("{}")
    (tmp_path / "there").mkdir()
    for output in (tmp_path / "there", tmp_path / "there" / "new", tmp_path / "a" / "b" / "c"):
        with pytest.raises(CheckpointError):
            convert(str(folder), type=TYPES, output=output)
        assert names(tmp_path) == ["model", "there"]
        assert names(tmp_path / "there") == []


def test_a_new_folder_that_has_other_files_stays(tmp_path: Path) -> None:
    output = tmp_path / "a" / "b"

    def use(done: int, total: int, name: str) -> None:
        (tmp_path / "a" / "notes").write_text("theirs")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        convert("storybook", type="q8_0", output=output, progress=use)
    assert names(tmp_path / "a") == ["notes"]
