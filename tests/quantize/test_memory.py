"""Memory that is kept while something is computed: found again inside, given back behind it."""

import ctypes
import sys
from pathlib import Path

import numpy as np
import pytest
from dgpt2_quant.quantize import memory
from dgpt2_quant.quantize.memory import memory_kept

BYTES = 1 << 28


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def used_and_freed() -> None:
    np.ones(BYTES, np.uint8)


@pytest.mark.skipif(not (sys.platform == "linux" and hasattr(ctypes.CDLL(None), "mallopt")), reason="is of glibc")
def test_it_is_kept_inside_and_given_back_behind() -> None:
    used_and_freed()
    before = resident()
    with memory_kept():
        used_and_freed()
        assert resident() > before + BYTES / 2
    assert resident() < before + BYTES / 2
    used_and_freed()
    assert resident() < before + BYTES / 2


def test_where_there_is_no_such_library_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    with memory_kept():
        used_and_freed()
