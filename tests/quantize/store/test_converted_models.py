"""From a name to a file: converted once, found again without reading the weights, converted again when they change."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from dgpt2_quant.core.cache_folder import cache_folder
from dgpt2_quant.core.errors import CheckpointError, DgptQuantError, ModelNotFoundError, UsageError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.quant_types import QUANT_TYPES
from dgpt2_quant.quantize.checkpoint.folder import source_sha256
from dgpt2_quant.quantize.store.conversion_lock import conversion_lock, free_folder, holder_of
from dgpt2_quant.quantize.store.converted_models import model_file, model_files, remembered_sha256
from dgpt2_quant.quantize.store.file_record import record_of

from ...checkpoints import make_checkpoint

CHILD = """
import sys
from dgpt2_quant.quantize.store.converted_models import model_file
name, path = model_file(sys.argv[1], type="q4_k", announce=lambda text: print("announced"))
print(path)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "tiny")


def memo() -> Path:
    (path,) = (cache_folder() / "sources").iterdir()
    return path


def rewrite(path: Path, content: bytes, older: bool = False) -> None:
    """Rewrites a file with another modification time, however coarse the clock."""
    stamp = path.stat().st_mtime_ns + (-1 if older else 1) * 2_000_000_000
    path.write_bytes(content)
    os.utime(path, ns=(stamp, stamp))


def test_a_model_is_converted_once_and_announced_once(tmp_path: Path) -> None:
    said: list[str] = []
    name, path = model_file("storybook", announce=said.append)
    assert (name, path.name) == ("storybook", "storybook.Q4_K_M.gguf")
    assert path.is_relative_to(tmp_path / "cache" / "models")
    assert version("dgpt2-quant") in path.parent.name
    (sentence,) = said
    assert "storybook" in sentence
    assert "Q4_K_M" in sentence
    assert str(path.parent) in sentence
    before = path.stat()
    assert model_file("storybook", announce=said.append) == (name, path)
    assert len(said) == 1
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_only_what_is_missing_is_converted(model: Path) -> None:
    said: list[str] = []
    first = model_files(str(model), types=["q8_0"], announce=said.append)
    both = model_files(str(model), types=["f16", "q8_0", "Q8_0"], announce=said.append)
    assert [t.name for t in both.files] == ["F16", "Q8_0"]
    assert both.files[QUANT_TYPES["Q8_0"]] == first.files[QUANT_TYPES["Q8_0"]]
    assert both.source_sha256 == first.source_sha256 == source_sha256(model)
    assert [("F16" in text, "Q8_0" in text) for text in said] == [(False, True), (True, False)]
    for quant_type, path in both.files.items():
        assert read_header(path).quant_type == quant_type.name
        assert read_header(path).metadata["dgpt2_quant.source.sha256"] == both.source_sha256


def test_the_hash_is_remembered_and_the_weights_are_not_read_again(model: Path) -> None:
    true = remembered_sha256(model)
    assert true == source_sha256(model)
    known = json.loads(memo().read_bytes())
    assert known["sha256"] == true
    # reading the weights gives the true hash, trusting the memo this one
    memo().write_text(json.dumps(known | {"sha256": "f" * 64}))
    assert remembered_sha256(model) == "f" * 64
    _, path = model_file(str(model), type="f16")
    assert path.parent.parent.name == "tiny-" + "f" * 16


def test_a_touched_file_is_read_again_and_has_the_same_key(model: Path) -> None:
    _, first = model_file(str(model), type="f16")
    before = memo().read_bytes()
    rewrite(model / "model.safetensors", (model / "model.safetensors").read_bytes())
    said: list[str] = []
    assert model_file(str(model), type="f16", announce=said.append)[1] == first
    assert said == []
    assert memo().read_bytes() != before


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "merges.txt"])
def test_changed_content_gives_another_file(name: str, model: Path) -> None:
    _, first = model_file(str(model), type="f16")
    content = bytearray((model / name).read_bytes())
    if name == "model.safetensors":
        content[-1] ^= 1
    else:
        content += b"\n"
    rewrite(model / name, bytes(content), older=True)  # a backup put back is older
    _, second = model_file(str(model), type="f16")
    assert second != first
    assert second.is_file()
    assert first.is_file()


def test_an_added_license_gets_into_the_file(model: Path) -> None:
    _, first = model_file(str(model), type="f16")
    assert "general.license" not in read_header(first).metadata
    (model / "README.md").write_text("---\nlicense: mit\n---\n# Tiny\n")
    _, second = model_file(str(model), type="f16")
    assert read_header(second).metadata["general.license"] == "mit"


@pytest.mark.parametrize(
    "broken",
    [b"", b"{", b"[]", b"7", b'"text"', b"null", b"{}", b'{"files": []}', b"\xff\xfe\xff", b"whole, no sha"],
)
def test_a_broken_memo_is_repaired(broken: bytes, model: Path) -> None:
    true = remembered_sha256(model)
    sound = memo().read_bytes()
    if broken == b"whole, no sha":
        broken = json.dumps(json.loads(sound) | {"sha256": None}).encode()
    memo().write_bytes(broken)
    assert remembered_sha256(model) == true
    assert memo().read_bytes() == sound


def test_a_checkpoint_at_two_places_has_one_key(tmp_path: Path) -> None:
    folders = [make_checkpoint(tmp_path / place / "tiny") for place in ("here", "there")]
    assert len({model_file(str(folder), type="q8_0")[1] for folder in folders}) == 1


