"""Interrupts this process at random instants while it uses the library, and counts what becomes of each SIGINT.

usage: interrupt_storm.py COUNT [--seed N] [--model FILE.gguf] [--only PART ...]

Each SIGINT has to arrive as one KeyboardInterrupt in the main thread, within 2 seconds. After each the next use begins;
every 25th time a text is checked against what the model wrote before. The last line is JSON: interrupts sent and
received by part, the longest wait, and the resident memory. The exit status is 1 for a lost interrupt or a wrong text,
and that of a signal if the process dies of one.
"""

import argparse
import faulthandler
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
from dgpt2_quant.runtime import Model, Scheduler

PROMPT = "Once upon a time"
LIMIT = 2.0  # seconds from the signal to the exception
CHECK_EVERY = 25


class Storm:
    """A thread that sends one SIGINT after another: the next one when the last has arrived."""

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path, help="storybook at Q8_0 if not given")
    parser.add_argument("--only", action="append", choices=PARTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.model or Path(convert("storybook", type="q8_0", output=folder)[0].path)
        use = Use(path, Path(folder))
        storm, received = Storm(arguments.seed), Counter[str]()
        parts = arguments.only or list(PARTS)
        for number in range(arguments.count):
            part = parts[number % len(parts)]
            function = PARTS[part]
            try:
                storm.armed.release()
                while True:
                    function(use)
            except KeyboardInterrupt:
                storm.arrived.release()
            received[part] += 1
            if number % CHECK_EVERY == 0:
                use.check()
        use.model.close()
        left = [found.name for found in Path(folder).rglob("*") if found.suffix not in (".gguf", ".partial")]
        for found in Path(folder).rglob("*.gguf"):
            read_header(found)  # whole, or it raises
    print(
        json.dumps(
            {
                "sent": storm.sent,
                "received": received,
                "longest_seconds": round(storm.longest, 3),
                "files_left": left,
                "resident_mb": resident_mb(),
            }
        )
    )
    if left:
        raise SystemExit(1)


class Use:
    """What is interrupted."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder
        self.model = Model.load(path)
        self.expected = self.text()

    def text(self) -> str:
        return "".join(self.model.stream(PROMPT, max_tokens=150, seed=1, lookup=0))

    def check(self) -> None:
        if (found := self.text()) != self.expected:
            raise SystemExit(f"after an interrupt the text is {found!r}, not {self.expected!r}")

    def stream(self) -> None:
        for _ in self.model.stream(PROMPT, max_tokens=150, seed=1):
            pass

    def abandon(self) -> None:
        """Generations that nobody reads to their end."""
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
            tickets = [scheduler.submit(PROMPT, max_tokens=5) for _ in range(3)]
            next(tickets[0])
            tickets[1].result()

    def convert(self) -> None:
        convert("storybook", type=["q4_k", "q8_0"], output=self.folder, overwrite=True)

    def calibrate(self) -> None:
        imatrix("storybook", text="calibration", output=self.folder / "imatrix.gguf", overwrite=True)

    def lean(self) -> None:
        convert("storybook", type="q4_0", recipe="lean", output=self.folder / "lean.gguf", overwrite=True)


USES = ("stream", "abandon", "batch", "score", "load_and_close", "close", "drop", "schedule")
CONVERSIONS = ("convert", "calibrate", "lean")
PARTS: dict[str, Callable[[Use], None]] = {name: getattr(Use, name) for name in USES + CONVERSIONS}


def resident_mb() -> float | None:
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except OSError:
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


if __name__ == "__main__":
    main()
