"""Times `threads="auto"` on a machine that becomes busy and idle again.

usage: time_governor.py MODEL.gguf [--plot FILE.svg] [--rounds N] [--seconds S]

First `auto` and each fixed number of threads in turns, 100 tokens each: on the idle machine, with one busy process, and
with one for each core. Then one long generation by `auto`: S seconds without load, S with one busy process for each
core, and S without. The last line is JSON; --plot draws threads and tokens per second over time (needs matplotlib).
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

from dgpt2_quant.core.cores import usable_cores
from dgpt2_quant.runtime import Model
from harness import in_turns, parser_of, print_document, seconds_of, spread

BIN = 0.1  # seconds of a bin of the timeline
TOKENS = 100
PAUSE = 0.1  # seconds before each turn, after which the governor measures anew


def main() -> None:
    parser = parser_of(__doc__, rounds=15)
    parser.add_argument("model", type=Path)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    cores = usable_cores()
    document: dict[str, Any] = {"cores": cores, "load": {}}
    with ExitStack() as stack:
        contestants: list[int | Literal["auto"]] = ["auto", *range(1, cores + 1)]
        models = {str(n): stack.enter_context(Model.load(arguments.model, threads=n)) for n in contestants}
        for busy in sorted({0, 1, cores}):
            document["load"][busy] = turns(models, busy, arguments.rounds)
    with Model.load(arguments.model) as model:
        document["timeline"] = timeline(model, cores, arguments.seconds)
    if arguments.plot:
        draw(document["timeline"], arguments.plot)
    print_document(arguments, document)


def turns(models: dict[str, Model], busy: int, rounds: int) -> dict[str, Any]:
    """Tokens per second by number of threads under a load, and the share of the best fixed number that `auto` has."""

    def speed(model: Model, _number: int) -> float:
        time.sleep(PAUSE)
        pieces = model.stream([5], max_tokens=TOKENS, temperature=0, lookup=0, ignore_eos=True)
        return TOKENS / seconds_of(list, pieces)

    with hogs(busy):
        speeds = in_turns({name: partial(speed, model) for name, model in models.items()}, rounds)
    tps = {name: spread(values) for name, values in speeds.items()}
    best = max(found["median"] for name, found in tps.items() if name != "auto")
    return {"tps": tps, "of_best_fixed": round(tps["auto"]["median"] / best, 3)}


def timeline(model: Model, cores: int, seconds: float) -> dict[str, Any]:
    """Tokens per second and threads in bins, and the seconds from the end of the load to 95 % of the usual speed."""
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
    # recovered: at the first half second with 95 % of the usual speed
    later = [(at, tps) for at, tps, _ in rows if at >= end]
    back = next(
        (
            later[n][0] - end
            for n in range(len(later) - 4)
            if statistics.mean(tps for _, tps in later[n : n + 5]) >= 0.95 * usual
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
    """The times at which tokens arrive; a text that is full is followed by another."""
    end = time.perf_counter() + seconds
    while True:
        for _ in model.stream([5], max_tokens=400, temperature=0, lookup=0, ignore_eos=True):
            now = time.perf_counter()
            if now > end:
                return
            yield now


@contextmanager
def hogs(count: int) -> Iterator[None]:
    """Processes that compute all the time."""
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
    upper.set(ylabel="tokens/s", ylim=(0, None), title="threads=auto while the machine becomes busy and idle again")
    lower.step(at, [entry["threads"] for entry in bins], where="post", color="tab:orange")
    lower.set(ylabel="threads", xlabel="seconds", ylim=(0.8, max(entry["threads"] for entry in bins) + 0.2))
    for axes in (upper, lower):
        axes.axvspan(found["load_from_s"], found["load_to_s"], color="0.9", label="a busy process on each core")
    upper.legend(loc="lower left")
    figure.savefig(path)


if __name__ == "__main__":
    main()
