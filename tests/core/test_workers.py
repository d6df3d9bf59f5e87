"""Worker threads that end early: after an error, Ctrl-C at any line, or a failed thread start."""

import _thread
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from dgpt2_quant.core.errors import RuntimeFailure
from dgpt2_quant.core.workers import Cancelled, Workers, check_cancelled, require_threads

from ..checkpoints import make_checkpoint

# Calls `work` again and again, and interrupts it in the main thread at the first line of these files, the second, ...
# until it comes to its end. Prints how often it was interrupted.
PROGRAM = """
import faulthandler, gc, sys, threading
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.core.parallel import calculating, in_parallel
from dgpt2_quant.core.workers import Workers

FILES = ("core/workers.py", "core/parallel.py", "quantize/write.py")
moment = lines = 0

def traced(frame, event, argument):
    global lines
    if not frame.f_code.co_filename.endswith(FILES):
        return None
    lines += event == "line"
    if lines == moment:
        sys.settrace(None)
        raise KeyboardInterrupt  # like a signal handler
    return traced

interrupted = 0
while True:
    moment, lines = moment + {step}, 0
    faulthandler.dump_traceback_later(30, exit=True)  # prints where it hangs
    sys.settrace(traced)
    try:
        {work}
    except KeyboardInterrupt:
        interrupted += 1
    else:
        assert lines < moment, "it was not heard"
        break
    finally:
        sys.settrace(None)
while gc.collect() and len(sys._current_frames()) > 1:  # no thread is left; else the timeout above expires
    pass
print(interrupted)
"""
ALL_OF_IT = """
        with calculating(2):
            assert [*in_parallel(abs, range(9))] == [*range(9)]
            with Workers(1) as workers:
                assert workers.submit(abs, -1).result() == 1
"""


def interrupted(work: str, *arguments: str | Path, step: int = 1) -> int:
    program = PROGRAM.replace("{work}", work.strip()).replace("{step}", str(step))
    child = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return int(child.stdout)


def test_interrupt_at_any_line_does_not_hang() -> None:
    assert interrupted(ALL_OF_IT) > 50


def test_conversion_interrupted_at_any_line_ends(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", layers=1)
    work = "convert(sys.argv[1], type='q8_0', output=sys.argv[2], overwrite=True)"
    assert interrupted(work, model, tmp_path / "it.gguf", step=29) > 10


def test_results_are_in_order() -> None:
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
        job = workers.submit(lambda: 5)
        assert (job.result(), job.result()) == (5, 5)


def test_error_cancels_running_and_drops_waiting_jobs() -> None:
    begun, told = threading.Event(), []

    def long() -> None:
        try:
            while True:
                begun.set()
                check_cancelled()
        except Cancelled:
            told.append("cancelled")
            raise

    jobs = []

    def fail() -> None:
        with Workers(2) as workers:
            jobs.append(workers.submit(long))
            jobs.append(workers.submit(jobs[0].result))  # a job that waits for another one
            jobs.extend(workers.submit(told.append, "begun") for _ in range(9))
            assert begun.wait(20)
            raise ValueError("of the block")

    with pytest.raises(ValueError, match="of the block"):
        fail()
    for job in jobs:
        with pytest.raises(Cancelled):
            job.result()
    assert told == ["cancelled"]


# a stack of 8 GiB for each thread, of 4 GiB in all: no thread can be started, and nothing else fails
NO_THREADS = "ulimit -s 8388608 && ulimit -v 4194304"


@pytest.mark.skipif(sys.platform != "linux", reason="sets the limits of Linux")
@pytest.mark.parametrize("verb", ["run hello -m storybook", "convert storybook -t q8_0", "perplexity -m storybook"])
def test_thread_limit_is_reported(verb: str, tmp_path: Path) -> None:
    program = "import sys; from dgpt2_quant.cli.main import main; sys.exit(main())"
    command = f"{NO_THREADS} && exec {sys.executable} -c '{program}' {verb}"
    child = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert child.returncode == 1, child.stderr
    assert child.stderr.splitlines()[0] == "Error: the system refuses to start another thread"
    assert len(child.stderr.splitlines()) == 2  # the second line is the hint
    assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(sys.platform != "linux", reason="sets the limits of Linux")
@pytest.mark.parametrize("verb", ["run hello -m storybook", "convert storybook -t q8_0"])
def test_memory_limit_is_reported(verb: str, tmp_path: Path) -> None:
    """No traceback, and not "Interrupted.", which OpenBLAS's SIGINT would cause."""
    program = "import sys; from dgpt2_quant.cli.main import main; sys.exit(main())"
    for kilobytes in range(100_000, 400_000, 100_000):
        command = f"ulimit -v {kilobytes} && exec {sys.executable} -c '{program}' {verb}"
        child = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert child.returncode == 1, child.stderr
        assert "Traceback" not in child.stderr
        assert re.search("^(Error: |OpenBLAS error: Memory)", child.stderr, re.MULTILINE)


def test_failed_thread_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def refuse(*arguments: object) -> None:
        started.append(arguments)
        if len(started) % 3 == 0:
            raise RuntimeError("can't start new thread")
        start(*arguments)

    start = _thread.start_new_thread
    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    for attempt in (Workers(3).__enter__, lambda: require_threads(3)):
        with pytest.raises(RuntimeFailure, match="refuses to start another thread") as caught:
            attempt()
        assert "ulimit -u" in caught.value.hint


def target(link: Path) -> str:
    """The target of a link in `/proc`; the file may have been closed meanwhile."""
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return ""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_c_interrupts_hashing(tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model", layers=1, tokenizer="fast")
    large = model / "vocab.json"  # is hashed, but not read without merges.txt
    with large.open("wb") as file:
        file.truncate(1 << 36)  # sparse: takes a minute to hash, and no disk space
    program = "import sys; from dgpt2_quant.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "convert", str(model), "-t", "q8_0", "-o", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as child:
        opened = Path(f"/proc/{child.pid}/fd")
        while child.poll() is None and str(large) not in map(target, opened.iterdir()):
            time.sleep(0.01)
        child.send_signal(2)
        pressed = time.monotonic()
        assert child.stderr is not None
        said = child.stderr.read()
        assert child.wait(20) == 130, said
    assert time.monotonic() - pressed < 2
    assert said == "Interrupted.\n"
    assert not [*(tmp_path / "out").glob("*")]
