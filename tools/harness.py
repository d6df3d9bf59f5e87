"""Shared by the measuring scripts: contestants that take turns, medians with their spread, JSON as the last line."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from dgpt2_quant.core.cores import usable_cores

Name = TypeVar("Name")
PROGRAM = Path(sys.executable).with_name("dgpt2-quant")


def parser_of(documentation: str | None, rounds: int) -> argparse.ArgumentParser:
    """The script's docstring as its help, with --rounds and --threads."""
    parser = argparse.ArgumentParser(description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_turns(parser, rounds)
    return parser


def add_turns(parser: argparse.ArgumentParser, rounds: int) -> None:
    parser.add_argument("--rounds", type=int, default=rounds, help=f"after one that warms up; {rounds} by default")
    parser.add_argument("--threads", type=int, default=usable_cores(), help="all usable cores by default")


def print_document(arguments: argparse.Namespace, found: Mapping[str, Any]) -> None:
    """The measurement and its circumstances, on one line."""
    about = {"threads": arguments.threads, "rounds": arguments.rounds, "loadavg": os.getloadavg()}
    print(json.dumps({**about, **found}))


def in_turns(contestants: Mapping[Name, Callable[[int], float]], rounds: int) -> dict[Name, list[float]]:
    """What each contestant returns in each round, after a round that warms up. Every other round runs backwards."""
    found: dict[Name, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name in list(contestants)[:: -1 if number % 2 else 1]:
            value = contestants[name](number)
            if number:
                found[name].append(value)
        show(number, rounds, "round")
    return found


def compare(contestants: Mapping[str, Callable[[int], float]], rounds: int) -> dict[str, Any]:
    """Speeds of contestants that take turns, and the ratio of the first one's to each of the others'."""
    speeds = in_turns(contestants, rounds)
    first, *others = speeds
    ratios = {name: median_ratio(speeds[first], speeds[name]) for name in others}
    return {"tps": {name: spread(values) for name, values in speeds.items()}, "ratio": ratios}


def spread(values: Sequence[float], digits: int = 1) -> dict[str, float]:
    return {name: round(f(values), digits) for name, f in (("median", statistics.median), ("min", min), ("max", max))}


def median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
    """The median of the rounds' own ratios: a slow round slows both sides."""
    return round(statistics.median(a / b for a, b in zip(values, others, strict=True)), 3)


def seconds_of(function: Callable[..., object], *arguments: Any) -> float:
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def run(*command: object) -> tuple[float, int]:
    """Seconds and peak memory in bytes of a command, whose output is thrown away."""
    started = time.perf_counter()
    child = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with status {child.returncode}")
    return seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def output_of(*command: object, log: bool = False) -> str:
    """stdout of a command, and with `log` its stderr too, in their order."""
    errors = subprocess.STDOUT if log else subprocess.DEVNULL
    return subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, stderr=errors).stdout.decode()


def show(done: int, total: int, what: str) -> None:
    """Progress as lines on stderr, at the first and the last step."""
    if done in (1, total):
        print(f"{what}: {done} of {total}", file=sys.stderr)
