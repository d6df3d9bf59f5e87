"""Closing a model returns all of its memory."""

import subprocess
import sys
from pathlib import Path

import pytest
from dgpt2_quant.quantize.convert import convert

from ...checkpoints import make_checkpoint

PROGRAM = """if True:
    import sys
    from dgpt2_quant.runtime import Model, Scheduler

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    def cycle(number):
        with Model.load(sys.argv[1], threads=1) as model:
            model.generate([[1, 2, 3]], max_tokens=3, grammar='root ::= "a"*', logprobs=2)
            if number % 5 == 0:
                model.generate([[1, 2], [3, 4]], max_tokens=3, dry_multiplier=0.8)
                model.score([1, 2, 3])
                model.features([1, 2, 3])
                with Scheduler(model, parallel=2) as scheduler:
                    scheduler.submit([1, 2, 3], max_tokens=3).result(10)

    for number in range(100):
        cycle(number)
    before = resident()
    for number in range(int(sys.argv[2])):
        cycle(number)
    print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not report it")
@pytest.mark.slow
def test_cycles_of_loading_and_closing_leave_nothing(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    (file,) = convert(str(checkpoint), type=["q8_0"], output=tmp_path)
    command = [sys.executable, "-c", PROGRAM, file.path, "4000"]
    child = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert child.returncode == 0, child.stderr
    # in the long run a leak of one kilobyte a cycle would be four megabytes; allocators keep up to three
    assert int(child.stdout) < 4 << 20
