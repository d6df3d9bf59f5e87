"""Times generation by two versions of this package, in turns: what a change costs or gains.

usage: time_versions.py MODEL.gguf OTHER_PYTHON [--rounds N] [--threads N]

OTHER_PYTHON is the interpreter of an environment with the other version, for example of a worktree after `make setup`.
Each version runs in a process of its own; both do each part once a round, the first to go changes by turns, and a round
that warms up is left out. Prints the median and the spread of the speeds in tokens per second, and the median of the
rounds' ratios, this version to the other. The last line is JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

PARTS = ("greedy 128", "top-k 128", "top-k 400", "8 texts of 60", "8 texts of 200", "prompt of 4", "prompt of 300")
# run by both interpreters: only what both versions have
WORKER = """
import json, sys, time
from dgpt2_quant.runtime import Model

model = Model.load(sys.argv[1], threads=int(sys.argv[2]))

def text(tokens, temperature, number):
    settings = {"max_tokens": tokens, "ignore_eos": True, "seed": 1, "temperature": temperature, "lookup": 0}
    for _ in model.stream([1000 + number], **settings):
        pass
    return tokens

def texts(tokens, number):
    model.generate([[1000 + number, 2, 3, 4]], num_return_sequences=8, max_tokens=tokens, ignore_eos=True, seed=1)
    return 8 * tokens

def prompt(tokens, number):
    for again in range(3):
        begin = [(7 + 31 * index + 1009 * (3 * number + again)) % 8000 for index in range(tokens)]
        next(model.stream(begin, max_tokens=2, temperature=0, ignore_eos=True))
    return 3 * tokens

print("ready", flush=True)
for line in sys.stdin:
    what, number = json.loads(line)
    kind, *rest, size = what.split()
    started = time.perf_counter()
    if kind in ("greedy", "top-k"):
        tokens = text(int(size), 0.0 if kind == "greedy" else 0.8, number)
    else:
        tokens = texts(int(size), number) if kind == "8" else prompt(int(size), number)
    print(tokens / (time.perf_counter() - started), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("other", help="the interpreter of the other version")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    versions = [Version(python, arguments) for python in (sys.executable, arguments.other)]
    speeds: dict[str, list[list[float]]] = {part: [[], []] for part in PARTS}
    for number in range(arguments.rounds + 1):
        for part in PARTS:
            for index in (0, 1) if number % 2 else (1, 0):
                speed = versions[index].speed(part, number)
                if number:
                    speeds[part][index].append(speed)
    found = {part: compared(*both) for part, both in speeds.items()}
    for part, figures in found.items():
        print(f"{part}: {figures['this']} against {figures['other']}, ratio {figures['ratio']}", file=sys.stderr)
    print(json.dumps({"rounds": arguments.rounds, "threads": arguments.threads, "parts": found}))


class Version:
    def __init__(self, python: str, arguments: argparse.Namespace) -> None:
        command = [python, "-c", WORKER, arguments.model.resolve(), str(arguments.threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def speed(self, part: str, number: int) -> float:
        assert self._process.stdin
        print(json.dumps([part, number]), file=self._process.stdin, flush=True)
        return float(self._read())

    def _read(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._process.args[0]} ended with {self._process.wait()}")  # type: ignore[index]
        return line


def compared(this: list[float], other: list[float]) -> dict[str, Any]:
    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):.0f} ({min(values):.0f}-{max(values):.0f})"

    ratio = statistics.median(a / b for a, b in zip(this, other, strict=True))
    return {"this": spread(this), "other": spread(other), "ratio": round(ratio, 3)}


if __name__ == "__main__":
    main()
