"""What each matrix of a GPT-2 costs in a decode step on this machine, by its shape and type: measured once, and kept.

`token_times` times files of the model's own sizes through the real runtime, one sequence at a time (mixes.py makes
them, mix_turns.py times them, mix_fit.py finds the single costs), so that what decides a kernel's speed is in it: this
build of llama.cpp, its repacked formats, the caches, the threads. It is for choosing types, not for telling tokens per
second: a sum knows nothing of the next moment's load, nor of what attention costs far into a text.
"""

import contextlib
import hashlib
import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import version
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

from dgpt2_quant.bench.document.environment import cpu_name
from dgpt2_quant.core.atomic_file import output_file
from dgpt2_quant.core.cache import cache_folder
from dgpt2_quant.core.cores import threads_or_all
from dgpt2_quant.core.errors import OutputError, ResultError, UsageError
from dgpt2_quant.core.hyperparameters import Hyperparameters, matmul_weights
from dgpt2_quant.core.json_text import to_json_text
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.quant_types import TensorType

from .mix_fit import fit_costs, make_mixes
from .mix_turns import GROUP, POSITIONS, Timer, Turns, time_mixes
from .mixes import Entry, Mix, kinds_of

SECONDS = 45.0  # for all files together, on a machine that has nothing else to do; it needs less
_ROWS = 8  # the vocabulary is a multiple of it, as the repacked kernels want
_MOST_WEIGHTS = 100_000_000  # of a file: of a larger model fewer layers are timed, which are all alike
_NORM_EPSILON = 1e-5
_BASES = (TensorType.Q4_K, TensorType.Q4_0, TensorType.F16)  # what the clock file is made of: the first that fits
_DISTURBED_ERROR = 0.5  # that a disturbed file's ratio may be wrong by; for those beside files that were not
_MOST_DISTURBED = 0.5  # share of the files: what was measured beside too much else is used, but not kept
_NUMBERS = ("fixed", "base_seconds", "noise", "misfit", "disturbed")
_FORMAT = 1  # of the files in the cache, and of how they are measured; part of their names


@dataclass(frozen=True)
class TimedEntry:
    """One matrix: `seconds` a token, and the standard error that the timings' noise leaves in it, `spread`."""

    shape: tuple[int, ...]
    type: TensorType
    seconds: float
    spread: float


