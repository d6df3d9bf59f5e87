"""Speed measured in rounds: the order of timings, repetitions, and the results."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.bench.data import open_models as models_module
from dgpt2_quant.bench.document.schema import RateJson
from dgpt2_quant.bench.speed import rounds as speed_module
from dgpt2_quant.bench.speed import timing
from dgpt2_quant.bench.speed.disturbance import Usage
from dgpt2_quant.bench.speed.energy import EnergyMeter
from dgpt2_quant.bench.speed.grid import Grid, Point
from dgpt2_quant.bench.speed.rounds import Speeds, make_prompt, measure_speed
from dgpt2_quant.bench.speed.timing import Sample, time_point, time_text
from dgpt2_quant.core.errors import GGUFError, UsageError
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.runtime import Model
from dgpt2_quant.runtime import sequence as draft

from ...runtime.gguf_edit import rewrite

NONE = Grid.none()
GIVE_UP = timing.give_up_if_disturbed
QUIET, LOUD, UNKNOWN = Usage(1, 0, 1, 0), Usage(1, 0.9, 1, 0), Usage(1, None, 1, None)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times everything once."""
    monkeypatch.setattr(timing, "TEXT_SECONDS", 0.0)
    monkeypatch.setattr(timing, "POINT_SECONDS", 0.0)
    monkeypatch.setattr(
        timing, "give_up_if_disturbed", lambda *_: lambda: False
    )  # also where the tests' machine is busy


class Turns(list[tuple[str, tuple[int, ...]]]):
    """Whose turn it was, and with which prompt. `usages` says what each turn used; quiet is what follows."""

    def __init__(self, usages: Sequence[Usage] = ()) -> None:
        self.usages: Iterator[Usage] = iter(usages)

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> "Turns":
        """Turns take no time, and the n-th one of all has a speed of n tokens per second, half for a prompt."""

        def timed(model: Model, prompt: Sequence[int], *_: Any) -> Sample:
            self.append((str(model.quant_type), tuple(prompt)))
            return Sample(len(self) / 2, len(self), 3.0, next(self.usages, QUIET))

        def point_timed(model: Model, point: Point, prompt: Sequence[int], *_: Any) -> Sample:
            self.append((f"{model.quant_type} {point.measure} {point.batch}", tuple(prompt)))
            return Sample(len(self) / 2, len(self), 3.0, next(self.usages, QUIET))

        monkeypatch.setattr(speed_module, "time_text", timed)
        monkeypatch.setattr(speed_module, "time_point", point_timed)
        return self

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self]


def check(rate: RateJson, rounds: int) -> None:
    assert rate["rounds"] == rounds
    assert 0 < rate["min"] <= rate["median"] <= rate["max"]


def run(files: dict[str, Path], levels: Sequence[str], **options: Any) -> Speeds:
    return measure_speed(files["F32"], [files[level] for level in levels], threads=1, **{"grid": NONE} | options)


def test_a_real_run(short_files: dict[str, Path]) -> None:
    grid = Grid(prompt_sizes=(16,), depths=(300,), batches=(3,), thread_counts=(2,))
    seen: list[Any] = []
    found = run(
        short_files,
        ["Q4_0", "F32"],
        rounds=2,
        grid=grid,
        prompt_tokens=16,
        decode_tokens=8,
        progress=lambda *step: seen.append(step),
    )
    for speed in (found.reference, *found.files):
        for rate in (speed.prompt_tps, speed.decode_tps, speed.prompt_ratio, speed.decode_ratio):
            check(rate, 2)
        for point in speed.points:
            check(point["tps"], 2)
        settings = [tuple(point.values())[:5] for point in speed.points]
        assert settings == [
            ("prompt", 16, 0, 1, 1),
            ("decode", 32, 300, 1, 1),
            ("decode", 32, 0, 3, 1),
            ("decode", 32, 0, 1, 2),
            ("prompt", 128, 0, 1, 2),
        ]
    assert found.files[1] == found.reference
    assert set(found.reference.decode_ratio.values()) == {1.0, 2}
    seen = [step for step in seen if "again" not in step[2]]
    turns = [(done, total) for done, total, _ in seen]
    assert turns == [(step, 36) for step in range(36)]  # two files, three rounds of a text and of five points
    assert [what for _, _, what in seen[:3]] == [
        "speed, warm-up, F32",
        "speed, warm-up, Q4_0",
        "speed, round 1 of 2, F32",
    ]
    assert seen[-1][2] == "speed, round 2 of 2, prompt of 128 tokens, 2 threads, Q4_0"
    assert (found.peers, found.skipped_peers) == ([], [])


