"""The cache of reference logits: reading, removal of old entries, and broken entries."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from dgpt2_quant.bench.quality.compare_files import compare_files
from dgpt2_quant.bench.quality.reference_cache import ReferenceCache
from dgpt2_quant.bench.quality.windows import Window, Windowing
from dgpt2_quant.core.text import load_text

VOCABULARY = 10
WINDOWS = [Window(range(start, start + 6), 2) for start in (0, 6, 12)]
SIZE = 4 * VOCABULARY * 9
Logits = npt.NDArray[np.float32]


class Computed(list[int]):
    """The first tokens of the windows that were computed."""

    def __call__(self, window: Window) -> Logits:
        self.append(window.tokens[0])
        return np.random.default_rng(window.tokens[0]).random((3, VOCABULARY), np.float32)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "reference.gguf"
    path.write_bytes(b"some weights")
    return path


def rows(
    file: Path, compute: Callable[[Window], Logits], limit: int = 10 * SIZE, windows: Sequence[Window] = WINDOWS
) -> list[Logits]:
    return [row.copy() for row in ReferenceCache(limit).rows(file, windows, VOCABULARY, compute)]


def kept() -> list[Path]:
    return sorted(ReferenceCache().folder.glob("*"))


def test_a_second_run_reads_the_cache(file: Path) -> None:
    computed = Computed()
    first = rows(file, computed)
    assert computed == [0, 6, 12]
    again = rows(file, computed)
    assert computed == [0, 6, 12]
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert [path.stat().st_size for path in kept()] == [SIZE]


@pytest.mark.parametrize("limit", [0, SIZE - 1])
def test_logits_above_the_limit_are_not_kept(file: Path, limit: int) -> None:
    computed = Computed()
    for _ in range(2):
        assert len(rows(file, computed, limit)) == 3
    assert computed == [0, 6, 12] * 2
    assert kept() == []


def test_the_key_depends_on_content_tokens_and_windows(file: Path) -> None:
    computed = Computed()
    rows(file, computed)
    file.write_bytes(b"other weights")
    rows(file, computed)
    rows(file, computed, windows=[Window(range(6), 3), *WINDOWS[1:]])
    rows(file, computed, windows=[Window([0, 9, 2, 3, 4, 5], 2), *WINDOWS[1:]])
    assert computed == [0, 6, 12] * 4
    file.rename(file.with_name("elsewhere.gguf"))
    rows(file.with_name("elsewhere.gguf"), computed)
    assert len(computed) == 12  # the name says nothing


def test_the_oldest_entries_are_removed(file: Path) -> None:
    computed = Computed()
    for number in range(3):
        file.write_bytes(bytes([number]))
        rows(file, computed, 2 * SIZE)
        for path in kept():
            if path.stat().st_mtime > 1e9:
                os.utime(path, (number + 1, number + 1))
    assert len(kept()) == 2
    computed.clear()
    file.write_bytes(bytes([2]))
    rows(file, computed, 2 * SIZE)
    assert computed == []
    file.write_bytes(bytes([0]))
    rows(file, computed, 2 * SIZE)
    assert computed == [0, 6, 12]


def test_an_incomplete_file_is_computed_again(file: Path) -> None:
    computed = Computed()
    rows(file, computed)
    (path,) = kept()
    path.write_bytes(path.read_bytes()[:-4])
    rows(file, computed)
    assert computed == [0, 6, 12] * 2
    assert path.stat().st_size == SIZE


def test_an_interrupt_leaves_no_file(file: Path) -> None:
    computed = Computed()
    some = ReferenceCache().rows(file, WINDOWS, VOCABULARY, computed)
    next(some)
    some.close()
    assert kept() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache(file: Path) -> None:
    ReferenceCache().folder.parent.mkdir(parents=True, exist_ok=True)
    ReferenceCache().folder.parent.chmod(0o500)
    computed = Computed()
    assert len(rows(file, computed)) == 3
    assert computed == [0, 6, 12]


def test_a_cache_that_is_not_a_folder(file: Path) -> None:
    ReferenceCache().folder.parent.mkdir(parents=True, exist_ok=True)
    ReferenceCache().folder.write_text("a file is in the way")
    computed = Computed()
    assert len(rows(file, computed)) == 3
    assert computed == [0, 6, 12]


def test_a_comparison_is_the_same_from_the_cache(short_files: dict[str, Path]) -> None:
    text, windowing = load_text().text[:2000], Windowing(context=64)
    files = short_files["F32"], [short_files["Q4_0"]]
    none = compare_files(*files, text, windowing=windowing, threads=1, reference_cache=0)
    assert kept() == []
    first, again = (compare_files(*files, text, windowing=windowing, threads=1) for _ in range(2))
    assert len(kept()) == 1
    for found in (first, again):
        assert np.array_equal(found.files[0].kld, none.files[0].kld)
        assert np.array_equal(found.base.nll, none.base.nll)
        assert np.array_equal(found.noise.scores.kld, none.noise.scores.kld)