@dataclass(frozen=True)
class TimeModel:
    """What a token costs, in seconds: `fixed` for all that is no matrix, and the `entries`.

    `threads` it was measured with; `files` were timed, and the clock file took `base_seconds` a token (median). `noise`
    is the median standard error of a file's time, `misfit` how far the sums are from the times; both are relative.
    `disturbed` is the share of the files that were timed while something else took the processor.
    """

    fixed: float
    entries: tuple[TimedEntry, ...]
    threads: int
    files: int
    base_seconds: float
    noise: float
    misfit: float
    disturbed: float

    @cached_property
    def _seconds(self) -> dict[Entry, float]:
        return {(entry.shape, entry.type): entry.seconds for entry in self.entries}

    def __call__(self, shape: tuple[int, ...], tensor_type: TensorType) -> float:
        """Seconds a token of one matrix, (outputs, inputs): what `convert(measure_times=token_times)` asks for.

        It is for comparing types of one shape: how the time is shared out among shapes is known less well than the sum.

        Rows that are no multiple of 8 are taken for the next multiple, which is right where the type is not repacked.
        Raises `UsageError` for a shape or a type that was not measured.
        """
        padded = (-(-shape[0] // _ROWS) * _ROWS, *shape[1:])
        for known in (shape, padded):
            if (found := self._seconds.get((known, tensor_type))) is not None:
                return found
        raise UsageError(
            f"no time was measured for a matrix of {list(shape)} in {tensor_type.name}",
            "Measure with this model's sizes, and this type among the types.",
        )

    def seconds(self, shapes: Mapping[str, tuple[int, ...]], types: Mapping[str, TensorType]) -> float:
        """Seconds a token of a whole model; what is only looked up costs nothing. Raises `UsageError` likewise."""
        return self.fixed + sum(self(shapes[name], types[name]) for name in matmul_weights(shapes))

    def to_json(self) -> dict[str, Any]:
        """A document that `from_json` reads."""
        return {**asdict(self), "entries": [{**asdict(entry), "type": entry.type.name} for entry in self.entries]}

    @classmethod
    def from_json(cls, document: Any) -> "TimeModel":
        """Raises `ResultError` for what is no such document."""
        try:
            entries = tuple(
                TimedEntry(
                    tuple(map(int, entry["shape"])),
                    TensorType[entry["type"]],
                    _number_of(entry["seconds"]),
                    _number_of(entry["spread"]),
                )
                for entry in document["entries"]
            )
            numbers = {name: _number_of(document[name]) for name in _NUMBERS}
            return cls(entries=entries, threads=int(document["threads"]), files=int(document["files"]), **numbers)
        except (KeyError, TypeError, ValueError) as error:
            raise ResultError(f"this is no time model: {error!r}", "Measure it again.") from error


def _number_of(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is not a number from zero on")
    return float(value)


def token_times(
    sizes: Hyperparameters,
    types: Sequence[TensorType],
    *,
    threads: int | None = None,
    progress: Progress | None = None,
    cache: bool = True,
    timer: Timer = time_mixes,
) -> TimeModel:
    """What each kind of matrix of a model of these `sizes` costs at each of the `types` that fits its rows (F16 where
    none does), on this machine, with the vocabulary padded to a multiple of 8.

    Measured in a minute or less, or found in the cache; a file there that is broken is measured again, and nothing is
    kept that was measured on a busy machine. `timer` is for tests. Raises `UsageError` for no types or no threads, and
    `DgptQuantError` when a temporary file can not be written.
    """
    if not types:
        raise UsageError("no types were named to measure the times of", "Name some, for example Q4_K.")
    count, wanted = threads_or_all(threads), sorted(set(types))
    # neither how many positions there are nor the norms' epsilon changes a matrix's time
    plain = replace(
        sizes, vocabulary=-(-sizes.vocabulary // _ROWS) * _ROWS, context=POSITIONS, norm_epsilon=_NORM_EPSILON
    )
    path = cache_folder() / "times" / f"{_key(plain, wanted, count)}.json"
    if cache:
        with contextlib.suppress(OSError, ValueError, ResultError):  # none yet, or a broken one
            return TimeModel.from_json(json.loads(path.read_bytes()))
    found = _measure(plain, wanted, count, progress, timer)
    if cache and found.disturbed <= _MOST_DISTURBED:
        with contextlib.suppress(OutputError), output_file(path, overwrite=True) as file:  # it only saves time
            file.write(to_json_text(found.to_json()).encode())
    return found


def _measure(
    sizes: Hyperparameters, types: Sequence[TensorType], threads: int, progress: Progress | None, timer: Timer
) -> TimeModel:
    timed = replace(sizes, layers=_layers_timed(sizes))
    base, mixes = _base_and_mixes(timed, types)
    floor, step = _without_matrices(timed), GROUP - 1  # in each group once, for it costs next to nothing
    asked = [mix for start in range(0, len(mixes), step) for mix in (floor, *mixes[start : start + step])]
    turns = timer(base, asked, threads=threads, seconds=SECONDS, progress=progress)
    floors = [file for mix, file in zip(asked, turns, strict=True) if mix is floor]
    files = [file for mix, file in zip(asked, turns, strict=True) if mix is not floor]
    base_seconds = statistics.median(seconds for file in _quiet(files) for seconds in file.base)
    fixed = base_seconds * statistics.median(ratio for file in _quiet(floors) for ratio in file.ratios)
    times = [base_seconds * statistics.median(file.ratios) for file in files]
    noise = [_standard_error(file) for file in files]
    costs = fit_costs(mixes, times, [base_seconds * error for error in _errors(files, noise)], fixed)
    return TimeModel(
        fixed=fixed * sizes.layers / timed.layers,
        entries=tuple(TimedEntry(*entry, costs.seconds[entry], costs.spread[entry]) for entry in costs.seconds),
        threads=threads,
        files=len(mixes),
        base_seconds=base_seconds,
        noise=statistics.median(base_seconds * one / time for one, time in zip(noise, times, strict=True)),
        misfit=costs.misfit,
        disturbed=sum(file.disturbed is True for file in files) / len(files),
    )


def _base_and_mixes(sizes: Hyperparameters, types: Sequence[TensorType]) -> tuple[Mix, list[Mix]]:
    """The file that is the clock, and those to time."""
    kinds = kinds_of(sizes)
    fitting = {
        kind: [tensor_type for tensor_type in types if shape[1] % tensor_type.block == 0] or [TensorType.F16]
        for kind, shape in kinds.items()
    }
    bases = {kind: next(t for t in _BASES if shape[1] % t.block == 0) for kind, shape in kinds.items()}
    return Mix(sizes, bases), make_mixes(sizes, fitting)


def _errors(files: Sequence[Turns], noise: Sequence[float]) -> list[float]:
    """How far the files' ratios may be wrong. A few rounds may agree by chance: no file is surer than most."""
    usual, some_quiet = statistics.median(noise), any(not file.disturbed for file in files)
    return [
        max(own, usual) + (_DISTURBED_ERROR if file.disturbed and some_quiet else 0.0)
        for own, file in zip(noise, files, strict=True)
    ]


def _quiet(files: Sequence[Turns]) -> list[Turns]:
    """Those that nothing disturbed, as far as is known; all of them where everything was disturbed."""
    return [file for file in files if not file.disturbed] or list(files)


def _without_matrices(sizes: Hyperparameters) -> Mix:
    """A model of the same depth and heads in which there is next to nothing to multiply."""
    width = 8 * sizes.heads
    least = replace(sizes, width=width, inner=width, vocabulary=64)
    return Mix(least, dict.fromkeys(kinds_of(least), TensorType.F16))


def _layers_timed(sizes: Hyperparameters) -> int:
    layer = 4 * sizes.width**2 + 2 * sizes.width * sizes.inner
    room = _MOST_WEIGHTS - sizes.vocabulary * sizes.width
    return max(1, min(sizes.layers, room // layer))


def _standard_error(file: Turns) -> float:
    """Of the median of the ratios, by the deviation that half of them stay within (1.4826: of a normal distribution;
    1.2533: a median is that much less certain than a mean)."""
    middle = statistics.median(file.ratios)
    deviation = 1.4826 * statistics.median(abs(ratio - middle) for ratio in file.ratios)
    return 1.2533 * deviation / sqrt(len(file.ratios))


def _key(sizes: Hyperparameters, types: Sequence[TensorType], threads: int) -> str:
    known = {
        "format": _FORMAT,
        "cpu": cpu_name(),
        "machine": platform.machine(),
        "instructions": _instruction_sets(),
        "threads": threads,
        "llama_cpp_python": version("llama-cpp-python"),
        "dgpt2_quant": version("dgpt2-quant"),
        "sizes": asdict(sizes),
        "types": [tensor_type.name for tensor_type in types],
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:32]


def _instruction_sets() -> str:
    """What the processor says that it can do, as Linux lists it; nothing where the system does not tell."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.lower().startswith(("flags", "features")):
                return " ".join(sorted(line.partition(":")[2].split()))
    return ""
