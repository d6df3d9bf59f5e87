"""Runs mutated GGUF files, each in a separate process, and reports the outcomes.

From the repository's root, for instance

    .venv/bin/python -m tests.runtime.fuzzing --cases 50000 --seed 1     many
    .venv/bin/python -m tests.runtime.fuzzing --seed 1 --only 4711      one of them, with all that it says

A server, a fresh interpreter with one thread, forks a child for every case. The child may have a gigabyte more than
the server and ten seconds; it loads the file, writes, scores, and reports. It must succeed, or fail by an error of
ours: a signal, another exception, a hang, or an allocation that its limit refused is a finding.
"""

import argparse
import gc
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from traceback import format_exception
from typing import Any

import numpy as np
from dgpt2_quant.core.errors import DgptQuantError, GGUFError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.runtime import Model

from .mutations import Draft, make_sources, mutated, take_apart

ROOT = Path(__file__).parents[2]
MEMORY, SECONDS = 1 << 30, 10
PAGE = os.sysconf("SC_PAGE_SIZE")
SETTINGS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {},
    {"top_k": 0, "top_p": 0.7, "min_p": 0.0},
    {"top_k": 0, "top_p": 1.0, "min_p": 0.1, "temperature": 2.0},
    {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.3},
    {"typical_p": 0.5, "top_k": 0, "logprobs": 3},
    {"mirostat": 2, "echo": True, "logprobs": 2},
    {"temperature": 0.0, "min_tokens": 2, "dry_multiplier": 0.8},
)


@dataclass
class Outcome:
    """What became of a case; `problem` is empty where all is well."""

    case: int
    mutations: list[str]
    source: str
    header: bool = False
    loaded: bool = False
    decoded: bool = False
    error: str = ""
    problem: str = ""


