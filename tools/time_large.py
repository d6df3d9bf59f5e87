"""How near converting a large checkpoint comes to what it must take: reading the source, and quantizing it.

usage: time_large.py FOLDER [--type TYPE ...] [--rounds N]

In turns, each in a process of its own: `dgpt2-quant convert` to all the types in one call; reading the weight files
and throwing them away; and llama.cpp's quantizer alone, on the same threads, over weights that are in memory already
(each tensor's once for each block format that the files need). The ratio is (reading + quantizing) / converting, the
median of the rounds' own. A checkpoint of GPT-2 XL's shape, 1.56 billion weights, 6.2 GB:

    random_distilgpt2.py xl --layers 48 --width 1600 --heads 25 --shards 4 --without-buffers

The last line is JSON.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import numpy as np
from dgpt2_quant.core.ggml import quantize
from dgpt2_quant.core.quant_types import find_types
from dgpt2_quant.quantize.checkpoint.source import open_model
from dgpt2_quant.quantize.recipes.plan import make_plan

PIECE = 1 << 17  # weights, as in quantize/write.py


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--type", action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only-quantize", action="store_true", help="what one of the processes is called with")
    arguments = parser.parse_args()
    arguments.type = arguments.type or ["q4_k_m", "q8_0"]
    if arguments.only_quantize:
        print(quantizer_alone(arguments))
        return
    parts: dict[str, list[float]] = {"convert": [], "read": [], "quantize": []}
    peaks = []
    for number in range(arguments.rounds):
        seconds, peak = converted(arguments)
        parts["convert"].append(seconds)
        peaks.append(peak)
        parts["read"].append(read(arguments.folder))
        command = [sys.executable, __file__, arguments.folder, "--only-quantize", "--threads", arguments.threads]
        said = subprocess.run(list(map(str, command + types(arguments))), check=True, stdout=subprocess.PIPE)
        parts["quantize"].append(float(said.stdout))
        print(f"round {number}:", {name: round(values[-1], 1) for name, values in parts.items()}, file=sys.stderr)
    document = {f"{name}_s": [round(value, 2) for value in values] for name, values in parts.items()}
    ratios = [(r + q) / c for c, r, q in zip(*parts.values(), strict=True)]
    peak_mb = round(max(peaks) / 1e6)
    print(
        json.dumps(
            {**document, "ratio": round(statistics.median(ratios), 3), "peak_mb": peak_mb, "loadavg": os.getloadavg()}
        )
    )


def types(arguments: argparse.Namespace) -> list[str]:
    return [flag for name in arguments.type for flag in ("--type", name)]


def converted(arguments: argparse.Namespace) -> tuple[float, int]:
    with tempfile.TemporaryDirectory() as scratch:
        command = [Path(sys.executable).with_name("dgpt2-quant"), "convert", arguments.folder, "-o", scratch]
        started = time.monotonic()
        child = subprocess.Popen(list(map(str, [*command, "--threads", arguments.threads, *types(arguments)])))
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.monotonic() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        shutil.rmtree(scratch, ignore_errors=True)
    if child.returncode:
        raise SystemExit(f"dgpt2-quant convert failed with {child.returncode}")
    return seconds, usage.ru_maxrss * 1024


def read(folder: Path) -> float:
    buffer = bytearray(1 << 20)
    started = time.monotonic()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.monotonic() - started


def quantizer_alone(arguments: argparse.Namespace) -> float:
    source = open_model(str(arguments.folder))
    plans = [make_plan(source, quant_type) for quant_type in find_types(arguments.type)]
    total = 0.0
    with ThreadPoolExecutor(arguments.threads) as pool:
        for tensor in source.tensors:
            formats = list({plan.types[tensor.name]: None for plan in plans})
            rows = np.ascontiguousarray(tensor.read(), np.float32).reshape(prod(tensor.shape[:-1]), tensor.shape[-1])
            step = max(1, PIECE // rows.shape[1])
            started = time.monotonic()
            for task in [
                pool.submit(quantize, tensor.name, rows[first : first + step], formats)
                for first in range(0, len(rows), step)
            ]:
                task.result()
            total += time.monotonic() - started
    return total


if __name__ == "__main__":
    main()
