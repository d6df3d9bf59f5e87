"""Shows what the thread governor does on a machine that gets busy and idle again.

usage: time_governor.py MODEL.gguf [--plot FILE.svg] [--rounds N] [--seconds S]

First `auto` against each fixed number of threads, a text of 100 tokens each, in turns: on the idle machine, with one
busy process, and with one for each core. Then one long generation by `auto`, through S seconds without load, S with one
busy process for each core, and S without: threads and tokens per second over time. The last line is JSON; --plot draws
the second part (needs matplotlib).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from dgpt2_quant.core.cores import usable_cores
from dgpt2_quant.runtime import Model

BIN = 0.1  # seconds of the second part's time line
TOKENS = 100  # of a contestant's turn
PAUSE = 0.1  # seconds before each: what the governor knows is stale by then, and it begins anew


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    cores = usable_cores()
    document: dict[str, Any] = {"cores": cores, "rounds": arguments.rounds, "loadavg": os.getloadavg(), "load": {}}
    with ExitStack() as stack:
        contestants: list[int | Literal["auto"]] = ["auto", *range(1, cores + 1)]
        models = {str(n): stack.enter_context(Model.load(arguments.model, threads=n)) for n in contestants}
        for busy in sorted({0, 1, cores}):
            document["load"][busy] = found = turns(models, busy, arguments.rounds)
            print(f"{busy} busy processes", json.dumps(found), file=sys.stderr)
    with Model.load(arguments.model) as model:
        document["timeline"] = timeline(model, cores, arguments.seconds)
    if arguments.plot:
        draw(document["timeline"], arguments.plot)
    print(json.dumps(document))


def turns(models: dict[str, Model], busy: int, rounds: int) -> dict[str, Any]:
    """Tokens per second of each under a load, and the governor's share of the best fixed number and of one thread."""
    speeds: dict[str, list[float]] = {name: [] for name in models}
    with hogs(busy):
        for _ in range(rounds):
            for name, model in models.items():
                time.sleep(PAUSE)
                started = time.perf_counter()
                for _ in model.stream([5], max_tokens=TOKENS, temperature=0, lookup=0, ignore_eos=True):
                    pass
                speeds[name].append(TOKENS / (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    best = max(value for name, value in medians.items() if name != "auto")
    return {
        "tps": {
            name: {key: round(f(values), 1) for key, f in (("median", statistics.median), ("min", min), ("max", max))}
            for name, values in speeds.items()
        },
        "of_best_fixed": round(medians["auto"] / best, 3),
        "of_one_thread": round(medians["auto"] / medians["1"], 3),
        "lowest_of_one_thread": round(min(speeds["auto"]) / medians["1"], 3),
    }


def timeline(model: Model, cores: int, seconds: float) -> dict[str, Any]:
    """(time, tokens per second, threads) in bins, and how long it took to be back at its speed after the load."""
    marks: list[tuple[float, int]] = []
    started = time.perf_counter()

    def follow() -> None:
        marks.extend((now - started, model.threads) for now in tokens(model, seconds))

    follow()
    with hogs(cores):
        begin = time.perf_counter() - started
        follow()
    end = time.perf_counter() - started
    follow()
    bins: dict[int, list[int]] = {}
    for at, threads in marks:
        bins.setdefault(int(at / BIN), []).append(threads)
    whole = sorted(bins.items())[:-1]  # the last one ends somewhere in the middle
    rows = [(round(n * BIN, 2), len(used) / BIN, statistics.mean(used)) for n, used in whole]
    usual = statistics.median(tps for at, tps, _ in rows if 1 < at < begin - BIN)
    # back: the first half second after the end with 95 % of the usual speed
    behind = [(at, tps) for at, tps, _ in rows if at >= end]
    back = next(
        (
            behind[n][0] - end
            for n in range(len(behind) - 4)
            if statistics.mean(tps for _, tps in behind[n : n + 5]) >= 0.95 * usual
        ),
        None,
    )
    return {
        "load_from_s": round(begin, 2),
        "load_to_s": round(end, 2),
        "recovered_after_s": None if back is None else round(max(back, 0.0), 2),
        "bins": [{"at_s": at, "tps": tps, "threads": round(threads, 2)} for at, tps, threads in rows],
    }


def tokens(model: Model, seconds: float) -> Iterator[float]:
    """The times of tokens for so long; a text that is full begins anew."""
    end = time.perf_counter() + seconds
    while True:
        for _ in model.stream([5], max_tokens=500, temperature=0, lookup=0, ignore_eos=True):
            now = time.perf_counter()
            if now > end:
                return
            yield now


@contextmanager
def hogs(count: int) -> Iterator[None]:
    """So many processes that compute all the time."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    time.sleep(0.3 if count else 0)
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def draw(found: dict[str, Any], path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("--plot needs matplotlib: install it with `uv pip install matplotlib`") from None
    bins = found["bins"]
    figure = Figure(figsize=(8, 4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    at = [entry["at_s"] for entry in bins]
    upper.plot(at, [entry["tps"] for entry in bins], color="tab:blue")
    upper.set(ylabel="tokens/s", ylim=(0, None), title="auto: a machine that gets busy, and idle again")
    lower.step(at, [entry["threads"] for entry in bins], where="post", color="tab:orange")
    lower.set(ylabel="threads", xlabel="seconds", ylim=(0.8, max(entry["threads"] for entry in bins) + 0.2))
    for axes in (upper, lower):
        axes.axvspan(found["load_from_s"], found["load_to_s"], color="0.9", label="a busy process on each core")
    upper.legend(loc="lower left")
    figure.savefig(path)


if __name__ == "__main__":
    main()
