"""Load time and memory of a file, each in a process of its own."""

from pathlib import Path

import numpy as np
import pytest
from dgpt2_quant.bench.footprint import measure_footprint, peak_rss_bytes
from dgpt2_quant.quantize.errors import RuntimeFailure


def test_the_bigger_file_takes_more_memory(short_files: dict[str, Path]) -> None:
    levels = ("F32", "Q4_0")
    large, small = (measure_footprint(short_files[level], threads=1, children=2) for level in levels)
    sizes = [short_files[level].stat().st_size for level in levels]
    # the weights are read, and nothing is in memory twice over
    assert large.peak_rss_bytes - small.peak_rss_bytes > (sizes[0] - sizes[1]) / 2
    for footprint, size in zip((large, small), sizes, strict=True):
        assert size < footprint.peak_rss_bytes < size + 500e6
        assert footprint.load_ms > 0
        assert footprint.first_token_ms > 0


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match=r"(?s)measuring .*there is no file .*absent\.gguf"):
        measure_footprint(tmp_path / "absent.gguf")


def test_a_broken_file(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"not a model")
    with pytest.raises(RuntimeFailure, match=r"(?s)measuring .*it begins with b'not '"):
        measure_footprint(broken, children=1)


def test_a_peak_is_not_taken_back() -> None:
    block = np.ones(100 << 20, np.uint8)
    del block
    assert peak_rss_bytes() > 100 << 20