def test_rounds_are_interleaved(short_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns().watch(monkeypatch)
    found = run(short_files, ["Q8_0", "F32", "Q4_0"], rounds=3, prompt_tokens=16)
    assert turns.names == ["F32", "Q8_0", "Q4_0"] * 4  # the reference once; the first round warms up
    rounds = [[prompt for _, prompt in turns[at : at + 3]] for at in range(0, 12, 3)]
    assert all(len(set(prompts)) == 1 for prompts in rounds)
    assert len({prompts[0][0] for prompts in rounds}) == 4  # so that the cache holds none of it
    assert {len(prompt) for _, prompt in turns} == {16}

    assert found.reference.decode_tps == {"median": 7, "min": 4, "max": 10, "rounds": 3}  # turns 4, 7 and 10
    assert found.files[1] == found.reference
    assert found.files[2].prompt_tps == {"median": 4.5, "min": 3, "max": 6, "rounds": 3}
    # of the same round: 6/4, 9/7 and 12/10, not 9/7 of the medians
    assert found.files[2].decode_ratio == {"median": 9 / 7, "min": 12 / 10, "max": 6 / 4, "rounds": 3}
    assert found.files[2].joules_per_token == 3.0
    assert found.files[2].disturbed is False


def test_the_grid_has_separate_rounds(short_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns().watch(monkeypatch)
    grid = Grid(prompt_sizes=(16,), depths=(), batches=(4,), thread_counts=())
    found = run(short_files, ["Q4_0"], rounds=5, grid=grid)
    points = ["F32 prompt 1", "Q4_0 prompt 1", "F32 decode 4", "Q4_0 decode 4"]
    assert turns.names == ["F32", "Q4_0"] * 6 + points * 4
    prompt, decode = found.files[0].points
    assert prompt["tps"] == {"median": (12 + 4 + 6) / 2, "min": (12 + 4 + 2) / 2, "max": (12 + 4 + 10) / 2, "rounds": 3}
    assert decode["tps"]["median"] == 12 + 4 + 8
    assert (decode["joules_per_token"], decode["disturbed"]) == (3.0, False)
    assert {len(prompt) for name, prompt in turns if "decode" in name} == {1}


def test_a_disturbed_turn_is_repeated(short_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    # nothing in the warming round counts; the reference's second try is quiet
    turns = Turns([LOUD, LOUD, LOUD]).watch(monkeypatch)
    found = run(short_files, ["Q4_0"], rounds=3)
    assert turns.names[:5] == ["F32", "Q4_0", "F32", "F32", "Q4_0"]
    assert turns[2][1][0] != turns[3][1][0]  # another prompt: what was computed is cached
    assert found.reference.decode_tps["min"] == 4
    assert found.reference.disturbed is False


def test_a_turn_that_stays_disturbed_is_marked(short_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns([QUIET] * 2 + [LOUD] * 3).watch(monkeypatch)
    found = run(short_files, ["Q4_0"], rounds=5)
    assert turns.names[2:6] == ["F32", "F32", "F32", "Q4_0"]
    assert found.reference.disturbed is True
    assert found.files[0].disturbed is False


def test_repetitions_are_limited(short_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns([LOUD] * 1000).watch(monkeypatch)
    found = run(short_files, ["Q4_0"], rounds=6)
    assert len(turns) == 2 + 12 + 12 // 3  # a third more
    assert found.reference.disturbed is found.files[0].disturbed is True


def test_patience_ends(short_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every turn takes a second and is disturbed; the fifth goes beyond the patience."""
    turns, clock = Turns([LOUD] * 1000).watch(monkeypatch), iter(range(10**6))
    monkeypatch.setattr(speed_module, "perf_counter", lambda: float(next(clock)))
    seen: list[str] = []
    grid = Grid(prompt_sizes=(16,), depths=(), batches=(), thread_counts=())
    found = run(
        short_files, ["Q4_0"], rounds=5, grid=grid, patience=4.0, progress=lambda _, __, what: seen.append(what)
    )
    # the warm-up, the first round with two repetitions, and the first round of the grid, which is not warmed up
    assert turns.names == ["F32", "Q4_0", *["F32"] * 3, "Q4_0", "F32 prompt 1", "Q4_0 prompt 1"]
    assert seen[3].startswith("speed, round 1 of 5, F32, again because it was disturbed (load ")
    assert found.reference.decode_tps["rounds"] == found.files[0].points[0]["tps"]["rounds"] == 1
    assert found.reference.disturbed is found.files[0].points[0]["disturbed"] is True
    assert found.disturbed_seconds == 8.0


def test_a_quiet_machine_needs_no_patience(short_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns().watch(monkeypatch)
    found = run(short_files, ["Q4_0"], rounds=3, patience=0)
    assert (len(turns), found.reference.decode_tps["rounds"], found.disturbed_seconds) == (8, 3, 0.0)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_disturbed_turn_ends_early(batch: int, short_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "give_up_if_disturbed", GIVE_UP)
    with Model.load(short_files["Q4_0"], threads=1) as model:
        batches = watched(monkeypatch, model, "batch")
        for usage, tokens in ((LOUD, 5), (QUIET, 40), (UNKNOWN, 40)):
            monkeypatch.setattr(timing.Watch, "so_far", lambda _, usage=usage: usage)
            sample = time_point(model, Point("decode", 40, 0, batch, 1), [1], 1, EnergyMeter())
            texts = batches.pop()[1]
            assert [text.tokens for text in texts.completions] == pytest.approx([tokens] * batch, abs=1)
            assert sample.decode_tps == pytest.approx(texts.timing.decoded / texts.timing.decode_seconds)


def test_unknown_disturbance(short_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns([UNKNOWN] * 9).watch(monkeypatch)
    assert run(short_files, ["Q4_0"], rounds=2).files[0].disturbed is None
    assert len(turns) == 6


@pytest.mark.parametrize(("memory", "huge_pages"), [(1 << 40, True), (1 << 20, False), (None, False)])
def test_files_are_mapped_where_memory_is_short(
    memory: int | None, huge_pages: bool, short_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    Turns().watch(monkeypatch)
    loaded: list[bool] = []
    load = Model.load

    def watched(path: Path, **options: Any) -> Model:
        loaded.append(options["huge_pages"])
        return load(path, **options)

    monkeypatch.setattr(Model, "load", watched)
    monkeypatch.setattr(models_module, "ram_bytes", lambda: memory)
    measure_speed(short_files["F32"], [short_files["Q4_0"]], rounds=1, grid=NONE)
    assert loaded == [huge_pages] * 2


def test_a_prompt_leaves_room_to_decode(short_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns().watch(monkeypatch)
    run(short_files, [], rounds=1, prompt_tokens=10_000)
    assert {len(prompt) for _, prompt in turns} == {256}


def test_wrong_arguments(short_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns().watch(monkeypatch)
    with pytest.raises(UsageError, match="`rounds` must be 1 or more, not 0"):
        run(short_files, [], rounds=0)
    with pytest.raises(UsageError, match="threads"):
        measure_speed(short_files["F32"], [], threads=0)
    for patience in (-1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="`patience` must be 0 to"):
            run(short_files, [], patience=patience)
    with pytest.raises(UsageError, match="`prompt_sizes` must be 1-512, not 600"):
        run(short_files, [], grid=Grid(prompt_sizes=(600,)))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    with pytest.raises(GGUFError, match=r"broken\.gguf"):
        measure_speed(short_files["Q4_0"], [broken], rounds=1, threads=1)
    assert turns == []


def test_prompts() -> None:
    prompts = [make_prompt(8189, 100, number) for number in range(20)]
    assert len({prompt[0] for prompt in prompts}) == 20
    assert all(0 <= token < 8000 for prompt in prompts for token in prompt)


def watched(monkeypatch: pytest.MonkeyPatch, model: Model, method: str) -> list[tuple[Any, Any]]:
    """What every call of a method was given first, and what it returned."""
    calls: list[tuple[Any, Any]] = []
    real = getattr(model, method)

    def call(given: Any, **options: Any) -> Any:
        calls.append((given, real(given, **options)))
        return calls[-1][1]

    monkeypatch.setattr(model, method, call)
    return calls


def test_prompts_are_not_cached_and_decoding_is_timed_alone(
    short_files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "TEXT_SECONDS", 0.2)
    monkeypatch.setattr(draft, "Lookup", None)  # drafting would fail: each token must take a decode
    with Model.load(short_files["Q4_0"], threads=1) as model:
        streams, batches = watched(monkeypatch, model, "stream"), watched(monkeypatch, model, "batch")
        prompt = list(range(1, 41))
        sample = time_text(model, prompt, 5, 1, EnergyMeter(tmp_path))
    assert len(streams) == len(batches) > 1  # a small model's text is too short to time once
    assert len({given[0] for given, _ in streams}) == len(streams)
    assert all(given[1:] == prompt[1:] for given, _ in streams)
    read = [text.timing for _, text in streams]
    written = [text.timing for _, text in batches]
    assert {timing.prompt_computed for timing in read} == {40}
    assert {(timing.prompt_computed, timing.decoded) for timing in written} == {(0, 4)}
    assert sample.prompt_tps == pytest.approx(40 * len(read) / sum(timing.prompt_seconds for timing in read))
    assert sample.decode_tps == pytest.approx(4 * len(written) / sum(timing.decode_seconds for timing in written))
    assert sample.joules_per_token is None


@pytest.mark.parametrize(("depth", "batch"), [(0, 1), (300, 1), (0, 4), (200, 3)])
def test_points_of_decoding(
    short_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, depth: int, batch: int
) -> None:
    monkeypatch.setattr(draft, "Lookup", None)
    with Model.load(short_files["Q4_0"], threads=1) as model:
        batches = watched(monkeypatch, model, "batch")
        sample = time_point(model, Point("decode", 6, depth, batch, 1), list(range(max(depth, 1))), 1, EnergyMeter())
    ((_, texts),) = batches
    assert [len(text.token_ids) for text in texts.completions if text] == [6] * batch
    assert texts.timing.decoded == 5 * batch
    assert sample.decode_tps == pytest.approx(5 * batch / texts.timing.decode_seconds)
    assert sample.prompt_tps == 0


def test_another_number_of_threads_is_used_for_its_point_only(short_files: dict[str, Path]) -> None:
    used: list[int] = []

    class Meter(EnergyMeter):
        def read(self) -> None:
            used.append(model.threads)

    with Model.load(short_files["Q4_0"], threads=1) as model:
        prompt = time_point(model, Point("prompt", 8, 0, 1, 2), list(range(8)), 1, Meter())
        decode = time_point(model, Point("decode", 8, 0, 1, 2), list(range(8)), 1, Meter())
        assert (set(used), model.threads) == ({2}, 1)
    assert prompt.prompt_tps > 0
    assert decode.decode_tps > 0


def test_energy_of_a_decoded_token(short_files: dict[str, Path], tmp_path: Path) -> None:
    package = tmp_path / "intel-rapl:0"
    package.mkdir()
    for name, value in (("name", "package-0"), ("max_energy_range_uj", 10**9), ("energy_uj", 0)):
        (package / name).write_text(str(value))

    class Growing(EnergyMeter):
        def read(self) -> tuple[int, ...] | None:
            reading = super().read()
            (package / "energy_uj").write_text(str(int((package / "energy_uj").read_text()) + 7_000_000))
            return reading

    with Model.load(short_files["Q4_0"], threads=1) as model:
        sample = time_text(model, [1, 2, 3], 8, 1, Growing(tmp_path))
        assert sample.joules_per_token == pytest.approx(7 / 7)
        sample = time_point(model, Point("decode", 8, 0, 2, 1), [1], 1, Growing(tmp_path))
        assert sample.joules_per_token == pytest.approx(7 / 14)
        assert time_point(model, Point("prompt", 3, 0, 1, 1), [1, 2, 3], 1, Growing(tmp_path)).joules_per_token is None


def test_a_file_that_ends_every_text_at_once_is_timed(short_files: dict[str, Path], tmp_path: Path) -> None:
    # the final norm gives the same vector everywhere, so one token is always the likeliest
    vectors = {"output_norm.weight": np.zeros(256), "output_norm.bias": np.linspace(-1, 1, 256)}
    weights = {name: ((256,), TensorType.F32, vector.astype("<f4").tobytes()) for name, vector in vectors.items()}
    constant = rewrite(short_files["F32"], tmp_path / "constant.gguf", tensors=weights)
    with Model.load(constant, threads=1) as model:
        always = int(model.logits([1]).argmax())
    silent = rewrite(constant, tmp_path / "silent.gguf", metadata={"tokenizer.ggml.eos_token_id": always})
    with Model.load(silent, threads=1) as model:
        generation = model.stream([1, 2], max_tokens=5, temperature=0)
        assert "".join(generation) == ""
        assert generation.completion
        assert generation.completion.finish_reason == "eos"
    found = measure_speed(silent, [], rounds=2, threads=1, grid=NONE)
    check(found.reference.decode_tps, 2)
