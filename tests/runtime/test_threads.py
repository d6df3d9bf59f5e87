"""The governor: the cores that others leave, whatever the machine."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime import threads
from dgpt2_quant.runtime.threads import Governor, check_threads, make_governor


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look comes five milliseconds after the one before."""
    now = iter(range(10**6))
    monkeypatch.setattr(threads, "time", type("Clock", (), {"perf_counter": staticmethod(lambda: next(now) * 0.005)}))


def governor(seen: list[int | None], *, most: int = 2, cores: int = 2) -> Governor:
    """Of a machine on which that many tasks run at each look; the last number stays."""
    looks: Iterator[int | None] = iter(seen)
    last: list[int | None] = [None]

    def running() -> int | None:
        last[0] = next(looks, last[0])
        return last[0]

    return Governor(most, cores, running)


def after(found: Governor, looks: int) -> list[int]:
    numbers = []
    for _ in range(looks):
        found.look(found.threads)
        numbers.append(found.threads)
    return numbers


def test_an_idle_machine_is_used_whole() -> None:
    assert after(governor([1, 2]), 20) == [2] * 20


@pytest.mark.parametrize(("busy", "expected"), [(1, 1), (2, 2), (9, 2)])
def test_a_text_begins_with_what_others_leave(busy: int, expected: int) -> None:
    assert governor([1 + busy]).threads == expected


def test_a_load_is_noticed_within_two_steps_and_so_is_its_end() -> None:
    assert after(governor([1, 2, 2, 3, 3, 2, 2, 1, 1, 2, 2]), 10) == [2, 2, 2, 1, 1, 1, 1, 2, 2, 2]


def test_a_task_that_runs_for_a_moment_changes_nothing() -> None:
    assert after(governor([1, 2, 3, 2, 2, 2, 3, 2]), 10) == [2] * 10


def test_where_no_core_is_left_a_step_that_stalls_ends_sharing_for_a_while() -> None:
    found = governor([3, 4])
    assert found.threads == 2
    for seconds in (0.005, 0.006, 0.005):
        found.look(2, seconds)
    assert found.threads == 2
    found.look(2, 0.05)
    assert found.threads == 1
    found._running = lambda: 3  # type: ignore[method-assign]
    numbers = []
    for _ in range(420):  # each five milliseconds later
        found.look(found.threads, 0.005)
        numbers.append(found.threads)
    assert numbers[:390] == [1] * 390
    assert 2 in numbers[390:]


def test_tasks_may_run_on_cores_outside_the_affinity() -> None:
    assert governor([1 + 30], most=4, cores=64).threads == 4
    assert governor([1 + 62], most=4, cores=64).threads == 2


def test_an_unknown_load_uses_all_cores() -> None:
    assert after(governor([None], most=8, cores=8), 3) == [8] * 3


def test_one_core_is_one_core() -> None:
    assert after(governor([5], most=1), 3) == [1] * 3


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_busy_processes_are_seen() -> None:
    cores = os.cpu_count() or 1
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        deadline = time.monotonic() + 20
        while Governor(2, cores)._others < cores:  # until all have started
            assert time.monotonic() < deadline
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


class TestNumbers:
    def test_a_fixed_number_stays(self) -> None:
        fixed = make_governor(3)
        fixed.look(3)
        assert fixed.threads == 3
        assert make_governor("auto").threads >= 1

    @pytest.mark.parametrize("number", [1, 512, "auto"])
    def test_allowed_numbers(self, number: int) -> None:
        assert check_threads(number) == number

    @pytest.mark.parametrize("number", [0, -1, 513, 2.0, True, "2", None])
    def test_numbers_out_of_range(self, number: int) -> None:
        with pytest.raises(UsageError, match=f'`threads` must be 1-512 or "auto", not {number!r}'):
            check_threads(number)
