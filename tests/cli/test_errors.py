"""Wrong input of the program gives one sentence, at most one hint, a status, and no files."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.demo import __path__ as demo_folders
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix, Statistics

from .program import run_text as dgpt2

STORYBOOK = Path(demo_folders[0])
Prepare = Callable[[Path], object]


def assert_one_sentence(result: subprocess.CompletedProcess[str], status: int, *words: str, hint: str = "") -> None:
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("Usage: ", "Try ")) and line]
    assert result.returncode == status, result.stderr
    assert result.stdout == ""
    assert len(lines) in (1, 2), result.stderr
    assert lines[0].startswith("Error: ")
    assert all(line.startswith("Hint: ") for line in lines[1:])
    assert all(word in lines[0] for word in words), lines[0]
    assert hint in "".join(lines[1:])
    assert len(result.stderr) < 1500


def everything(folder: Path) -> list[tuple[str, int]]:
    """Each name below the folder, and the size of what has it."""
    paths = (path for path in folder.rglob("*") if path.parts[len(folder.parts)] not in ("cache", "hf-home"))
    return sorted((str(path.relative_to(folder)), path.stat().st_size if path.is_file() else 0) for path in paths)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled checkpoint, to be damaged. The weights are a link, for their copy would take longest."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(STORYBOOK / name, folder)
    (folder / "model.safetensors").symlink_to(STORYBOOK / "model.safetensors")
    return folder


def weights(change: Callable[[bytes], bytes]) -> Prepare:
    def prepare(model: Path) -> None:
        content = change((model / "model.safetensors").read_bytes())
        (model / "model.safetensors").unlink()
        (model / "model.safetensors").write_bytes(content)

    return prepare


def header(change: Callable[[dict[str, Any]], object]) -> Prepare:
    """Changes the header, which may get longer: the offsets in it count from its end."""

    def changed(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        entries = json.loads(content[8 : 8 + length])
        change(entries)
        text = json.dumps(entries).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + length :]

    return weights(changed)


def twice(content: bytes) -> bytes:
    length = int.from_bytes(content[:8], "little")
    text = content[8 : 8 + length].rstrip()[:-1] + b',"transformer.wte.weight":{}}'
    assert text.count(b'"transformer.wte.weight"') == 2
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def config(**values: Any) -> Prepare:
    def prepare(model: Path) -> None:
        content = json.loads((model / "config.json").read_bytes()) | values
        (model / "config.json").write_text(json.dumps(content))

    return prepare


def file(name: str, content: bytes | None) -> Prepare:
    def prepare(model: Path) -> None:
        (model / name).unlink() if content is None else (model / name).write_bytes(content)

    return prepare


def only_flax(model: Path) -> None:
    (model / "model.safetensors").rename(model / "flax_model.msgpack")


def shard_missing(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model-00001-of-00002.safetensors")
    shards = {"transformer.wte.weight": "model-00001-of-00002.safetensors", "x": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


FIRST, SECOND = "transformer.h.0.attn.c_attn.bias", "transformer.h.0.attn.c_attn.weight"


@dataclass(frozen=True)
class Bad:
    """What is done to the checkpoint, and what the sentence says."""

    prepare: Prepare
    words: tuple[str, ...]
    hint: str = ""


CHECKPOINTS = {
    "truncated weights": Bad(weights(lambda c: c[:-1]), ("model.safetensors", "ends at byte"), "truncated"),
    "weights cut off in the header": Bad(weights(lambda c: c[:1000]), ("model.safetensors", "claims")),
    "a header length that lies": Bad(weights(lambda c: b"\xff" * 8 + c[8:]), ("claims 18446744073709551615 bytes",)),
    "a header that is no JSON": Bad(weights(lambda c: c[:8] + b"{'" + c[10:]), ("not valid JSON",)),
    "an unknown dtype": Bad(header(lambda h: h[FIRST].update(dtype="F31")), ("unknown dtype 'F31'", FIRST)),
    "tensors that overlap": Bad(
        header(lambda h: h[FIRST].update(data_offsets=[n + 4 for n in h[FIRST]["data_offsets"]])), ("overlaps",)
    ),
    "a tensor twice": Bad(weights(twice), ("transformer.wte.weight", "occurs twice")),
    "a wrong shape": Bad(header(lambda h: h[SECOND]["shape"].reverse()), (SECOND, "shape", "implies")),
    "a missing tensor": Bad(header(lambda h: h.pop(FIRST)), (FIRST,), "download or save them again"),
    "no config": Bad(file("config.json", None), ("config.json",)),
    "a config that is garbage": Bad(file("config.json", b"\x80garbage"), ("config.json is not valid JSON",)),
    "another architecture": Bad(config(model_type="llama"), ("'llama'", "gpt2"), "llama.cpp"),
    "no weights": Bad(file("model.safetensors", None), ("has neither model.safetensors nor pytorch_model.bin",)),
    "only Flax's weights": Bad(only_flax, ("only Flax weights (flax_model.msgpack)",), "save_pretrained"),
    "a missing shard": Bad(shard_missing, ("'model-00002-of-00002.safetensors'",)),
}


@pytest.mark.parametrize("bad", CHECKPOINTS)
def test_a_bad_checkpoint_is_one_sentence(bad: str, model: Path, tmp_path: Path) -> None:
    case = CHECKPOINTS[bad]
    case.prepare(model)
    before = everything(tmp_path)
    result = dgpt2("convert", "./model", "-t", "q8_0", "-o", "out", folder=tmp_path)
    assert_one_sentence(result, 1, *case.words, hint=case.hint)
    assert everything(tmp_path) == before


FILES: dict[str, bytes] = {
    "garbage.gguf": b"no such thing " * 100,
    "old.dat": b"\x4b\0\0\0" + bytes(500),
    "latin.txt": "Él".encode("latin-1"),
    "notes": b"precious",
    "storybook.Q8_0.gguf": b"precious",
}
CALLS = [
    ("storybook -t q8_0", 1, ("storybook.Q8_0.gguf already exists",), "--overwrite"),
    ("storybook -t q8_0 -o notes", 1, ("notes is a file, not a folder",), "folder"),
    ("storybook -t q8_0 -o /dev/null", 1, ("/dev/null",), "folder"),
    ("storybook -t q4_k_n", 2, ("'q4_k_n'",), "q4_k_m"),
    ("storybook -t q4_0 --recipe best", 2, ("'best'", "stock"), ""),
    ("no-such-model -t q8_0", 1, ("no-such-model",), "storybook"),
    ("./no/such/model -t q8_0", 1, ("./no/such/model",), "storybook"),
    ("garbage.gguf -t q8_0", 1, ("garbage.gguf is not a valid GGUF file",), ""),
    ("storybook -t q4_0 --imatrix old.dat", 1, ("old.dat", ".dat format"), "imatrix"),
    ("storybook -t q4_0 --imatrix none.gguf", 1, ("none.gguf",), "imatrix"),
    ("storybook -t q4_0 --imatrix other.gguf", 2, ("128 columns",), "another model"),
    ("storybook -t q4_0 --calibrate none.txt", 1, ("none.txt",), "evaluation"),
    ("storybook -t q4_0 --calibrate latin.txt", 2, ("latin.txt is not UTF-8",), "iconv"),
    ("storybook -t iq2_xs", 2, ("IQ2_XS needs an importance matrix",), "--calibrate"),
    ("storybook -t q4_0 --tensor-type ffn_down", 2, ("'ffn_down'", "REGEX=TYPE"), "ffn_down=q6_k"),
    ("storybook -t q4_0 --tensor-type ffn_down=q6k", 2, ("'q6k'",), "q6_k"),
    ("storybook -t q4_0 --tensor-type ffn_(=q6_k", 2, ("'ffn_('",), ""),
    ("storybook -t q4_0 --tensor-type gate=q6_k", 2, ("gate=Q6_K",), "token_embd"),
    ("storybook -t q4_0 --threads 0", 2, ("--threads", "1"), ""),
]


@pytest.mark.parametrize(("call", "status", "words", "hint"), CALLS, ids=[call for call, *_ in CALLS])
def test_a_bad_call_is_one_sentence(call: str, status: int, words: tuple[str, ...], hint: str, tmp_path: Path) -> None:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    if "other.gguf" in call:
        columns = np.ones(128, np.float32)
        other = ImportanceMatrix({"token_embd.weight": Statistics(columns, columns, 1.0)}, ["text"], 1, 1)
        other.write(tmp_path / "other.gguf")
    before = everything(tmp_path)
    assert_one_sentence(dgpt2("convert", *call.split(), folder=tmp_path), status, *words, hint=hint)
    assert everything(tmp_path) == before
    assert (tmp_path / "storybook.Q8_0.gguf").read_bytes() == b"precious"


def test_a_truncated_gguf_file_is_one_sentence(storybook_files: dict[str, Path], tmp_path: Path) -> None:
    content = storybook_files["F16"].read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[:-1])
    result = dgpt2("convert", "cut.gguf", "-t", "q8_0", folder=tmp_path)
    assert_one_sentence(result, 1, "cut.gguf is not a valid GGUF file", "ends at byte")
    assert everything(tmp_path) == [("cut.gguf", len(content) - 1)]


@pytest.mark.parametrize("output", ["out", "."])
def test_a_full_disk_is_one_sentence(output: str, tmp_path: Path) -> None:
    result = dgpt2("convert", "storybook", "-t", "q8_0", "-o", output, folder=tmp_path, largest_file=1_000_000)
    assert_one_sentence(result, 1, "cannot write", "storybook.Q8_0.gguf", "File too large")
    assert everything(tmp_path) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    result = dgpt2("convert", "storybook", "-t", "q8_0", "-o", "out", folder=tmp_path)
    assert_one_sentence(result, 1, "permission denied", hint="-o")
