"""Times generation by two versions of this package, or by several builds of llama.cpp's CPU library, in turns.

usage: time_versions.py MODEL.gguf [--python NAME=PYTHON ...] [--library NAME=libggml-cpu.so.0 ...] [--part PART ...]

PYTHON is the interpreter of an environment with the other version, for example of a worktree after `make setup`. A
library is loaded in place of the installed one (LD_PRELOAD; of the same version, on Linux). Each contestant is a
process that waits while the others have their turn. Speeds are in tokens per second; each ratio is that of `installed`
to the contestant, the median of the rounds' ratios: above 1 `installed` is faster. The last line is JSON.

A part is "greedy N" or "top-k N" (one text of N tokens), "8 texts of N", "prompt of N" (to its first token), or
"position N, flash" or "position N, plain" (ten tokens after it, with flash attention or without).
"""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from harness import in_turns, median_ratio, parser_of, print_document, spread

PARTS = ("greedy 128", "top-k 128", "top-k 400", "8 texts of 60", "8 texts of 200", "prompt of 4", "prompt of 300")
# run by each interpreter, so that it uses what all versions have
WORKER = """
import functools, json, sys, time
from dgpt2_quant.runtime import Model

load = functools.cache(lambda **options: Model.load(sys.argv[1], threads=int(sys.argv[2]), **options))
model = load()

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

def position(at, flash):
    settings = {"max_tokens": 12, "ignore_eos": True, "temperature": 0, "lookup": 0}
    pieces = load(flash_attention=flash).stream([31 * index % 8000 for index in range(at)], **settings)
    next(pieces), next(pieces)
    started = time.perf_counter()
    return len(list(pieces)) / (time.perf_counter() - started)

print("ready", flush=True)
for line in sys.stdin:
    part, number = json.loads(line)
    what, *rest = part.replace(",", "").split()
    started = time.perf_counter()
    if what == "position":
        speed = position(int(rest[0]), rest[1] == "flash")
    elif what in ("greedy", "top-k"):
        speed = text(int(rest[-1]), 0.0 if what == "greedy" else 0.8, number) / (time.perf_counter() - started)
    else:
        speed = (texts if what == "8" else prompt)(int(rest[-1]), number) / (time.perf_counter() - started)
    print(speed, flush=True)
"""


def main() -> None:
    parser = parser_of(__doc__, rounds=9)
    parser.add_argument("model", type=Path)
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--library", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--part", action="append", help=f"by default {', '.join(PARTS)}")
    arguments = parser.parse_args()
    start = partial(Contestant, model=arguments.model.resolve(), threads=arguments.threads)
    contestants = {"installed": start(sys.executable)}
    contestants |= {name: start(python) for name, _, python in (text.partition("=") for text in arguments.python)}
    for name, _, library in (text.partition("=") for text in arguments.library):
        contestants[name] = start(sys.executable, preload=library)
    parts = {}
    for part in arguments.part or PARTS:
        speeds = in_turns({name: partial(one.speed, part) for name, one in contestants.items()}, arguments.rounds)
        parts[part] = {
            name: {**spread(values), "ratio": median_ratio(speeds["installed"], values)}
            for name, values in speeds.items()
        }
    print_document(arguments, {"parts": parts})


class Contestant:
    """A process that generates when it is asked to."""

    def __init__(self, python: str, model: Path, threads: int, preload: str = "") -> None:
        command = [python, "-c", WORKER, str(model), str(threads)]
        own = {**os.environ, "LD_PRELOAD": preload} if preload else None
        self._process = subprocess.Popen(command, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def speed(self, part: str, number: int) -> float:
        print(json.dumps([part, number]), file=self._process.stdin, flush=True)
        return float(self._read())

    def _read(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a contestant ended with status {self._process.wait()}")
        return line


if __name__ == "__main__":
    main()
