"""`convert` with its newer flags, `imatrix`, and `inspect` of what they make, through the real program."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix, Statistics, read_importance
from dgpt2_quant.quantize.convert import convert

from ..checkpoints import make_checkpoint
from ..quantize.checkpoint.test_lora import lora_of, save_adapter
from ..runtime.gguf_edit import rewrite
from .program import run_text as dgpt2


def succeeded(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    result = dgpt2(*arguments)
    assert result.returncode == 0, result.stderr
    return result


def document(*arguments: str | Path) -> Any:
    return json.loads(succeeded(*arguments, "--json").stdout)


def table(text: str) -> list[list[str]]:
    """The rows under the line of dashes."""
    lines = text.splitlines()
    [rule] = [number for number, line in enumerate(lines) if line and set(line) == {"-", " "}]
    return [line.split() for line in lines[rule + 1 :]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a text, a checkpoint, its F32 and Q8_0 files, and an importance matrix over the text."""
    folder = tmp_path_factory.mktemp("verbs")
    (folder / "text.txt").write_text("then the in an " * 40)
    make_checkpoint(folder / "tiny", layers=1, width=256, inner=256, context=32)
    convert(str(folder / "tiny"), type=["F32", "Q8_0"], output=folder)
    succeeded("imatrix", folder / "tiny", "--text", folder / "text.txt", "-o", folder / "imatrix.gguf")
    return folder


def test_adapters_and_files_of_weights(folder: Path, tmp_path: Path) -> None:
    inner = make_checkpoint(tmp_path / "base", layers=1)
    adapter = save_adapter(tmp_path / "poet", lora_of("h.0.attn.c_attn"))
    [file] = document("convert", inner, "--lora", f"{adapter}=0.5", "-t", "f16", "-o", tmp_path)
    assert (file["model"], Path(file["path"]).name) == ("base-poet", "base-poet.F16.gguf")
    refused = dgpt2("convert", inner, "--lora", f"{adapter}=half", "-t", "f16")
    assert refused.returncode == 2
    assert "--lora is" in refused.stderr
    (inner / "model.safetensors").rename(inner / "verse.bin")
    [file] = document("convert", inner / "verse.bin", "-t", "f16", "-o", tmp_path)
    assert Path(file["path"]).name == "verse.F16.gguf"
    text = succeeded("run", "-m", inner / "verse.bin", "-t", "f16", "-n", "4", "the")
    assert "Converting verse to F16" in text.stderr


def test_a_dry_run_shows_every_tensor_and_the_exact_size(folder: Path, tmp_path: Path) -> None:
    call = ("convert", folder / "tiny", "-t", "q4_k", "-t", "q8_0", "-o", tmp_path / "out")
    shown = succeeded(*call, "--dry-run")
    assert not (tmp_path / "out").exists()
    assert "nothing was written" in shown.stderr
    plans = document(*call, "--dry-run")
    files = document(*call)
    tensors, summary = shown.stdout.split("\n\n")
    assert table(tensors) == [
        [one["name"], *" x ".join(map(str, one["shape"])).split(), one["type"], other["type"]]
        for one, other in zip(plans[0]["plan"], plans[1]["plan"], strict=True)
    ]
    for row, plan, file in zip(table(summary), plans, files, strict=True):
        assert row[:3] == [file["type"], f"{file['bytes']:,}", "bytes"]
        assert plan["bytes"] == file["bytes"] == Path(file["path"]).stat().st_size
        assert plan.keys() == {*file, "plan"}
        assert (plan["sha256"], plan["path"]) == (None, file["path"])


def test_types_set_by_hand_are_taken_and_shown(folder: Path, tmp_path: Path) -> None:
    hand = ("--tensor-type", "ffn_down=q8_0", "--tensor-type", "qkv=f16")
    [entry] = document("convert", folder / "tiny", "-t", "q4_0", "-o", tmp_path, *hand)
    described = document("inspect", entry["path"])
    types = {tensor["name"]: tensor["type"] for tensor in described["tensors"]}
    assert [types[f"blk.0.{name}.weight"] for name in ("ffn_down", "attn_qkv", "ffn_up")] == ["Q8_0", "F16", "Q4_0"]
    assert "set manually   ffn_down=Q8_0, qkv=F16\n" in succeeded("inspect", entry["path"]).stdout


def test_a_text_on_the_way_gives_the_file_of_its_importance_matrix(folder: Path, tmp_path: Path) -> None:
    call = ("convert", folder / "tiny", "-t", "q2_k_s")
    [one] = document(*call, "-o", tmp_path / "one", "--imatrix", folder / "imatrix.gguf")
    [other] = document(*call, "-o", tmp_path / "other", "--calibrate", folder / "text.txt")
    assert one["sha256"] == other["sha256"]
    shown = succeeded("inspect", one["path"]).stdout.splitlines()
    assert "imatrix of     text.txt" in shown
    assert f"imatrix sha256 {read_importance(folder / 'imatrix.gguf').sha256}" in shown


def test_all_with_an_importance_matrix_leaves_no_level_out(folder: Path) -> None:
    done = dgpt2("convert", folder / "tiny", "--all", "--dry-run", "--json", "--imatrix", folder / "imatrix.gguf")
    listed = json.loads(succeeded("types", "--json").stdout)
    assert [file["type"] for file in json.loads(done.stdout)] == [entry["type"] for entry in listed]
    assert "Without" not in done.stderr


