"""A conversion that is killed continues when it runs again, and writes the same bytes."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dgpt2_quant.quantize.store.cache_entries import cache_entries

from ...checkpoints import make_checkpoint

# Converts, and ends like a power cut at the step whose number is given; prints the steps.
CHILD = """
import os, sys
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.core import scratch
from dgpt2_quant.quantize.lean import fisher
fisher.KEPT_BYTES = scratch.SAVE_EVERY = 0  # as a large model, which takes long
model, text, output, last = sys.argv[1:]
steps = []

def progress(done, total, what):
    steps.append(what)
    print(what, flush=True)
    if len(steps) == int(last):
        os.kill(os.getpid(), 9)

convert(model, type=["q4_0", "q5_0"], recipe="lean", calibrate=text, output=output, progress=progress)
"""


@pytest.mark.slow
def test_a_killed_conversion_continues_with_the_same_bytes(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "tiny", layers=3, width=64, inner=64, context=32)
    text = tmp_path / "text.txt"
    text.write_text("".join(np.random.default_rng(0).choice(list("0123456789 "), 24 * 32)))
    arguments = [str(model), str(text), str(tmp_path / "out")]

    def run(last: int) -> list[str]:
        """The steps that compute."""
        command = [sys.executable, "-c", CHILD, *arguments, str(last)]
        child = subprocess.run(command, capture_output=True, text=True, check=False)
        assert child.returncode == (-9 if last else 0), child.stderr
        steps = child.stdout.split("\n")
        return [step for step in steps if re.fullmatch(r"gradients|importance.*|blk\.\d\.\w+", step)]

    whole = run(0)
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (tmp_path / "out").iterdir()}
    assert not cache_entries()
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    # after the importance, in the gradients, in the first file, and in the second after the first, with 38 tensors
    for last in (28, 4, 9, 5, 38 + 20, 38 + 4):
        run(last)
        assert list((tmp_path / "out").iterdir()) == []
    rest = run(0)
    assert {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / "out").iterdir()} == hashes
    assert whole.count("gradients") == whole.index("blk.0.attn_qkv") - 24 == 12
    assert 0 < len(rest) < 12  # of the second file's matrices
    assert rest == whole[-len(rest) :]
    assert not cache_entries()