def run(cases: range, seed: int, folder: Path, jobs: int = 1) -> Iterator[Outcome]:
    """Starts the servers, which take turns with the cases, and yields each outcome."""
    make_sources(folder)
    command = [sys.executable, "-m", "tests.runtime.fuzzing", "--seed", str(seed), "--serve", str(folder)]
    servers = [
        subprocess.Popen(
            [*command, str(cases.start + job), str(cases.stop), str(jobs)],
            cwd=ROOT,
            env={**os.environ, "GGML_NO_BACKTRACE": "1", "PYTHONWARNINGS": "ignore"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for job in range(jobs)
    ]
    try:
        with ThreadPoolExecutor(jobs) as pool:  # so that no server waits for its pipe to be read
            for said, _ in pool.map(subprocess.Popen.communicate, servers):
                yield from (Outcome(**json.loads(line)) for line in said.splitlines())
        for server in servers:
            if server.wait():
                raise RuntimeError(f"a server ended with {server.returncode}")
    finally:
        for server in servers:
            server.kill()
            server.wait()


def serve(folder: Path, cases: range, seed: int) -> None:
    """Forks a child for every case, and prints what it reports."""
    files = sorted(folder.glob("*.gguf"))
    sources = {path.name: take_apart(path) for path in files}
    warm_up(files[0])
    gc.freeze()  # a child that collects would go through all of it, and so copy it
    own = folder / str(os.getpid())
    own.mkdir()
    for case in cases:
        print(json.dumps(asdict(fork(case, seed, sources, own))), flush=True)
    shutil.rmtree(own)


def warm_up(path: Path) -> None:
    """Imports and initialises what every child would, once."""
    with Model.load(path, threads=1) as model:
        for settings in SETTINGS:
            model.generate("a", max_tokens=1, **settings)


def fork(case: int, seed: int, sources: dict[str, Draft], folder: Path) -> Outcome:
    """Runs one case in a child."""
    random = Random(f"{seed}:{case}")
    source = random.choice(list(sources))
    names, data = mutated(sources[source], random)
    outcome = Outcome(case, names, source)
    file, said = folder / "case.gguf", folder / "stderr"
    file.write_bytes(data)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            limit()
            exercise(file, random, lambda **news: os.write(writing, json.dumps(news).encode() + b"\n"))
        except BaseException as error:
            os.write(writing, json.dumps({"problem": "".join(format_exception(error))[-1500:]}).encode() + b"\n")
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as lines:
        for line in lines:
            for name, value in json.loads(line).items():
                setattr(outcome, name, value)
    _, status = os.waitpid(child, 0)
    if status:
        last = said.read_text("utf-8", "replace").strip()[-300:]
        what = signal.strsignal(os.WTERMSIG(status)) if os.WIFSIGNALED(status) else f"status {status >> 8}"
        outcome.problem = f"{what}: {last}"
    return outcome


def limit() -> None:
    """A gigabyte of memory beyond what the process has, no core file, ten seconds."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.alarm(SECONDS)


class _Refusals(logging.Handler):
    """Finds in llama.cpp's log that it did not get its memory; it goes on as if the file were at fault."""

    def __init__(self, report: Callable[..., object]) -> None:
        super().__init__()
        self.report = report

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING and ("alloc" in text or "memory" in text):
            self.report(problem=f"no memory: {text}")


def exercise(path: Path, random: Random, report: Callable[..., object]) -> None:
    """Loads the file and uses it in every way. Lets all errors through that are not ours."""
    logging.getLogger("dgpt2_quant.llama_cpp").addHandler(_Refusals(report))
    with suppress(GGUFError):
        read_header(path)
        report(header=True)
    try:
        model = Model.load(path, threads=1)
    except DgptQuantError as error:
        report(error=f"{type(error).__name__}: {error.message.replace(str(path), 'it')}")
        return
    report(loaded=True)
    few = [random.randrange(model.vocabulary) for _ in range(min(4, model.positions))]
    texts = ("Once", "in the the\n", "é 漢\0x<|endoftext|>", "")
    for use in (
        lambda: model.generate([few], max_tokens=3, seed=1, **random.choice(SETTINGS[1:])),
        lambda: model.generate(random.choice(texts), max_tokens=3, **SETTINGS[0]),
        lambda: random.random() < 0.1 and model.generate(["a", "b"], max_tokens=2, parallel=2),
        lambda: model.logits(few),
        lambda: model.score(model.tokenize(texts[0])[: model.positions] or few),
        lambda: random.random() < 0.3 and model.features(few, pooling="mean"),
        lambda: model.detokenize(range(model.vocabulary)),
    ):
        try:
            found = use()
        except DgptQuantError as error:
            report(error=f"{type(error).__name__}: {error.message.replace(str(path), 'it')}")
        else:
            if isinstance(found, np.ndarray):
                report(decoded=True)
    model.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs mutated GGUF files, each in a process of its own.")
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one case")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        folder, *numbers = arguments.serve
        serve(Path(folder), range(*map(int, numbers)), arguments.seed)
        return
    with tempfile.TemporaryDirectory() as folder:
        if arguments.only is not None:
            print(*run(range(arguments.only, arguments.only + 1), arguments.seed, Path(folder)))
            return
        outcomes = list(run(range(arguments.cases), arguments.seed, Path(folder), arguments.jobs))
    print(summary(outcomes))
    sys.exit(any(outcome.problem for outcome in outcomes))


def summary(outcomes: Sequence[Outcome]) -> str:
    """Counts, the reasons of refusals with their numbers, and the first findings."""
    lines = [
        f"{len(outcomes)} cases: {sum(o.header for o in outcomes)} past the header, "
        f"{sum(o.loaded for o in outcomes)} loaded, {sum(o.decoded for o in outcomes)} decoded, "
        f"{sum(bool(o.problem) for o in outcomes)} findings"
    ]
    kinds = Counter(o.error.partition(":")[0] or "no error" for o in outcomes)
    lines += [f"{count:8} {kind}" for kind, count in kinds.most_common()]
    lines += [str(outcome) for outcome in sorted((o for o in outcomes if o.problem), key=lambda o: o.case)[:20]]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
