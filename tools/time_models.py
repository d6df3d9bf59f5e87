"""Times several quant types that stream at once, each with a scheduler of its own.

usage: time_models.py MODEL.gguf MODEL.gguf [MODEL.gguf ...] [--streams N] [--tokens N] [--rounds N] [--threads N]

The streams are shared out among the first one, two or four models. Contestants, which take turns: each number of models
with all threads each, with "auto", and with the threads shared out. The last line is JSON: tokens per second of all
streams together, the ratio of one model's to each, and the 99 % quantile of the milliseconds between two texts.
"""

import threading
import time
from contextlib import ExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

from dgpt2_quant.runtime import Model, Scheduler
from harness import compare, parser_of, print_document, seconds_of

PROMPT = "Once upon a time"
Threads = int | Literal["auto"]


def main() -> None:
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    threads: int = arguments.threads
    contestants: dict[str, tuple[int, Threads]] = {"1 model": (1, threads)}
    for count in (2, 4):
        contestants[f"{count} models"] = count, threads
        contestants[f"{count} models, auto"] = count, "auto"
        contestants[f"{count} models, threads shared out"] = count, max(1, threads // count)
    between: dict[tuple[int, Threads], list[float]] = {options: [] for options in contestants.values()}

    def one(count: int, threads: Threads, number: int) -> float:
        tokens = arguments.tokens if number else 8  # the first round warms up
        with ExitStack() as stack:
            models = [stack.enter_context(Model.load(path, threads=threads)) for path in arguments.models[:count]]
            found = [stack.enter_context(Scheduler(m, parallel=arguments.streams, ctx_size=256)) for m in models]
            times = between[count, threads] if number else []
            return arguments.streams * tokens / seconds_of(stream, found, arguments.streams, tokens, times)

    speeds = compare({name: partial(one, *options) for name, options in contestants.items()}, arguments.rounds)
    p99 = {name: round(sorted(between[key])[int(0.99 * len(between[key]))], 1) for name, key in contestants.items()}
    about = {"models": [path.name for path in arguments.models], "streams": arguments.streams}
    print_document(arguments, {**about, "tokens": arguments.tokens, **speeds, "between_ms_p99": p99})


def stream(found: list[Scheduler], streams: int, tokens: int, between: list[float]) -> None:
    def read(number: int) -> None:
        handle = found[number % len(found)].submit(PROMPT, max_tokens=tokens, ignore_eos=True, seed=number, lookup=0)
        times = [time.perf_counter() for _ in handle]
        between.extend(1000 * (after - before) for before, after in pairwise(times))

    readers = [threading.Thread(target=read, args=(number,)) for number in range(streams)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()


if __name__ == "__main__":
    main()
