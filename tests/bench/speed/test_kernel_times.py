"""What matrices cost: found again from files whose answer is known, kept, and measured for real on a tiny model."""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import sin
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.bench.speed import kernel_times, mix_turns
from dgpt2_quant.bench.speed.kernel_times import TimeModel, token_times
from dgpt2_quant.bench.speed.mix_fit import Costs, fit_costs, make_mixes
from dgpt2_quant.bench.speed.mix_turns import Turns, time_mixes
from dgpt2_quant.bench.speed.mixes import Entry, Mix, MixWriter, kinds_of
from dgpt2_quant.core.errors import ResultError, UsageError
from dgpt2_quant.core.gguf_file import read_header, tensor_bytes
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model

from ...quantize.checkpoints import make_checkpoint

SMALL = Hyperparameters(4, 256, 8, 1024, 64, 2000, 1e-5)
TINY = Hyperparameters(2, 64, 2, 256, 1, 301, 1e-5)
TYPES = (TensorType.Q2_K, TensorType.Q4_0, TensorType.Q4_K, TensorType.Q6_K, TensorType.F16)
FIXED = 40e-6


def true_cost(entry: Entry) -> float:
    """Seconds that follow from nothing but the entry: a rate of the type, and up to a fifth more or less by shape."""
    shape, tensor_type = entry
    rate = 20e-12 * (1 + tensor_type % 5)
    return rate * tensor_bytes(shape, tensor_type) * (1 + 0.2 * sin(sum(shape) + 7 * tensor_type))


class KnownTimer:
    """A machine whose costs are known, with noise of that relative size; the first `disturbed` of all files are."""

    def __init__(self, noise: float = 0.0, disturbed: float = 0.0) -> None:
        self.calls = 0
        self.mixes: list[Mix] = []
        self._noise = noise
        self._disturbed = disturbed
        self._rng = np.random.default_rng(1)

    def seconds(self, mix: Mix) -> float:
        least = mix.sizes.vocabulary == 64
        return FIXED + sum(0 if least else count * true_cost(entry) for entry, count in mix.entries().items())

    def __call__(
        self, base: Mix, mixes: Sequence[Mix], *, threads: int, seconds: float, progress: Progress | None = None
    ) -> list[Turns]:
        self.calls += 1
        self.mixes = list(mixes)
        return [self._turns(base, mix, index / len(mixes)) for index, mix in enumerate(mixes)]

    def _turns(self, base: Mix, mix: Mix, place: float) -> Turns:
        if place < self._disturbed:  # all take the same time there, as where threads wait for one another
            return Turns((1.0,) * 8, (10 * self.seconds(base),) * 8, True)
        noise = 1 + self._noise * self._rng.standard_normal(8)
        ratio = self.seconds(mix) / self.seconds(base)
        return Turns(tuple((ratio * noise).tolist()), (self.seconds(base),) * 8, False)


def test_a_search_takes_them_as_documented(tmp_path: Path) -> None:
    """`convert(measure_times=token_times)`, which gives what is called for each matrix."""
    model = make_checkpoint(tmp_path / "tiny", layers=1, width=64, context=32, vocabulary=300)
    options: Any = {"target_bpw": 7.0, "prefer": "speed", "calibrate": "sampled"}
    timer = KnownTimer()
    (file,) = convert(
        str(model), output=tmp_path / "it.gguf", measure_times=partial(token_times, timer=timer, threads=1), **options
    )
    assert timer.calls == 1
    assert file.bits_per_weight <= 7.0


