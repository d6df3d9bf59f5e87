"""Times `convert FILE.gguf -t TYPE` against llama-quantize, type by type, in turns.

usage: time_quantize.py MODEL.F32.gguf [--type TYPE ...] [--imatrix FILE] [--llama-cpp-bin DIR]

In one process: both are called as libraries, on the same threads of the same build, after a round that fills the page
cache and llama.cpp's tables. With --llama-cpp-bin each run is a process of its own, llama-quantize's by that build,
start and tables included. Ours hashes its output and brings it to the disk, as it always does; llama-quantize does
neither. The ratio is of speeds, the median of the rounds' own: above 1 ours is faster. The last line is JSON.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dgpt2_quant.core.quant_types import QUANT_TYPES, QuantType, find_types
from dgpt2_quant.quantize.calibration.imatrix_file import read_importance
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime.native.model_context import bindings

Contestant = Callable[[QuantType, Path], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file of F32")
    parser.add_argument("--type", action="append", help="all if not given")
    parser.add_argument("--imatrix", type=Path, help="without one, types that need it are left out")
    parser.add_argument("--llama-cpp-bin", type=Path, help="the folder of llama-quantize")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    every = [t for t in QUANT_TYPES.values() if arguments.imatrix or not t.needs_imatrix]
    contestants = processes(arguments) if arguments.llama_cpp_bin else libraries(arguments)
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for quant_type in find_types(arguments.type or every):
            results[quant_type.name] = measure(quant_type, contestants, arguments.rounds, Path(scratch))
            print(quant_type.name, results[quant_type.name], file=sys.stderr)
    document = {"types": results, "threads": arguments.threads, "rounds": arguments.rounds, "loadavg": os.getloadavg()}
    print(json.dumps(document))


def measure(
    quant_type: QuantType, contestants: tuple[Contestant, Contestant], rounds: int, scratch: Path
) -> dict[str, object]:
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for contestant, taken in zip(contestants, seconds, strict=True):
            output = scratch / "out.gguf"
            output.unlink(missing_ok=True)
            started = time.monotonic()
            contestant(quant_type, output)
            if number:  # the first warms up
                taken.append(time.monotonic() - started)
    ratio = statistics.median(theirs / ours for ours, theirs in zip(*seconds, strict=True))
    return {"ours_s": spread(seconds[0]), "theirs_s": spread(seconds[1]), "ratio": round(ratio, 3)}


def libraries(arguments: argparse.Namespace) -> tuple[Contestant, Contestant]:
    llama_cpp = bindings()
    entries = read_importance(arguments.imatrix).entries if arguments.imatrix else {}
    values = {name: entry.mean_squares for name, entry in entries.items()}
    table = (llama_cpp.llama_model_imatrix_data * (len(values) + 1))()
    for entry, (name, squares) in zip(table, values.items(), strict=False):
        entry.name, entry.size = name.encode(), len(squares)
        entry.data = squares.ctypes.data_as(ctypes.POINTER(ctypes.c_float))

    def ours(quant_type: QuantType, output: Path) -> None:
        convert(
            str(arguments.model), type=quant_type, output=output, imatrix=arguments.imatrix, threads=arguments.threads
        )

    def theirs(quant_type: QuantType, output: Path) -> None:
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype, params.nthread = quant_type.file_type, arguments.threads
        if values:
            params.imatrix = table
        if llama_cpp.llama_model_quantize(str(arguments.model).encode(), str(output).encode(), params):
            raise SystemExit(f"llama_model_quantize made no {quant_type}")

    return ours, theirs


def processes(arguments: argparse.Namespace) -> tuple[Contestant, Contestant]:
    imatrix = ["--imatrix", arguments.imatrix] if arguments.imatrix else []
    threads = str(arguments.threads)

    def ours(quant_type: QuantType, output: Path) -> None:
        program = Path(sys.executable).with_name("dgpt2-quant")
        call([program, "convert", arguments.model, "-t", quant_type.name, "-o", output, "--threads", threads, *imatrix])

    def theirs(quant_type: QuantType, output: Path) -> None:
        program = arguments.llama_cpp_bin / "llama-quantize"
        call([program, *imatrix, arguments.model, output, quant_type.name, threads])

    return ours, theirs


def call(command: list[object]) -> None:
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def spread(values: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 2), "min": round(min(values), 2), "max": round(max(values), 2)}


if __name__ == "__main__":
    main()