def test_the_key_covers_names_and_contents_of_all_files(model: Path) -> None:
    names = ["config.json", "vocab.json", "merges.txt", "model.safetensors"]
    lines = [f"{hashlib.sha256((model / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    assert source_sha256(model) == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_a_damaged_checkpoint_leaves_no_file_in_the_cache(model: Path) -> None:
    (model / "merges.txt").write_text("not two\n" * 3 + "x\n")
    with pytest.raises(CheckpointError):
        model_file(str(model))
    assert list(cache_folder().rglob("*.gguf")) == []


def test_a_gguf_file_is_returned_as_it_is(storybook_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = storybook_files["Q8_0"]
    assert model_file(str(path)) == ("storybook.Q8_0", path)
    assert not cache_folder().exists()
    monkeypatch.setenv("HOME", str(path.parent))
    assert model_file(f"~/{path.name}") == ("storybook.Q8_0", path)


def test_a_type_with_a_gguf_is_refused(storybook_files: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="`type` cannot be combined with a file"):
        model_file(str(storybook_files["Q8_0"]), type="q4_k")


@pytest.mark.parametrize("name", ["none.gguf", "no/such/none.gguf"])
def test_a_missing_gguf_file_is_named(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=f"there is no file {name}"):
        model_file(name)


def test_an_unknown_type_is_refused_before_the_model_is_opened() -> None:
    with pytest.raises(UsageError, match="'q9'"):
        model_file("no-such-model-anywhere/x", type="q9")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("DGPT2_QUANT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/xdg")
    assert cache_folder() == Path("/var/xdg/dgpt2-quant")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder() == Path("/home/somebody/.cache/dgpt2-quant")
    for name in ("DGPT2_QUANT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "~/dq")
        assert Path("/home/somebody/dq") in (cache_folder(), cache_folder().parent)


def test_an_unusable_cache_raises_our_error(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file")
    monkeypatch.setenv("DGPT2_QUANT_CACHE", str(tmp_path / "occupied"))
    with pytest.raises(DgptQuantError, match="occupied"):
        model_file(str(model))


def test_two_processes_at_once_convert_once(model: Path) -> None:
    command = [sys.executable, "-c", CHILD, "storybook"]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert said[0][-1] == said[1][-1]
    assert [line for lines in said for line in lines].count("announced") == 1
    path = Path(said[0][-1])
    assert [entry.name for entry in path.parent.iterdir() if entry.name != ".lock"] == [path.name]
    assert read_header(path).quant_type == "Q4_K_M"


@pytest.mark.parametrize("damage", ["short", "empty", "head", "data", "longer"])
def test_a_damaged_file_is_converted_again(damage: str, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, path = model_file(str(model), type="q8_0")
    sound = path.read_bytes()
    broken = {
        "short": sound[:-1],
        "empty": b"",
        "head": b"garbage!" + sound[8:],
        "data": sound[:-9] + bytes([sound[-9] ^ 1]) + sound[-8:],
        "longer": sound + b"!",
    }[damage]
    path.write_bytes(broken)
    assert model_file(str(model), type="q8_0") == ("tiny", path)
    assert path.read_bytes() == sound
    assert [f"{path} is damaged and is converted again"] == caplog.messages


def test_a_copied_cache_is_used(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other modification times, as after unpacking an archive: then the content says that the file is whole."""
    _, path = model_file(str(model), type="q8_0")
    shutil.copytree(cache_folder(), tmp_path / "copy", copy_function=shutil.copyfile)
    monkeypatch.setenv("DGPT2_QUANT_CACHE", str(tmp_path / "copy"))
    said: list[str] = []
    for _ in range(2):
        _, copied = model_file(str(model), type="q8_0", announce=said.append)
        assert copied == tmp_path / "copy" / path.relative_to(tmp_path / "cache")
    assert said == []


def test_a_lost_or_broken_record_only_costs_time(model: Path) -> None:
    _, path = model_file(str(model), type="q8_0")
    sound, record = path.read_bytes(), record_of(path.parent)
    for content in (None, b"", b"[]", b'{"tiny.Q8_0.gguf": 7}', b'{"tiny.Q8_0.gguf": {}}'):
        record.unlink() if content is None else record.write_bytes(content)
        assert model_file(str(model), type="q8_0") == ("tiny", path)
        assert path.read_bytes() == sound


def waiting(model: Path) -> subprocess.Popen[str]:
    """A process that needs a file in a folder that is locked."""
    command = [sys.executable, "-c", CHILD.replace("q4_k", "q8_0"), str(model)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_waiting_process_names_the_holder_and_goes_on(model: Path) -> None:
    _, path = model_file(str(model), type="f16")
    with conversion_lock(path.parent, "tiny to F16"):
        process = waiting(model)
        assert process.stderr
        said = process.stderr.readline()  # while the lock is held
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert out.splitlines()[0] == "announced"
    assert f"Waiting for process {os.getpid()} on {socket.gethostname()}" in said
    assert "converting tiny to F16 since 20" in said


def test_a_waiting_process_can_be_interrupted(model: Path) -> None:
    _, path = model_file(str(model), type="f16")
    with conversion_lock(path.parent, "tiny to F16"):
        process = waiting(model)
        assert process.stderr
        process.stderr.readline()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT  # as Python ends of it
    assert model_file(str(model), type="q8_0")[1].is_file()


def test_the_record_of_a_dead_holder_is_ignored(model: Path) -> None:
    _, path = model_file(str(model), type="f16")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with free_folder(path.parent) as free:  # held, and not recorded
        assert free
        for pid in (dead.pid, 10**30, "x"):
            known = {"pid": pid, "host": socket.gethostname(), "since": 0.0, "what": "tiny to F16"}
            holder_of(path.parent).write_text(json.dumps(known))
            process = waiting(model)
            assert process.stderr
            assert "Waiting for another process" in process.stderr.readline()
            process.kill()
            process.communicate()
    holder_of(path.parent).write_text("left behind")
    assert model_file(str(model), type="q8_0")[1].is_file()
    assert not holder_of(path.parent).exists()
