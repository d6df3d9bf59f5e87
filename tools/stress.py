"""Long runs of the library in one process: interrupts at random instants, and reloads that must not take memory.

usage: stress.py interrupts COUNT [--seed N] [--model FILE.gguf] [--only PART ...]
       stress.py soak [MODEL] [--type TYPE] [--cycles N] [--limit MODELS]

- interrupts: each SIGINT has to arrive as one KeyboardInterrupt in the main thread, within 2 seconds; then the next
  part begins. Every 25th time a text is compared with the one before the first interrupt. Fails for a lost interrupt,
  a wrong text or a file that is left.
- soak: loads a model again and again, uses it in every way, and drops it without closing it. Prints resident memory and
  its growth since the first cycle, in models' sizes; fails where it is over --limit. Python's collector of reference
  cycles is off: what is dropped must be free at once. Linux only (/proc/self/statm).

The last line is JSON. The exit status is 1 for a failure, and that of a signal if the process dies of one.
"""

import argparse
import faulthandler
import gc
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.quantize.calibration.collect import imatrix
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.store.converted_models import model_file
from dgpt2_quant.runtime import Model, Scheduler

PROMPT = "Once upon a time"
LIMIT = 2.0  # seconds from the signal to the exception
CHECK_EVERY = 25
SETTLE = 5.0  # seconds in which the threads of dropped schedulers must end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    runs = parser.add_subparsers(required=True)
    run = runs.add_parser("interrupts")
    run.add_argument("count", type=int)
    run.add_argument("--seed", type=int, default=1)
    run.add_argument("--model", type=Path, help="storybook at Q8_0 by default")
    run.add_argument("--only", action="append", choices=INTERRUPTED)
    run.set_defaults(run=interrupts)
    run = runs.add_parser("soak")
    run.add_argument("model", nargs="?", default="storybook")
    run.add_argument("--type")
    run.add_argument("--cycles", type=int, default=200)
    run.add_argument("--limit", type=float, default=1.5, metavar="MODELS")
    run.set_defaults(run=soak)
    arguments = parser.parse_args()
    raise SystemExit(arguments.run(arguments))


