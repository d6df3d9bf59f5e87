"""Times several quant types that stream at once, on schedulers that take turns or not.

usage: time_turns.py MODEL.gguf MODEL.gguf [MODEL.gguf ...] [--streams N] [--tokens N] [--rounds N] [--threads N]

The streams are shared out among the first one, two, ... models. Contestants, which take turns: each number of models
with `Turns`; the same without, where each scheduler's threads compute whenever they can; and without, but with the
threads shared out as well. The last line is JSON: tokens per second of all streams together, and the ratio of one
model's to each.
"""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from dgpt2_quant.runtime import Model, Scheduler, Turns
from harness import compare, parser_of, print_document, seconds_of

PROMPT = "Once upon a time"


def main() -> None:
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    counts = [count for count in (1, 2, 4, 8) if count <= len(arguments.models)]
    contestants = {"1 model": (1, True, arguments.threads)}
    for count in counts[1:]:
        contestants[f"{count} models, turns"] = count, True, arguments.threads
        contestants[f"{count} models, no turns"] = count, False, arguments.threads
        shared = max(1, arguments.threads // count)
        contestants[f"{count} models, no turns, {shared} threads each"] = count, False, shared

    def one(count: int, turns: bool, threads: int, number: int) -> float:
        with schedulers(arguments.models[:count], turns, threads, arguments.streams) as found:
            tokens = arguments.tokens if number else 8
            return arguments.streams * tokens / seconds_of(stream, found, arguments.streams, tokens)

    found = compare({name: partial(one, *options) for name, options in contestants.items()}, arguments.rounds)
    names = [path.name for path in arguments.models]
    print_document(arguments, {"models": names, "streams": arguments.streams, "tokens": arguments.tokens, **found})


@contextmanager
def schedulers(paths: list[Path], turns: bool, threads: int, parallel: int) -> Iterator[list[Scheduler]]:
    shared = Turns() if turns else None
    with ExitStack() as stack:
        models = [stack.enter_context(Model.load(path, threads=threads)) for path in paths]
        yield [stack.enter_context(Scheduler(model, parallel=parallel, ctx_size=256, turns=shared)) for model in models]


def stream(found: list[Scheduler], streams: int, tokens: int) -> None:
    def read(number: int) -> None:
        scheduler = found[number % len(found)]
        for _ in scheduler.submit(PROMPT, max_tokens=tokens, ignore_eos=True, seed=number, lookup=0):
            pass

    readers = [threading.Thread(target=read, args=(number,)) for number in range(streams)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()


if __name__ == "__main__":
    main()
