"""Verifying a release: what is changed in a folder is found, and named."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dgpt2_quant.core.errors import DgptQuantError, ModelNotFoundError
from dgpt2_quant.publish.verify import verify


def problems(folder: Path) -> dict[str, str]:
    return {check.name: check.problem for check in verify(folder, threads=1) if check.problem}


def test_a_release_is_right(copied: Path) -> None:
    checks = verify(copied, threads=1)
    assert not [check for check in checks if check.problem]
    assert {"run storybook.Q4_0.gguf", "README.md and bench.json", "bench.json: storybook.F16.gguf"} <= {
        check.name for check in checks
    }


def with_new_sums(folder: Path) -> None:
    """Makes SHA256SUMS fit the files again, as a careful editor would."""
    lines = (folder / "SHA256SUMS").read_text("utf-8").splitlines()
    names = [line.split("  ")[1] for line in lines]
    text = "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    (folder / "SHA256SUMS").write_text(text, "utf-8")


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text("utf-8"))
    change(document)
    path.write_text(json.dumps(document), "utf-8")


def a_number_of_the_card(folder: Path) -> None:
    card = (folder / "README.md").read_text("utf-8")
    (folder / "README.md").write_text(card.replace("tokens of tales.txt", "tokens of tales.txt, or 1 more"), "utf-8")


def a_result_of_the_front_matter(folder: Path) -> None:
    lines = (folder / "README.md").read_text("utf-8").splitlines(keepends=True)
    at = next(number for number, line in enumerate(lines) if line.strip().startswith("value:"))
    lines[at] = lines[at].split(":")[0] + ": 1.5\n"
    (folder / "README.md").write_text("".join(lines), "utf-8")


def the_divergence_in_bench_json(folder: Path) -> None:
    edit(folder / "bench.json", lambda document: document["results"][2]["kld_interval"].update(value=1e-9))


def the_speed_in_bench_json(folder: Path) -> None:
    edit(folder / "bench.json", lambda document: document["results"][0]["decode_tps"].update(median=1e6))


def the_bias_in_the_record(folder: Path) -> None:
    edit(folder / "release.json", lambda record: record["bias"][0]["js_divergence"].update(value=0.6))


@pytest.mark.parametrize(
    "change",
    [
        a_number_of_the_card,
        a_result_of_the_front_matter,
        the_divergence_in_bench_json,
        the_speed_in_bench_json,
        the_bias_in_the_record,
    ],
)
def test_a_card_that_parts_from_the_measurements_fails(change: Callable[[Path], None], copied: Path) -> None:
    change(copied)
    with_new_sums(copied)
    (problem,) = problems(copied).values()
    assert problem.startswith("they differ in line ")


def test_a_changed_file_fails(copied: Path) -> None:
    path = copied / "storybook.Q4_0.gguf"
    data = bytearray(path.read_bytes())
    data[-5000:] = bytes(5000)
    path.write_bytes(data)
    assert "has another SHA-256" in problems(copied)["storybook.Q4_0.gguf"]
    with_new_sums(copied)
    assert problems(copied)["bench.json: storybook.Q4_0.gguf"] == "bench.json states another SHA-256 than SHA256SUMS"


def test_a_file_of_another_type_under_the_name_fails(copied: Path) -> None:
    data = (copied / "storybook.Q8_0.gguf").read_bytes()
    (copied / "storybook.Q4_0.gguf").write_bytes(data)
    assert f"has {len(data):,} bytes, but bench.json states" in problems(copied)["storybook.Q4_0.gguf"]
    stated = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(copied / "bench.json", lambda document: document["results"][2].update(stated))
    with_new_sums(copied)
    assert "its header states the type Q8_0" in problems(copied)["run storybook.Q4_0.gguf"]


def test_a_file_that_writes_another_text_fails(copied: Path) -> None:
    edit(copied / "release.json", lambda record: record["quick"][1].update(perplexity=12.5))
    with_new_sums(copied)
    assert "its perplexity is" in problems(copied)["run storybook.Q8_0.gguf"]


def test_missing_and_unknown_files_fail(copied: Path) -> None:
    (copied / "storybook.F16.gguf").rename(copied / "storybook.F32.gguf")
    (copied / "old").mkdir()
    (copied / "old" / "storybook.GGUF").write_bytes(b"")
    with (copied / "storybook.Q8_0.gguf").open("r+b") as file:
        file.truncate(1 << 40)  # sparse; hashing it would take an hour
    found = problems(copied)
    assert found["storybook.F16.gguf"] == "is missing"
    assert found["bench.json: storybook.F32.gguf"] == "bench.json does not describe it"
    assert found["bench.json: old/storybook.GGUF"] == "bench.json does not describe it"
    assert "has 1,099,511,627,776 bytes, but bench.json states" in found["storybook.Q8_0.gguf"]


def test_a_changed_checkout_is_explained(copied: Path) -> None:
    """Files as git writes them without LFS and with core.autocrlf, and one that would block a reader."""
    for gguf in copied.glob("*.gguf"):
        digest, size = hashlib.sha256(gguf.read_bytes()).hexdigest(), gguf.stat().st_size
        gguf.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {size}\n", "utf-8")
    for name in ("LICENSE", "SHA256SUMS", "bench.json"):
        (copied / name).write_bytes((copied / name).read_bytes().replace(b"\n", b"\r\n"))
    (copied / "README.md").unlink()
    os.mkfifo(copied / "README.md")
    (copied / "params").write_bytes(b"\xff")
    found = problems(copied)
    assert "git lfs pull" in found["storybook.F16.gguf"]
    assert "CRLF line ends" in found["LICENSE"]
    assert "is not a file" in found["README.md"]
    assert "has another SHA-256" in found["params"]
    assert not [name for name in found if name.startswith("run ")]


def test_checksums_that_fit_changed_files_do_not_hide_them(copied: Path) -> None:
    (copied / "template").write_text("### {{ .Prompt }}", "utf-8")
    shutil.copy(copied / "storybook.Q8_0.gguf", copied / "imatrix.gguf")
    with_new_sums(copied)
    lines = (copied / "SHA256SUMS").read_text("utf-8").splitlines(keepends=True)
    (copied / "SHA256SUMS").write_text("".join(line for line in lines if "params" not in line), "utf-8")
    found = problems(copied)
    assert found.keys() == {"template", "imatrix.gguf", "params"}
    assert found["params"] == "SHA256SUMS does not list it"


def test_an_unfinished_release_fails(copied: Path) -> None:
    (copied / "SHA256SUMS").unlink()
    assert "Run the same `release` again" in problems(copied)["SHA256SUMS"]


def test_what_is_not_a_release_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="is not a release: it has no release"):
        verify(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"schema_version": 2}', '{"schema_version": 1}', "\x00"])
def test_broken_records_are_refused(text: str, copied: Path) -> None:
    (copied / "release.json").write_text(text, "utf-8")
    with pytest.raises(DgptQuantError, match=r"release\.json"):
        verify(copied)


@pytest.mark.parametrize(
    "line", ["abc", "ab" * 32 + "  ../x", "ab" * 32 + "  /etc/passwd", "ab" * 32 + " x", "ab" * 32 + "  README.md"]
)
def test_broken_sums_are_refused(line: str, copied: Path) -> None:
    with (copied / "SHA256SUMS").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(DgptQuantError, match=r"is not a checksum"):
        verify(copied)