def interrupts(arguments: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.model or Path(convert("storybook", type="q8_0", output=folder)[0].path)
        use = Use(path, Path(folder))
        sender, received = Sender(arguments.seed), Counter[str]()
        parts = arguments.only or list(INTERRUPTED)
        for number in range(arguments.count):
            part = parts[number % len(parts)]
            try:
                sender.armed.release()
                while True:
                    INTERRUPTED[part](use)
            except KeyboardInterrupt:
                sender.arrived.release()
            received[part] += 1
            if number % CHECK_EVERY == 0 and (text := use.text()) != use.expected:
                raise SystemExit(f"after an interrupt the text is {text!r}, not {use.expected!r}")
        use.model.close()
        left = [found.name for found in Path(folder).rglob("*") if found.suffix not in (".gguf", ".partial")]
        for found in Path(folder).rglob("*.gguf"):
            read_header(found)  # raises where it is not whole
    longest = round(sender.longest, 3)
    print(json.dumps({"sent": sender.sent, "received": received, "longest_seconds": longest, "files_left": left}))
    return int(bool(left))


class Sender:
    """A thread that sends one SIGINT after another, each when the last has arrived."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.armed, self.arrived = threading.Semaphore(0), threading.Semaphore(0)
        self.sent, self.longest = 0, 0.0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            self.armed.acquire()
            time.sleep(10 ** self.random.uniform(-4.5, -1))
            started = time.perf_counter()
            self.sent += 1
            os.kill(os.getpid(), signal.SIGINT)
            if not self.arrived.acquire(timeout=LIMIT):
                print(f"interrupt {self.sent} did not arrive within {LIMIT} s", flush=True)
                faulthandler.dump_traceback()
                os._exit(1)
            self.longest = max(self.longest, time.perf_counter() - started)


class Use:
    """The calls that are interrupted."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder
        self.model = Model.load(path)
        self.expected = self.text()

    def text(self) -> str:
        return "".join(self.model.stream(PROMPT, max_tokens=150, seed=1, lookup=0))

    def stream(self) -> None:
        for _ in self.model.stream(PROMPT, max_tokens=150, seed=1):
            pass

    def abandon(self) -> None:
        """Generations that are not read to their end."""
        next(self.model.stream(PROMPT, max_tokens=150))
        with self.model.batch([PROMPT] * 3, max_tokens=20) as batch:
            next(batch)

    def batch(self) -> None:
        self.model.generate([PROMPT, "The king", "A wolf"], max_tokens=40)

    def score(self) -> None:
        self.model.score(PROMPT * 20)
        self.model.features(PROMPT)

    def load_and_close(self) -> None:
        with Model.load(self.path) as model:
            model.generate(PROMPT, max_tokens=3)

    def close(self) -> None:
        model = Model.load(self.path)
        model.score(PROMPT)
        for _ in range(3):
            model.close()

    def drop(self) -> None:
        model = Model.load(self.path)
        del model

    def schedule(self) -> None:
        with Scheduler(self.model, parallel=2) as scheduler:
            handles = [scheduler.submit(PROMPT, max_tokens=5) for _ in range(3)]
            next(handles[0])
            handles[1].result()

    def convert(self) -> None:
        convert("storybook", type=["q4_k", "q8_0"], output=self.folder, overwrite=True)

    def calibrate(self) -> None:
        imatrix("storybook", text="calibration", output=self.folder / "imatrix.gguf", overwrite=True)

    def lean(self) -> None:
        convert("storybook", type="q4_0", recipe="lean", output=self.folder / "lean.gguf", overwrite=True)


INTERRUPTED: dict[str, Callable[[Use], None]] = {
    use.__name__: use
    for use in (
        *(Use.stream, Use.abandon, Use.batch, Use.score, Use.load_and_close, Use.close, Use.drop, Use.schedule),
        *(Use.convert, Use.calibrate, Use.lean),
    )
}


def soak(arguments: argparse.Namespace) -> int:
    _, path = model_file(arguments.model, type=arguments.type)
    gc.collect()
    gc.disable()
    size, found = path.stat().st_size, []
    for cycle in range(1, arguments.cycles + 1):
        CYCLES[cycle % len(CYCLES)](path)
        if cycle in (1, arguments.cycles) or cycle % max(1, arguments.cycles // 10) == 0:
            end = time.monotonic() + SETTLE
            while threading.active_count() > 1 and time.monotonic() < end:  # a dropped scheduler ends soon, not at once
                time.sleep(0.01)
            found.append(resident())
            growth = (found[-1] - found[0]) / size
            print(f"after {cycle:5} cycles: {found[-1] / 1e6:7.1f} MB, {growth:+.2f} models", flush=True)
    about = {"cycles": arguments.cycles, "model_bytes": size, "resident_bytes": found}
    print(json.dumps({**about, "growth_models": round(growth, 3), "threads": threading.active_count()}))
    return int(growth > arguments.limit)


def rebind(path: Path) -> None:
    model = Model.load(path)
    model.generate(PROMPT, max_tokens=8, seed=1)
    model = Model.load(path)
    model.score(PROMPT)
    model.features(PROMPT)


def leave_a_stream(path: Path) -> None:
    """The generation outlives the name of its model, and is dropped before its end."""
    generation = Model.load(path).stream(PROMPT, max_tokens=32, seed=1)
    next(generation)


def leave_a_batch(path: Path) -> None:
    batch = Model.load(path).batch([PROMPT, "The king"], num_return_sequences=2, max_tokens=32, seed=1)
    next(batch)


def leave_a_scheduler(path: Path) -> None:
    """One request has ended, one is being decoded."""
    scheduler = Scheduler(Model.load(path), parallel=2)
    scheduler.submit(PROMPT, max_tokens=8, seed=1).result(60)
    scheduler.submit(PROMPT, max_tokens=500, seed=1)


def close(path: Path) -> None:
    with Model.load(path) as model, Scheduler(model, parallel=2) as scheduler:
        scheduler.submit(PROMPT, max_tokens=8, seed=1).result(60)
        model.generate(PROMPT, max_tokens=8, seed=1)


CYCLES: tuple[Callable[[Path], None], ...] = (close, rebind, leave_a_stream, leave_a_batch, leave_a_scheduler)


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