def test_a_gguf_file_is_converted_further(folder: Path, tmp_path: Path) -> None:
    call = ("convert", "-t", "q4_0", "-o", tmp_path)
    [entry] = document(*call, folder / "tiny.F32.gguf")
    [direct] = document(*call, folder / "tiny", "--overwrite")
    assert (entry["path"], entry["sha256"]) == (str(tmp_path / "tiny.Q4_0.gguf"), direct["sha256"])
    refused = dgpt2(*call, folder / "tiny.Q8_0.gguf", "--overwrite")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "--allow-requantize" in refused.stderr
    [entry] = document(*call, folder / "tiny.Q8_0.gguf", "--overwrite", "--allow-requantize")
    assert "requantized    Q8_0\n" in succeeded("inspect", entry["path"]).stdout


def test_imatrix_says_what_it_collected_and_inspect_what_is_in_the_file(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "it.gguf"
    call = ("imatrix", folder / "tiny.F32.gguf", "--text", folder / "text.txt", "-o", target, "--ctx-size", "16")
    done = succeeded(*call, "--chunks", "3")
    assert table(done.stdout) == [["5", "3", "16", "text.txt", str(target)]]
    assert f"--imatrix {target}" in done.stderr
    assert dgpt2(*call).returncode == 1  # it exists
    assert table(succeeded(*call, "--chunks", "2", "--overwrite").stdout)[0][:3] == ["5", "2", "16"]
    shown = succeeded("inspect", target, "--tensors").stdout
    for line in ("kind           importance matrix, of 5 matrices", "texts          text.txt"):
        assert line in shown.splitlines()
    assert "collected on   2 chunks of 16 tokens" in shown
    assert "token_embd.weight.in_sum2" in shown
    assert document("inspect", target)["metadata"]["imatrix.datasets"] == ["text.txt"]


def test_an_importance_matrix_of_strange_texts_is_shown(folder: Path, tmp_path: Path) -> None:
    file = rewrite(folder / "imatrix.gguf", tmp_path / "odd.gguf", metadata={"imatrix.datasets": 5})
    assert "texts          5" in succeeded("inspect", file).stdout.splitlines()


def test_files_are_merged(folder: Path, tmp_path: Path) -> None:
    once, merge = folder / "imatrix.gguf", ("--merge", folder / "imatrix.gguf")
    succeeded("imatrix", "-o", tmp_path / "alone.gguf", *merge, *merge)
    succeeded("imatrix", folder / "tiny", "-o", tmp_path / "both.gguf", *merge, "--text", folder / "text.txt")
    assert (tmp_path / "alone.gguf").read_bytes() == (tmp_path / "both.gguf").read_bytes()
    found = read_importance(tmp_path / "both.gguf")
    assert found.chunk_count == 2 * read_importance(once).chunk_count
    assert found.datasets == ["text.txt", "text.txt"]


INTERRUPTING = """
import sys
from dgpt2_quant.quantize.calibration.collect import imatrix
def progress(done, total, what):
    if done == 2:
        raise KeyboardInterrupt
imatrix(sys.argv[1], text=sys.argv[2], output=sys.argv[3], progress=progress)
"""


def test_the_same_command_goes_on_where_it_was_interrupted(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "it.gguf"
    arguments = [folder / "tiny", folder / "text.txt", target]
    subprocess.run([sys.executable, "-c", INTERRUPTING, *arguments], capture_output=True, check=False)
    assert [path.name for path in tmp_path.iterdir()] == ["it.gguf.partial"]
    succeeded("imatrix", folder / "tiny", "--text", folder / "text.txt", "-o", target)
    assert [path.name for path in tmp_path.iterdir()] == ["it.gguf"]
    assert target.read_bytes() == (folder / "imatrix.gguf").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ("convert tiny -t iq2_xs", 2, "IQ2_XS needs an importance matrix"),
        ("convert tiny -t q4_0 --imatrix tiny.F32.gguf", 1, "is not an importance matrix"),
        ("convert tiny -t q4_0 --imatrix text.txt", 1, "old .dat format"),
        ("convert tiny -t q4_0 --calibrate short.txt", 2, "short.txt has 1 tokens, less than one chunk of 32"),
        ("convert tiny -t q4_0 --calibrate text.txt --imatrix imatrix.gguf", 2, "Omit one of them"),
        ("convert tiny -t q4_0 --tensor-type gate=q8_0", 2, "matches no matrix"),
        ("convert storybook -t q4_0 --imatrix other.gguf", 2, "It belongs to another model"),
        ("convert tiny.Q8_0.gguf -t q4_0", 2, "is already quantized"),
        ("convert owner/uncached -t q4_0 --dry-run", 1, "offline, and owner/uncached"),
        ("imatrix tiny --text text.txt", 2, "--output"),
        ("imatrix tiny -o new.gguf", 2, "neither a text nor files to merge are given"),
        ("imatrix tiny -o new.gguf --text text.txt --merge gone.gguf", 1, "there is no file gone.gguf"),
        ("imatrix tiny -o new.gguf --text text.txt --chunks 0", 2, "--chunks"),
        ("imatrix tiny -o new.gguf --text text.txt --merge other.gguf", 2, "columns for token_embd.weight"),
        ("imatrix tiny -o text.txt --text text.txt", 1, "text.txt already exists"),
    ],
)
def test_errors_are_a_sentence_and_a_status(
    arguments: str, status: int, says: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "short.txt").write_text("a")
    if "other.gguf" in arguments:
        make_other(tmp_path / "other.gguf")
    before = sorted(path.name for path in tmp_path.iterdir())
    result = dgpt2(*arguments.split())
    assert result.returncode == status, result.stderr
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("Error: ")]) == 1
    assert result.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def make_other(path: Path) -> None:
    """An importance matrix of a narrower model."""
    entries = {"token_embd.weight": Statistics(np.ones(32, np.float32), None, 3.0)}
    ImportanceMatrix(entries, ["other"], 1, 3).write(path)
