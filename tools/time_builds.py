"""Times one file's decodes by several builds of llama.cpp's CPU library, in turns.

usage: time_builds.py MODEL.gguf --library NAME=libggml-cpu.so.0 [--library ...] [--rounds N] [--threads N]

Each build has a process of its own, into which it is loaded in place of the installed one (LD_PRELOAD; of the same
version, on Linux), and which waits while the others have their turns. In each round each decodes ten tokens behind each
place, with flash attention and without; ratios are of milliseconds a token to the installed build's, the median of the
rounds' own: below 1 is faster. The last line is JSON.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dgpt2_quant.runtime.native.model_context import CELLS, MAX_BATCH, NativeContext, NativeModel

PLACES = [(10, True), (100, True), (240, False), (990, False), (990, True)]  # position, flash attention
TOKENS = 12  # the first two find the caches as the last place has left them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--library", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments)
    else:
        print(json.dumps(compare(arguments)))


def compare(arguments: argparse.Namespace) -> dict[str, Any]:
    libraries = {"installed": "", **dict(text.split("=", 1) for text in arguments.library)}
    command = [sys.executable, __file__, arguments.model, "--threads", str(arguments.threads), "--work"]
    workers = {
        name: subprocess.Popen(
            command,
            env={**os.environ, **({"LD_PRELOAD": library} if library else {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, library in libraries.items()
    }
    rounds: list[dict[str, dict[str, float]]] = []
    try:
        for number in range(arguments.rounds + 1):  # the first one warms up
            order = random.Random(number).sample(list(workers), len(workers))
            rounds.append({name: turn(workers[name]) for name in order})
    finally:
        for worker in workers.values():
            worker.kill()
    del rounds[0]
    found: dict[str, Any] = {place: {} for place in rounds[0]["installed"]}
    for place, builds in found.items():
        for name in libraries:
            builds[name] = medians([(turns[name][place], turns["installed"][place]) for turns in rounds])
    return found


def medians(times: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Of a build's own times, and of their ratios to those of another in the same rounds."""
    return {
        "ms": round(statistics.median(own for own, _ in times), 2),
        "ratio": round(statistics.median(own / other for own, other in times), 3),
    }


def turn(worker: "subprocess.Popen[str]") -> dict[str, float]:
    assert worker.stdin
    assert worker.stdout
    worker.stdin.write("\n")
    worker.stdin.flush()
    line = worker.stdout.readline()
    if not line:
        raise SystemExit("one of the processes ended; what it said stands above")
    times: dict[str, float] = json.loads(line)
    return times


def work(arguments: argparse.Namespace) -> None:
    """For each line that comes in: the milliseconds a token at each place, on one line."""
    model = NativeModel(arguments.model)
    if model.positions < PLACES[-1][0] + TOKENS:
        raise SystemExit(f"{arguments.model} has {model.positions} positions, too few for {PLACES[-1][0]}")
    contexts = {}
    for position, flash_attention in PLACES:
        positions = model.positions if flash_attention else -(-(position + TOKENS) // CELLS) * CELLS
        context = NativeContext(model, positions, threads=arguments.threads, flash_attention=flash_attention)
        for begin in range(0, position, MAX_BATCH):
            context.decode([31 * at % model.vocabulary for at in range(begin, min(position, begin + MAX_BATCH))], begin)
        contexts[f"{position}{', flash attention' * flash_attention}"] = position, context
    for _ in sys.stdin:
        times = {name: milliseconds(position, context) for name, (position, context) in contexts.items()}
        print(json.dumps(times), flush=True)


def milliseconds(position: int, context: NativeContext) -> float:
    context.keep(position)
    times = []
    for number in range(TOKENS):
        token = random.randrange(context.vocabulary)
        started = time.perf_counter()
        context.decode([token], position + number)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[2:])


if __name__ == "__main__":
    main()
