"""Speed by rounds: who is timed when, and what comes out. How fast it is, no test can know."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dgpt2_quant.bench.speed import Rate, measure
from dgpt2_quant.quantize.errors import GGUFError
from dgpt2_quant.quantize.quant_types import TensorType
from dgpt2_quant.runtime import Generation, Model

from ..runtime.gguf_edit import rewrite


class Streams(list[tuple[str, list[int]]]):
    """Level and prompt of every generation that was started."""

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> "Streams":
        stream = Model.stream

        def watched(model: Model, prompt: Sequence[int], **options: Any) -> Generation:
            self.append((str(model.quant_type), list(prompt)))
            return stream(model, prompt, **options)

        monkeypatch.setattr(Model, "stream", watched)
        return self


def check(rate: Rate, rounds: int) -> None:
    assert rate.rounds == rounds
    assert 0 < rate.min <= rate.median <= rate.max


def test_every_file_in_every_round(storybook_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    streams, seen = Streams().watch(monkeypatch), []
    levels = ["Q8_0", "Q4_0", "F16"]
    speeds = measure(
        [storybook_files[level] for level in levels],
        rounds=3,
        threads=1,
        prompt_tokens=16,
        decode_tokens=8,
        progress=lambda *arguments: seen.append(arguments),
    )
    assert len(speeds) == 3
    for speed in speeds:
        check(speed.prompt_tps, 3)
        check(speed.decode_tps, 3)
    assert seen == [(1, 4, "speed"), (2, 4, "speed"), (3, 4, "speed"), (4, 4, "speed")]

    assert [level for level, _ in streams] == levels * 4  # in turn; the first time to warm up
    rounds = [[prompt for _, prompt in streams[at : at + 3]] for at in range(0, 12, 3)]
    assert all(prompts[0] == prompts[1] == prompts[2] for prompts in rounds)
    assert len({tuple(prompts[0]) for prompts in rounds}) == 4  # so that the cache holds none of it
    assert {len(prompt) for _, prompt in streams} == {16}


def test_a_prompt_leaves_room_to_decode(storybook_files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    streams = Streams().watch(monkeypatch)
    measure([storybook_files["Q4_0"]], rounds=1, threads=1, prompt_tokens=10_000, decode_tokens=2)
    assert {len(prompt) for _, prompt in streams} == {256}


def test_no_files() -> None:
    assert measure([], rounds=2) == []


def test_a_broken_file(storybook_files: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    with pytest.raises(GGUFError, match=r"broken\.gguf"):
        measure([storybook_files["Q4_0"], broken], rounds=1, threads=1)


def test_a_file_that_ends_every_text_at_once_is_timed_all_the_same(
    storybook_files: dict[str, Path], tmp_path: Path
) -> None:
    # the final norm gives the same vector everywhere, so one token is always the likeliest
    vectors = {"output_norm.weight": np.zeros(256), "output_norm.bias": np.linspace(-1, 1, 256)}
    weights = {name: ((256,), TensorType.F32, vector.astype("<f4").tobytes()) for name, vector in vectors.items()}
    constant = rewrite(storybook_files["F32"], tmp_path / "constant.gguf", tensors=weights)
    with Model.load(constant, threads=1) as model:
        always = int(model.logits([1]).argmax())
    silent = rewrite(constant, tmp_path / "silent.gguf", metadata={"tokenizer.ggml.eos_token_id": always})
    with Model.load(silent, threads=1) as model:
        generation = model.stream([1, 2], max_tokens=5, temperature=0)
        assert list(generation) == []
        assert generation.completion
        assert generation.completion.finish_reason == "eos"
    [speed] = measure([silent], rounds=2, threads=1)
    assert speed.decode_tps.rounds == 2
    assert speed.decode_tps.min > 0


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="the system does not tell what others use")
def test_busy_neighbours_are_noticed(storybook_files: dict[str, Path]) -> None:
    neighbours = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        (speed,) = measure([storybook_files["F32"]], rounds=3, threads=1)
    finally:
        for neighbour in neighbours:
            neighbour.kill()
            neighbour.wait()
    assert speed.disturbed is True
