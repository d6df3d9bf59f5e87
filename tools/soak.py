"""Whether memory comes back: loads a model again and again, uses it in every way, and drops it without closing it.

usage: soak.py [MODEL] [--type TYPE] [--cycles N] [--limit MODELS]

Prints resident memory after the first cycle, after each tenth of them and after the last, and how far it is above the
first, in models' sizes. The last line is JSON; the exit status is 1 where the last is more than --limit models above.
Python's collector of reference cycles is off: what is dropped has to be free at once. Linux only (/proc/self/statm).
"""

import argparse
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dgpt2_quant.quantize.store.model_files import model_file
from dgpt2_quant.runtime import Model, Scheduler

PROMPT = "Once upon a time"
SETTLE = 5.0  # seconds that the threads of dropped schedulers have to end in


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="storybook")
    parser.add_argument("--type", default=None)
    parser.add_argument("--cycles", type=int, default=200)
    parser.add_argument("--limit", type=float, default=1.5, metavar="MODELS")
    arguments = parser.parse_args()
    _, path = model_file(arguments.model, type=arguments.type)
    gc.collect()
    gc.disable()
    size, found = path.stat().st_size, []
    for cycle in range(1, arguments.cycles + 1):
        CYCLES[cycle % len(CYCLES)](path)
        if cycle in (1, arguments.cycles) or cycle % max(1, arguments.cycles // 10) == 0:
            wait_for_threads()
            found.append(resident())
            models = (found[-1] - found[0]) / size
            print(f"after {cycle:5} cycles: {found[-1] / 1e6:7.1f} MB, {models:+.2f} models", flush=True)
    growth = (found[-1] - found[0]) / size
    document = {
        "cycles": arguments.cycles,
        "model_bytes": size,
        "resident_bytes": found,
        "growth_models": round(growth, 3),
        "threads": threading.active_count(),
    }
    print(json.dumps(document))
    return int(growth > arguments.limit)


def rebind(path: Path) -> None:
    model = Model.load(path)
    model.generate(PROMPT, max_tokens=8, seed=1)
    model = Model.load(path)
    model.score(PROMPT)
    model.features(PROMPT)


def leave_a_stream(path: Path) -> None:
    """The generation outlives the name of its model, and is dropped in the middle."""
    generation = Model.load(path).stream(PROMPT, max_tokens=32, seed=1)
    next(generation)


def leave_a_batch(path: Path) -> None:
    batch = Model.load(path).batch([PROMPT, "The king"], num_return_sequences=2, max_tokens=32, seed=1)
    next(batch)


def leave_a_scheduler(path: Path) -> None:
    """One request is done, one is on its way."""
    scheduler = Scheduler(Model.load(path), parallel=2)
    scheduler.submit(PROMPT, max_tokens=8, seed=1).result(60)
    scheduler.submit(PROMPT, max_tokens=500, seed=1)


def close(path: Path) -> None:
    with Model.load(path) as model, Scheduler(model, parallel=2) as scheduler:
        scheduler.submit(PROMPT, max_tokens=8, seed=1).result(60)
        model.generate(PROMPT, max_tokens=8, seed=1)


CYCLES: tuple[Callable[[Path], None], ...] = (close, rebind, leave_a_stream, leave_a_batch, leave_a_scheduler)


def wait_for_threads() -> None:
    """A scheduler that nobody has any more ends soon, not at once."""
    end = time.monotonic() + SETTLE
    while threading.active_count() > 1 and time.monotonic() < end:
        time.sleep(0.01)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
