"""Damaged files, each in a separate process: each is used, or refused with one of our errors.

More of them, or one alone: tests/runtime/fuzzing.py says how.
"""

import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from dgpt2_quant.core.cores import usable_cores

from .fuzzing import ROOT, run, summary
from .mutations import MUTATIONS, make_sources, mutated, take_apart

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits the address space")

SEED = 0

# what a case must not do, and the finding
ILL = """if True:
    import ctypes, os, signal, sys, time
    from pathlib import Path
    from tests.runtime import fuzzing
    from tests.runtime.mutations import take_apart

    def overwrite_the_log():
        fuzzing.logging.getLogger("dgpt2_quant.llama_cpp").error("failed to allocate a buffer")

    def hang(*_):
        signal.alarm(1)  # instead of those ten seconds; the others have them, on a busy machine too
        time.sleep(60)

    folder, sources = Path(sys.argv[1]), {"good": take_apart(Path(sys.argv[2]))}
    for ill in (
        lambda *_: ctypes.string_at(8),
        lambda *_: os.abort(),
        hang,
        lambda *_: os._exit(3),
        lambda *_: bytearray(fuzzing.MEMORY + (64 << 20)),
        lambda *_: [][0],
        lambda path, random, report: (exercise(path, random, report), overwrite_the_log()),
        lambda path, random, report: bytearray(fuzzing.MEMORY // 4) and None,
    ):
        exercise, fuzzing.exercise = fuzzing.exercise, ill
        print(fuzzing.fork(0, 0, sources, folder).problem.strip().splitlines()[-1:])
        fuzzing.exercise = exercise
"""


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_sources(tmp_path_factory.mktemp("sources"))


@pytest.mark.parametrize("count", [250, pytest.param(4000, marks=pytest.mark.slow)])
def test_no_damaged_file_ends_the_process_or_takes_much(count: int, tmp_path: Path) -> None:
    outcomes = list(run(range(count), SEED, tmp_path, min(2, usable_cores())))
    assert sorted(outcome.case for outcome in outcomes) == list(range(count))
    assert not any(outcome.problem for outcome in outcomes), summary(outcomes)
    assert sum(outcome.header for outcome in outcomes) >= count // 2
    assert sum(outcome.decoded for outcome in outcomes) >= count // 5
    assert {name for outcome in outcomes for name in outcome.mutations} == MUTATIONS.keys()


def test_signals_hangs_exceptions_and_allocations_are_found(sources: list[Path], tmp_path: Path) -> None:
    command = [sys.executable, "-c", ILL, str(tmp_path), str(sources[0])]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    found = result.stdout.splitlines()
    expected = [
        "Segmentation fault",
        "Aborted",
        "Alarm clock",
        "status 3",
        "MemoryError",
        "IndexError",
        "no memory: failed",
    ]
    assert len(found) == len(expected) + 1, result.stderr
    for line, word in zip(found, expected, strict=False):
        assert word in line
    assert found[-1] == "[]"  # a quarter of the limit


def test_cases_are_reproducible(sources: list[Path]) -> None:
    for path in sources:
        assert take_apart(path).encode() == path.read_bytes()
    draft = take_apart(sources[0])
    cases = [mutated(draft, Random(f"{SEED}:{number}")) for number in range(200)]
    assert cases == [mutated(draft, Random(f"{SEED}:{number}")) for number in range(200)]
    assert draft.encode() == sources[0].read_bytes()  # which no mutation has changed
    assert len({data for _, data in cases}) > 180
