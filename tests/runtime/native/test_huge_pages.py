"""Weights and KV caches in huge pages, without any other change."""

import subprocess
import sys
from pathlib import Path

import pytest
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model
from dgpt2_quant.runtime.native import huge_pages
from dgpt2_quant.runtime.native.model import NativeModel

from ...checkpoints import make_checkpoint

ASKED = """if True:
    import re, sys
    from pathlib import Path
    from dgpt2_quant.runtime import Model

    def asked():  # kilobytes of memory with requested huge pages
        smaps = Path("/proc/self/smaps").read_text()
        maps = re.findall(r"^Size: +(\\d+) kB$.*?^VmFlags:([^\\n]*)$", smaps, re.M | re.S)
        return sum(int(size) for size, flags in maps if "hg" in flags.split())

    with Model.load(sys.argv[1], threads=1, huge_pages=sys.argv[2] == "True") as model:
        print(asked(), len(model.generate([[1, 2, 3]], max_tokens=4)))
"""
CUT_SHORT = """if True:
    import sys
    from dgpt2_quant.runtime import Model
    with Model.load(sys.argv[1], threads=1) as model:
        expected = model.logits([1, 2, 3]).tolist()
        open(sys.argv[1], "w").close()
        assert model.logits([1, 2, 3]).tolist() == expected
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """17 MB of weights, and a cache of as many."""
    folder = tmp_path_factory.mktemp("large")
    checkpoint = make_checkpoint(folder / "checkpoint", layers=4, width=256, context=4096)
    (file,) = convert(str(checkpoint), type=["f32"], output=folder)
    return Path(file.path)


def run(program: str, *arguments: object) -> str:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    child = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert child.returncode == 0, child.stderr
    return child.stdout


@pytest.mark.skipif(not huge_pages._huge_page_bytes(), reason="there are none")
def test_weights_and_cache_are_in_huge_pages(large: Path) -> None:
    kilobytes, _ = map(int, run(ASKED, large, True).split())
    # more than one of the two has, though up to 4 MB of each are not aligned. llama.cpp tells in its log when memory is
    # allocated and not yet filled: if a release says it in other words, this fails
    assert kilobytes > 20_000


@pytest.mark.skipif(not huge_pages._huge_page_bytes(), reason="there are none")
def test_without_huge_pages_the_file_is_mapped(large: Path) -> None:
    assert run(ASKED, large, False) == "0 1\n"


def test_the_text_is_the_same(large: Path) -> None:
    def text(**options: bool) -> str:
        with Model.load(large, threads=1, **options) as model:
            return "".join(model.stream([1, 2, 3], temperature=0, max_tokens=40))

    assert text() == text(huge_pages=True) == text(huge_pages=False)


def test_truncating_the_file_later_does_no_harm(large: Path, tmp_path: Path) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes(large.read_bytes())
    run(CUT_SHORT, file)
    assert not file.read_bytes()


@pytest.mark.parametrize(
    ("files", "size"),
    [
        ({"enabled": "always [madvise] never\n", "hpage_pmd_size": "2097152\n"}, 2 << 20),
        ({"enabled": "always madvise [never]\n", "hpage_pmd_size": "2097152\n"}, 0),
        ({"enabled": "[always] madvise never\n"}, 0),
        ({}, 0),
    ],
)
def test_settings_of_the_system_are_respected(
    files: dict[str, str], size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    monkeypatch.setattr(huge_pages, "_SETTINGS", tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    assert huge_pages._huge_page_bytes.__wrapped__() == size


def test_without_proc_maps_nothing_is_requested(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_MAPS", tmp_path / "maps")
    with Model.load(large, threads=1) as model:
        assert model.generate([[1, 2, 3]], max_tokens=2)


@pytest.mark.parametrize(("size", "asked"), [(huge_pages.LARGE, True), (huge_pages.LARGE - 1, False)])
def test_small_models_request_none(
    size: int, asked: bool, short_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    class Maps:
        def read_text(self) -> str:
            seen.append("read")
            return ""

    monkeypatch.setattr(huge_pages, "_MAPS", Maps())
    monkeypatch.setattr(huge_pages, "_huge_page_bytes", lambda: 2 << 20)
    file = tmp_path / "padded.gguf"
    file.write_bytes(short_files["Q4_0"].read_bytes())
    with file.open("r+b") as padded:
        padded.truncate(size)
    NativeModel(file).close()
    assert bool(seen) is asked
