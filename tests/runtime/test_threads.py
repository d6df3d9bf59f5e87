"""The governor on machines that are made up: how soon it finds the number of threads that is best at the moment."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from dgpt2_quant.quantize.errors import UsageError
from dgpt2_quant.runtime import Model
from dgpt2_quant.runtime.threads import Fixed, Governor, check_threads, make_governor

Machine = Callable[[int, float], float]
"""Seconds that a step takes with so many threads at a time."""


class Run:
    """Steps on a machine, by a clock of its own."""

    def __init__(self, most: int, machine: Machine, *, noise: float = 0, seed: int = 0) -> None:
        self.now = 0.0
        self.governor = Governor(most, lambda: self.now)
        self.machine = machine
        self.history: list[tuple[float, int, float]] = []  # (time at its end, threads, seconds) of each step
        self._noise = noise
        self._random = random.Random(seed)

    def until(self, end: float, rows: Callable[[int], int] = lambda step: 1) -> None:
        while self.now < end:
            threads, count = self.governor.threads, rows(len(self.history))
            assert 1 <= threads <= self.governor._most
            seconds = self.machine(threads, self.now) * count * (1 + self._noise * self._random.uniform(-1, 1))
            self.now += seconds
            self.governor.observe(count, seconds)
            self.history.append((self.now, threads, seconds))

    def share(self, threads: int, begin: float, end: float) -> float:
        """Of the time between the two, how much was spent with that number of threads."""
        steps = [step for step in self.history if begin <= step[0] < end]
        return sum(seconds for _, number, seconds in steps if number == threads) / sum(step[2] for step in steps)

    def speed(self, begin: float, end: float) -> float:
        """Steps in a second."""
        return sum(begin <= at < end for at, _, _ in self.history) / (end - begin)


def idle(threads: int, _now: float) -> float:
    return 0.0004 + 0.002 / threads


def busy(threads: int, _now: float) -> float:
    """Somebody else has a core: with all of them a step waits for a time slice."""
    return idle(threads, 0) if threads == 1 else 0.009


def peaked(best: int) -> Machine:
    """Many cores, of which the slow ones, or the memory, set an optimum in the middle."""
    return lambda threads, _now: 0.001 * (best / threads + threads / best)


class TestTwoCores:
    def test_an_idle_machine_is_used_whole(self) -> None:
        run = Run(2, idle)
        run.until(20)
        assert run.share(2, 0, 20) > 0.97
        assert run.speed(0, 20) > 0.97 / idle(2, 0)

    def test_a_collapse_is_noticed_at_once(self) -> None:
        run = Run(2, lambda threads, now: busy(threads, now) if now > 5 else idle(threads, now))
        run.until(15)
        assert run.share(2, 0, 5) > 0.97
        assert min(at for at, threads, _ in run.history if at > 5.05 and threads == 1) < 5.2
        assert run.share(1, 5.2, 5.6) > 0.8
        assert run.share(1, 5.2, 15) > 0.9
        assert run.speed(5.2, 15) > 0.9 / busy(1, 0)

    def test_the_end_of_the_load_is_noticed_too(self) -> None:
        run = Run(2, lambda threads, now: busy(threads, now) if 2 < now < 8 else idle(threads, now))
        run.until(20)
        assert run.share(1, 2.2, 8) > 0.9
        assert run.share(2, 10, 20) > 0.97

    def test_busy_from_the_beginning(self) -> None:
        run = Run(2, busy)
        run.until(10)
        assert run.share(1, 0.3, 10) > 0.9

    def test_a_load_that_comes_and_goes(self) -> None:
        def machine(threads: int, now: float) -> float:
            return busy(threads, now) if int(now) % 6 >= 3 else idle(threads, now)

        run = Run(2, machine)
        run.until(60)
        best = (1 / idle(2, 0) + 1 / busy(1, 0)) / 2
        assert run.speed(0, 60) > 0.85 * best


class TestManyCores:
    @pytest.mark.parametrize("best", [1, 3, 6, 11, 14, 16])
    def test_it_climbs_to_the_best_number(self, best: int) -> None:
        run = Run(16, peaked(best))
        run.until(30)
        assert run.speed(10, 30) > 0.9 / run.machine(best, 0)

    @pytest.mark.parametrize("most", [4, 32, 64])
    def test_on_machines_of_other_sizes(self, most: int) -> None:
        run = Run(most, idle)
        run.until(20)
        assert run.speed(0, 20) > 0.9 / idle(most, 0)

    def test_the_best_number_moves(self) -> None:
        run = Run(16, lambda threads, now: peaked(14 if now < 20 else 5)(threads, now))
        run.until(60)
        assert run.speed(10, 20) > 0.9 / peaked(14)(14, 0)
        assert run.speed(30, 60) > 0.9 / peaked(5)(5, 0)


class TestNoise:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize(("most", "machine", "best"), [(2, idle, 2), (2, busy, 1), (16, peaked(11), 11)])
    def test_steps_of_uneven_length(self, most: int, machine: Machine, best: int, seed: int) -> None:
        run = Run(most, machine, noise=0.2, seed=seed)
        run.until(60)
        assert run.speed(10, 60) > 0.9 / machine(best, 0)

    def test_a_context_that_grows(self) -> None:
        run = Run(2, lambda threads, now: idle(threads, now) * (1 + now / 10))
        run.until(20)
        assert run.share(2, 0, 20) > 0.95

    @pytest.mark.parametrize("most", [2, 16])
    def test_steps_whose_rows_change(self, most: int) -> None:
        run = Run(most, idle, noise=0.1)
        run.until(10, rows=lambda step: 1 + step % 8)  # never two alike behind each other
        assert run.share(most, 0, 10) > 0.9
        run.until(30, rows=lambda step: 1 + step // 50 % 8)
        assert run.share(most, 10, 30) > 0.9

    @pytest.mark.parametrize("rows", [lambda step: 1 + 3 * (step % 2), lambda step: 4 if step % 7 > 4 else 1])
    def test_a_collapse_while_rows_come_and_go(self, rows: Callable[[int], int]) -> None:
        run = Run(2, lambda threads, now: busy(threads, now) if 5 < now < 10 else idle(threads, now), noise=0.1)
        run.until(20, rows)
        assert run.share(2, 0, 5) > 0.95
        assert run.share(1, 5.5, 10) > 0.85
        assert run.share(2, 12, 20) > 0.95

    def test_a_busy_machine_with_a_batch_that_shrinks(self) -> None:
        run = Run(2, busy)
        run.until(20, rows=lambda step: max(1, 8 - step // 100 % 8))
        assert run.share(1, 1, 20) > 0.8

    @pytest.mark.parametrize("seconds", [0.0, 1e-9, 5.0, 1e6])
    def test_steps_of_any_length(self, seconds: float) -> None:
        governor = Governor(4, lambda: 0.0)
        for step in range(2000):
            governor.observe(1 + step % 3 // 2, seconds)
            assert 1 <= governor.threads <= 4


class TestNumbers:
    def test_one_core_is_one_core(self) -> None:
        run = Run(1, busy, noise=0.5)
        run.until(2)
        assert {threads for _, threads, _ in run.history} == {1}

    def test_a_fixed_number_stays(self) -> None:
        fixed = Fixed(3)
        for _ in range(100):
            fixed.observe(1, 1.0)
        assert fixed.threads == 3
        assert make_governor(5).threads == 5
        assert make_governor("auto").threads >= 1

    @pytest.mark.parametrize("threads", [1, 512, "auto"])
    def test_possible_numbers(self, threads: int) -> None:
        check_threads(threads)  # type: ignore[arg-type]

    @pytest.mark.parametrize("threads", [0, -1, 513, 2.0, True, "2", None])
    def test_impossible_numbers(self, threads: int) -> None:
        with pytest.raises(UsageError, match=f"{threads} threads were asked for; 1 to 512 are possible, or auto"):
            check_threads(threads)


def test_steps_in_which_the_cache_is_carried_are_not_told(short_files: dict[str, Path]) -> None:
    with Model.load(short_files["Q4_0"], threads="auto") as model:
        told: list[int] = []
        model._single.governor = SimpleNamespace(threads=1, observe=lambda rows, seconds: told.append(rows))  # type: ignore[assignment]
        generation = model.stream("Once", max_tokens=300, ignore_eos=True)
        for _ in generation:
            pass
        assert len(told) == generation.timing.decoded - 2  # to the far context, and from 256 cells to 512
