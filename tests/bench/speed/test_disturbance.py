"""Disturbance, by a made /proc where every number is known, and by neighbours that are really there."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dgpt2_quant.bench.speed import disturbance
from dgpt2_quant.bench.speed.disturbance import OTHERS, WAITED, Usage, Watch, any_disturbed

CORES = os.cpu_count() or 1
TICK = 1 / os.sysconf("SC_CLK_TCK")
UNKNOWN = Usage(1.0, None, 1.0, None)


class Proc:
    """A folder like /proc."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.thread(1, 5_000_000_000, 1_000_000_000)
        self.thread(2, 4_000_000_000, 2_000_000_000)
        self.busy(0)

    def thread(self, number: int, ran: int, waited: int) -> None:
        folder = self.folder / "self" / "task" / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "schedstat").write_text(f"{ran} {waited} 77\n")

    def busy(self, ticks: int, steal: int = 0) -> None:
        # user nice system idle iowait irq softirq steal guest guest_nice
        (self.folder / "stat").write_text(f"cpu  {1000 + ticks} 10 200 99999 50 3 4 {20 + steal} 0 0\ncpu0 1 2 3\n")


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[float]:
    """A block takes ten seconds, and one second of our CPU time, where the test does not look at the real machine."""
    now = [0.0]
    if "proc" in request.fixturenames:
        monkeypatch.setattr(disturbance.time, "perf_counter", lambda: now[0])
        monkeypatch.setattr(disturbance, "own_cpu_seconds", lambda: now[0] / 10)
    return now


def watch(proc: Proc, clock: list[float], threads: int = 2) -> Watch:
    watch = Watch(threads, proc.folder)
    watch.__enter__()
    clock[0] += 10
    return watch


def test_usage_of_a_block(proc: Proc, clock: list[float]) -> None:
    block = watch(proc, clock)
    proc.thread(1, 9_000_000_000, 1_250_000_000)
    proc.thread(2, 9_000_000_000, 2_500_000_000)
    proc.thread(3, 1_000_000_000, 125_000_000)  # began in the block
    proc.busy(round(4 / TICK), steal=round(0.5 / TICK))
    block.__exit__()
    usage = block.usage
    assert usage.asked == 20
    assert usage.waited == pytest.approx(0.875)
    assert usage.available == 10 * CORES
    assert usage.others == pytest.approx(4.5 - 1)  # less our own


def test_ended_threads_are_ignored(proc: Proc, clock: list[float]) -> None:
    block = watch(proc, clock)
    gone = proc.folder / "self" / "task" / "2"
    (gone / "schedstat").unlink()
    gone.rmdir()
    proc.thread(1, 6_000_000_000, 1_500_000_000)
    block.__exit__()
    assert block.usage.waited == pytest.approx(0.5)


@pytest.mark.parametrize("broken", ["absent", "zeros", "garbage"])
def test_waiting_is_unknown_where_the_kernel_does_not_count_it(proc: Proc, clock: list[float], broken: str) -> None:
    for number in (1, 2):
        if broken == "absent":
            (proc.folder / "self" / "task" / str(number) / "schedstat").unlink()
        elif broken == "zeros":
            proc.thread(number, 0, 0)
        else:
            (proc.folder / "self" / "task" / str(number) / "schedstat").write_text("many\n")
    block = watch(proc, clock)
    block.__exit__()
    assert block.usage.waited is None
    assert block.usage.others is not None


def test_nothing_is_known_without_proc(tmp_path: Path) -> None:
    with Watch(2, tmp_path) as block:
        pass
    assert (block.usage.waited, block.usage.others, block.usage.disturbed) == (None, None, None)


@pytest.mark.parametrize(
    ("usage", "disturbed"),
    [
        (Usage(10, 0.0, 10, 0.0), False),
        (Usage(10, 10 * WAITED - 0.01, 10, 10 * OTHERS - 0.01), False),
        (Usage(10, 10 * WAITED + 0.01, 10, 0.0), True),
        (Usage(10, 0.0, 10, 10 * OTHERS + CORES * TICK + 0.01), True),
        (Usage(10, 10 * WAITED + 0.01, 10, None), True),
        (Usage(10, None, 10, 0.0), False),
        (Usage(0.1, 0.0, 0.1, 0.1 * OTHERS + 0.9 * CORES * TICK), False),  # the error of the ticks
        (Usage(10, 0.0, 10, -0.3), False),  # which goes both ways
        (UNKNOWN, None),
    ],
)
def test_limits(usage: Usage, disturbed: bool | None) -> None:
    assert usage.disturbed is disturbed


def test_short_blocks_are_added_up() -> None:
    short = Usage(0.2, 0.0, 0.1, 0.1 * 2 * OTHERS)
    assert short.disturbed is False
    assert any_disturbed([short]) is False
    assert any_disturbed([short] * math.ceil(20 * CORES)) is True


def test_several_blocks() -> None:
    quiet, loud = Usage(1, 0, 1, 0), Usage(1, 0.5, 1, 0)
    assert any_disturbed([quiet, quiet]) is False
    assert any_disturbed([quiet] * 100 + [loud]) is True  # though all together were quiet
    assert any_disturbed([quiet, UNKNOWN]) is None
    assert any_disturbed([loud, UNKNOWN]) is True
    assert any_disturbed([UNKNOWN]) is None
    assert any_disturbed([]) is None


@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="the system does not report waiting times")
def test_real_neighbours() -> None:
    neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3 * CORES)]
    try:
        with Watch(1) as block:
            end = time.perf_counter() + 0.5
            while time.perf_counter() < end:
                pass
    finally:
        for neighbour in neighbours:
            neighbour.kill()
        for neighbour in neighbours:
            neighbour.wait()
    usage = block.usage
    assert usage.waited is not None
    assert usage.waited > WAITED * usage.asked
    assert usage.waited < usage.asked * 1.1
    assert usage.disturbed is True


def test_our_own_cpu_time_is_not_that_of_others(tmp_path: Path) -> None:
    proc = Proc(tmp_path)  # as if nobody had used anything
    work = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    with Watch(1, proc.folder) as block:
        exec(work)
        subprocess.run([sys.executable, "-c", work], check=True)
    assert block.usage.others is not None
    assert -5 < block.usage.others < -0.6
