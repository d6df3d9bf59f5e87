"""What each matrix costs at each type on this machine, and whether the sums are right for real files.

usage: time_kernels.py FOLDER [--tensor-type T ...] [--level L ...] [--rounds N] [--threads N] [--cached]

FOLDER is a checkpoint, for example one that random_distilgpt2.py wrote. Its matrices are timed at the tensor types as
the search times them (bench/speed/kernel_times.py). Then its files of the levels are made and timed in turns, by
what `bench` measures speed with; `ratio` is predicted / measured seconds a token. The last line is JSON.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from dgpt2_quant.bench.speed.grid import Grid
from dgpt2_quant.bench.speed.kernel_times import TimeModel, token_times
from dgpt2_quant.bench.speed.rounds import measure_speed
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.core.quant_types import TensorType
from dgpt2_quant.quantize.convert import convert

TYPES = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_0", "IQ4_NL", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0", "F16")
LEVELS = ("q4_0", "q4_k_m", "q5_k_m", "q8_0")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tensor-type", action="append", choices=TYPES)
    parser.add_argument("--level", action="append")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--cached", action="store_true", help="take the times from the cache, if they are there")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        made = convert(str(arguments.folder), type=arguments.level or LEVELS, output=scratch)
        files = {file.type: Path(file.path) for file in made}
        sizes = Hyperparameters.from_metadata(read_header(next(iter(files.values())), arrays=False).metadata)
        types = [TensorType[name] for name in arguments.tensor_type or TYPES]
        started = time.perf_counter()
        model = token_times(sizes, types, threads=arguments.threads, cache=arguments.cached, progress=show)
        seconds = time.perf_counter() - started
        print_table(model)
        checked = check(model, files, arguments.rounds, arguments.threads)
    for name, figures in checked.items():
        print(f"{name:8}", *(f"{key} {value}" for key, value in figures.items()))
    document = {"seconds": round(seconds, 1), "times": model.to_json(), "checked": checked, "loadavg": os.getloadavg()}
    print(json.dumps(document))


def show(done: int, total: int, what: str) -> None:
    print(f"{what}: {done} of {total}", file=sys.stderr)


def print_table(model: TimeModel) -> None:
    """Microseconds a token, and the standard error; picoseconds a byte."""
    print(
        f"{model.threads} threads, {model.files} files, base {1e3 * model.base_seconds:.3f} ms, "
        f"fixed {1e6 * model.fixed:.0f} us, noise {model.noise:.2%}, misfit {model.misfit:.2%}, "
        f"disturbed {model.disturbed:.0%}"
    )
    for entry in model.entries:
        rows, columns = entry.shape
        rate = 1e12 * entry.seconds / (rows * entry.type.row_bytes(columns))
        print(
            f"{rows:6} x {columns:<5} {entry.type.name:7} {1e6 * entry.seconds:8.1f} us"
            f" +- {1e6 * entry.spread:5.1f} {rate:7.1f} ps/byte"
        )


def check(model: TimeModel, files: dict[str, Path], rounds: int, threads: int) -> dict[str, dict[str, object]]:
    """Milliseconds a token, predicted and measured, near the beginning of a text."""
    paths = list(files.values())
    speeds = measure_speed(
        paths[0], paths, rounds=rounds, threads=threads, grid=Grid.none(), prompt_tokens=8, decode_tokens=32
    )
    found: dict[str, dict[str, object]] = {}
    for (name, path), speed in zip(files.items(), speeds.files, strict=True):
        tensors = read_header(path, arrays=False).tensors.values()
        predicted = model.seconds({t.name: t.shape for t in tensors}, {t.name: t.type for t in tensors})
        measured = 1 / speed.decode_tps["median"]
        found[name] = {
            "predicted_ms": round(1e3 * predicted, 3),
            "measured_ms": round(1e3 * measured, 3),
            "ratio": round(predicted / measured, 3),
            "disturbed": speed.disturbed,
        }
    return found


if __name__ == "__main__":
    main()