def plan_error(model: TimeModel, sizes: Hyperparameters, types: Sequence[TensorType]) -> float:
    """The largest relative error over random plans whose layers have other types each."""
    rng, shapes = np.random.default_rng(2), replace(sizes, vocabulary=-(-sizes.vocabulary // 8) * 8).shapes()
    errors = []
    for _ in range(50):
        plan = {name: types[rng.integers(len(types))] for name in shapes}
        costs = [true_cost((shapes[name], plan[name])) for name in shapes if _is_matrix(name, shapes[name])]
        errors.append(abs(model.seconds(shapes, plan) / (FIXED + sum(costs)) - 1))
    return max(errors)


def _is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and name != "position_embd.weight"


def test_costs_are_found_again_where_nothing_is_noisy() -> None:
    timer = KnownTimer()
    model = token_times(SMALL, TYPES, threads=1, timer=timer)
    assert model.fixed == pytest.approx(FIXED, rel=1e-6)
    assert plan_error(model, SMALL, TYPES) < 0.01
    found = {(entry.shape, entry.type) for entry in model.entries}
    assert found == {(shape, own) for shape in kinds_of(replace(SMALL, vocabulary=2000)).values() for own in TYPES}
    changes = [
        (model(shape, TensorType.F16) - model(shape, TensorType.Q2_K))
        / (true_cost((shape, TensorType.F16)) - true_cost((shape, TensorType.Q2_K)))
        for shape in kinds_of(SMALL).values()
    ]
    assert changes == pytest.approx([1] * 5, abs=0.15)


def test_noise_makes_sums_a_little_worse_and_is_told() -> None:
    quiet, noisy = (token_times(SMALL, TYPES, threads=1, cache=False, timer=KnownTimer(n)) for n in (0.002, 0.05))
    assert plan_error(noisy, SMALL, TYPES) < 0.05
    assert quiet.noise < 0.003 < 0.01 < noisy.noise < 0.05
    assert quiet.misfit < 0.01
    assert all(entry.seconds >= 0 for entry in noisy.entries)
    assert sum(e.spread for e in quiet.entries) < sum(e.spread for e in noisy.entries)


def test_noise_beyond_measure_leaves_costs_by_bytes() -> None:
    model = token_times(SMALL, TYPES, threads=1, cache=False, timer=KnownTimer(1.0))
    assert min(entry.seconds for entry in model.entries) > 0
    assert plan_error(model, SMALL, TYPES) < 0.3
    for own in TYPES:
        rates = [entry.seconds / tensor_bytes(entry.shape, own) for entry in model.entries if entry.type is own]
        assert max(rates) < 1.35 * min(rates)  # the true ones differ by up to half


@pytest.mark.parametrize(("share", "error"), [(0.3, 0.03), (0.6, 0.1)])
def test_files_that_were_disturbed_count_little_beside_others(share: float, error: float) -> None:
    model = token_times(SMALL, TYPES, threads=1, cache=False, timer=KnownTimer(0.002, disturbed=share))
    assert model.disturbed == pytest.approx(share, abs=0.1)
    assert model.fixed == pytest.approx(FIXED, rel=0.01)
    assert plan_error(model, SMALL, TYPES) < error
    assert model.misfit < 0.03


def known_fit(change: Callable[[Mix], float]) -> Costs:
    """From times that the machine would have, each changed by a factor, that are said to be all but exact."""
    mixes, timer = make_mixes(SMALL, dict.fromkeys(kinds_of(SMALL), TYPES)), KnownTimer()
    return fit_costs(mixes, [change(mix) * timer.seconds(mix) for mix in mixes], [1e-9] * len(mixes), FIXED)


def test_no_matrix_is_free_of_cost() -> None:
    def without_one_type(mix: Mix) -> float:
        costs = [count * true_cost(entry) for entry, count in mix.entries().items() if entry[1] is TensorType.Q2_K]
        return 1 - sum(costs) / KnownTimer().seconds(mix)

    found = known_fit(without_one_type).seconds
    assert min(found[entry] / true_cost(entry) for entry in found if entry[1] is TensorType.Q2_K) > 0.1


def test_files_that_fit_no_sum_are_less_sure_than_they_are_said_to_be() -> None:
    rng = np.random.default_rng(3)
    sure, unsure = known_fit(lambda _: 1.0), known_fit(lambda _: 1 + 0.2 * rng.standard_normal())
    assert sum(unsure.spread.values()) > 2 * sum(sure.spread.values())
    assert unsure.misfit > 0.05 > 0.01 > sure.misfit


def test_each_type_is_as_often_in_each_kind_of_matrix() -> None:
    timer = KnownTimer()
    token_times(SMALL, TYPES, threads=1, timer=timer)
    for kind in kinds_of(SMALL):
        counts = [sum(mix.types[kind] is own for mix in timer.mixes if mix.sizes.width == 256) for own in TYPES]
        assert max(counts) - min(counts) <= 1
        assert min(counts) >= 4


def test_a_type_that_does_not_fit_the_rows_is_left_out() -> None:
    sizes = Hyperparameters(2, 160, 4, 512, 64, 300, 1e-5)
    model = token_times(sizes, [TensorType.Q4_K, TensorType.Q4_0], threads=1, timer=KnownTimer())
    assert model((160, 512), TensorType.Q4_K) > 0
    assert model((512, 160), TensorType.Q4_0) > 0
    with pytest.raises(UsageError, match=r"\[512, 160\] in Q4_K"):
        model((512, 160), TensorType.Q4_K)
    only = token_times(sizes, [TensorType.Q4_K], threads=1, timer=KnownTimer())
    assert only((512, 160), TensorType.F16) > 0


def test_the_vocabulary_is_padded_and_either_size_is_known() -> None:
    model = token_times(replace(SMALL, vocabulary=2001), TYPES, threads=1, timer=KnownTimer())
    assert model((2001, 256), TensorType.Q4_0) == model((2008, 256), TensorType.Q4_0)


def test_what_is_looked_up_costs_nothing() -> None:
    model = token_times(SMALL, TYPES, threads=1, timer=KnownTimer())
    tied, untied = SMALL.shapes(), SMALL.shapes(tied=False)
    types = dict.fromkeys(untied, TensorType.Q4_0)
    other = {**types, "token_embd.weight": TensorType.Q8_0, "position_embd.weight": TensorType.F32}
    assert model.seconds(untied, other) == pytest.approx(model.seconds(tied, types))


def test_a_large_model_is_timed_with_fewer_layers() -> None:
    sizes = Hyperparameters(24, 1024, 16, 4096, 1024, 50257, 1e-5)
    timer = KnownTimer()
    model = token_times(sizes, [TensorType.Q4_0, TensorType.Q8_0], threads=1, timer=timer)
    assert {mix.sizes.layers for mix in timer.mixes} == {3}
    assert model.fixed == pytest.approx(8 * FIXED)


@pytest.mark.parametrize(("types", "threads"), [([], 1), (TYPES, 0)])
def test_nothing_to_measure_or_to_measure_with(types: Sequence[TensorType], threads: int) -> None:
    with pytest.raises(UsageError):
        token_times(SMALL, types, threads=threads, timer=KnownTimer())


def kept() -> list[Path]:
    return sorted((kernel_times.cache_folder() / "times").glob("*"))


def test_the_second_time_nothing_is_timed() -> None:
    timer = KnownTimer(0.01)
    first = token_times(SMALL, TYPES, threads=1, timer=timer)
    alike = replace(SMALL, vocabulary=1999, context=1024)
    assert token_times(alike, TYPES[::-1], threads=1, timer=timer) == first
    assert (timer.calls, len(kept())) == (1, 1)
    token_times(SMALL, TYPES, threads=1, cache=False, timer=timer)
    assert (timer.calls, len(kept())) == (2, 1)


@pytest.mark.parametrize(
    "other",
    [{"threads": 2}, {"types": TYPES[:3]}, {"sizes": replace(SMALL, layers=3)}],
    ids=["threads", "types", "sizes"],
)
def test_what_decides_the_times_is_in_the_key(other: dict[str, Any]) -> None:
    timer, usual = KnownTimer(), {"sizes": SMALL, "types": TYPES, "threads": 1}
    token_times(**usual, timer=timer)
    token_times(**{**usual, **other}, timer=timer)
    assert (timer.calls, len(kept())) == (2, 2)


@pytest.mark.parametrize("function", ["cpu_name", "_instruction_sets", "version"])
def test_another_machine_or_version_is_measured_anew(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    timer = KnownTimer()
    token_times(SMALL, TYPES, threads=1, timer=timer)
    monkeypatch.setattr(kernel_times, function, lambda *_: "another")
    token_times(SMALL, TYPES, threads=1, timer=timer)
    assert timer.calls == 2


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'{"entries": [{"shape": 3}]}'])
def test_a_broken_file_is_measured_again(content: bytes) -> None:
    timer = KnownTimer()
    first = token_times(SMALL, TYPES, threads=1, timer=timer)
    kept()[0].write_bytes(content)
    assert token_times(SMALL, TYPES, threads=1, timer=timer) == first
    assert timer.calls == 2
    assert TimeModel.from_json(json.loads(kept()[0].read_bytes())) == first


def test_what_was_measured_on_a_busy_machine_is_not_kept() -> None:
    token_times(SMALL, TYPES, threads=1, timer=KnownTimer(disturbed=1.0))
    assert not kept()


def test_json_there_and_back() -> None:
    model = token_times(SMALL, TYPES, threads=1, cache=False, timer=KnownTimer(0.01))
    assert TimeModel.from_json(json.loads(json.dumps(model.to_json()))) == model


@pytest.mark.parametrize("change", [{"fixed": None}, {"fixed": -1.0}, {"noise": "much"}, {"entries": 3}])
def test_json_of_something_else_is_refused(change: dict[str, Any]) -> None:
    document = token_times(SMALL, TYPES, threads=1, timer=KnownTimer()).to_json()
    with pytest.raises(ResultError, match="no time model"):
        TimeModel.from_json({**document, **change})


def test_a_mix_is_a_file_that_runs(tmp_path: Path) -> None:
    sizes = Hyperparameters(2, 256, 4, 256, 64, 304, 1e-5)
    mix = Mix(sizes, dict(zip(kinds_of(sizes), TYPES, strict=True)))
    MixWriter().write(mix, tmp_path / "mix.gguf")
    tensors = read_header(tmp_path / "mix.gguf").tensors
    assert {name: tensor.type for name, tensor in tensors.items()} == mix.tensor_types()
    assert {own for _, own in mix.entries()} == set(TYPES)
    with Model.load(tmp_path / "mix.gguf", threads=1) as model:
        pieces = list(model.stream([1], max_tokens=9, temperature=0, ignore_eos=True))
    assert len(pieces) == 9


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_a_tiny_model_is_measured_and_nothing_is_left(scratch: Path) -> None:
    types, steps = [TensorType.Q4_0, TensorType.Q8_0, TensorType.F16], []
    model = token_times(TINY, types, threads=1, cache=False, progress=lambda *step: steps.append(step))
    numbers = [model.fixed, model.base_seconds, *(entry.seconds for entry in model.entries)]
    assert all(np.isfinite(numbers))
    assert min(numbers) >= 0
    assert model.fixed > 0
    assert len(model.entries) == 5 * 3
    assert model.seconds(TINY.shapes(), dict.fromkeys(TINY.shapes(), TensorType.Q8_0)) > model.fixed
    assert steps[-1][0] == steps[-1][1]
    assert {what for *_, what in steps} == {"kernel times"}
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("error", [KeyboardInterrupt, UsageError("no")])
def test_nothing_is_left_behind_an_error(scratch: Path, monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
    monkeypatch.setattr(mix_turns, "_turn", lambda *_: (_ for _ in ()).throw(error))
    mix = Mix(replace(TINY, vocabulary=304, context=mix_turns.POSITIONS), dict.fromkeys(kinds_of(TINY), TensorType.F16))
    with pytest.raises((KeyboardInterrupt, UsageError)):
        time_mixes(mix, [mix], threads=1, seconds=1.0)
    assert not list(scratch.iterdir())


def test_where_time_is_short_there_are_fewer_rounds() -> None:
    mix = Mix(replace(TINY, vocabulary=304, context=mix_turns.POSITIONS), dict.fromkeys(kinds_of(TINY), TensorType.F16))
    (short,), (long,) = (time_mixes(mix, [mix], threads=1, seconds=seconds) for seconds in (0.0, 60.0))
    assert len(short.ratios) == mix_turns.LEAST_ROUNDS
    assert len(long.ratios) == len(long.base) == mix_turns.ROUNDS
    assert 0.2 < np.median(long.ratios) < 5


def test_a_machine_that_becomes_slower_favours_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(range(100, 10_000))
    monkeypatch.setattr(mix_turns, "_turn", lambda *_: float(next(seconds)))
    mix = Mix(replace(TINY, vocabulary=304, context=mix_turns.POSITIONS), dict.fromkeys(kinds_of(TINY), TensorType.F16))
    found = time_mixes(mix, [mix] * 4, threads=1, seconds=60.0)
    assert [np.median(file.ratios) for file in found] == pytest.approx([1.0] * 4, abs=0.003)
