"""Threads beside which Ctrl-C is pressed just when a lock has been taken, which is when others would wait for ever."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from dgpt2_quant.quantize.workers import Workers, result_of

from .checkpoints import make_checkpoint

# Calls `work` again and again, and interrupts it at the first lock that the main thread takes, the second, ... until it
# comes to its end. Says how often it was interrupted.
PROGRAM = """
import faulthandler, os, signal, sys, threading
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.parallel import ahead, calculating, in_parallel
from dgpt2_quant.quantize.workers import Workers, result_of
from dgpt2_quant.runtime import Model, Scheduler

signal.signal(signal.SIGINT, signal.default_int_handler)
enter, main, moment, taken = threading.Condition.__enter__, threading.get_ident(), 0, 0

def entered(condition):
    global taken
    result = enter(condition)
    if threading.get_ident() == main:
        taken += 1
        if taken == moment:
            os.kill(os.getpid(), signal.SIGINT)
    return result

threading.Condition.__enter__ = entered
interrupted = 0
while True:
    moment, taken = moment + {step}, 0
    faulthandler.dump_traceback_later(30, exit=True)  # where it hangs
    try:
        {work}
    except KeyboardInterrupt:
        interrupted += 1
    else:
        assert taken < moment, "it was not heard"
        break
print(interrupted)
"""
BESIDE = """
        with calculating(2):
            assert [*in_parallel(abs, range(9))] == [*range(9)]
            assert [*ahead(iter(range(9)))] == [*range(9)]
            with Workers(1) as workers:
                assert result_of(workers.submit(abs, -1)) == 1
"""


def interrupted(work: str, *arguments: str | Path, step: int = 1) -> int:
    program = PROGRAM.replace("{work}", work.strip()).replace("{step}", str(step))
    child = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return int(child.stdout)


def test_an_interrupt_at_any_lock_is_heard_and_nothing_hangs() -> None:
    assert interrupted(BESIDE) > 30


def test_a_conversion_interrupted_at_any_lock_ends(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", layers=1)
    work = "convert(sys.argv[1], type='q8_0', output=sys.argv[2], overwrite=True)"
    assert interrupted(work, model, tmp_path / "it.gguf", step=7) > 10


def test_requests_interrupted_at_any_lock_end(short_files: dict[str, Path]) -> None:
    """There are few: a scheduler enters no conditions but by their locks."""
    work = """
        with Model.load(sys.argv[1], threads=1) as model, Scheduler(model, parallel=2) as scheduler:
            tickets = [scheduler.submit("The king", max_tokens=5) for _ in range(3)]
            assert [event.text for event in tickets[0]]
            assert [ticket.result().tokens for ticket in tickets] == [5, 5, 5]
            tickets[0].cancel()
            assert scheduler.stats.finished == 3
    """
    assert interrupted(work, short_files["Q4_0"]) > 0


def test_results_are_those_of_the_functions_in_their_order() -> None:
    def fail(number: int) -> int:
        if number == 3:
            raise TimeoutError("its own")
        return -number

    with Workers(3) as workers:
        assert [*workers.map(abs, [-1, 2, -3])] == [1, 2, 3]
        found = workers.map(fail, range(9))
        assert [next(found) for _ in range(3)] == [0, -1, -2]
        with pytest.raises(TimeoutError, match="its own"):
            next(found)
        assert result_of(workers.submit(lambda: time.sleep(0.25) or 5)) == 5  # longer than it waits at once
