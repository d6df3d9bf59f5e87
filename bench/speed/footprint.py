"""Load time, time to the first token and peak memory of one file, measured in fresh processes.

The peak memory of a process (VmHWM) includes everything that it did before, and cannot be reset. So a child process
loads the file, reads a prompt, decodes a few tokens, and reports.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgpt2_quant.core.cores import threads_or_all
from dgpt2_quant.core.errors import RuntimeFailure

from .child_process import run_child
from .disturbance import Watch

PROMPT_TOKENS = 64
DECODE_TOKENS = 32
TIMEOUT = 600  # seconds, after which a child is taken to hang
DISTURBED_SECONDS = 5.0  # after which a disturbed child is the last one


@dataclass(frozen=True)
class Footprint:
    """Medians over the children in milliseconds, the largest peak in bytes; `disturbed` is None if unknown."""

    load_ms: float
    first_token_ms: float
    peak_rss_bytes: int
    disturbed: bool | None = None


def measure_footprint(
    path: Path, *, threads: int | None = None, children: int = 3, report: Callable[[str], None] | None = None
) -> Footprint:
    """Runs the children one after another, fewer on a busy machine. `report` is called with a description of each step.

    Raises `RuntimeFailure` with the stderr of a child that fails.
    """
    command = [sys.executable, "-m", "dgpt2_quant.bench.speed.footprint", str(path), str(threads_or_all(threads))]
    results: list[dict[str, Any]] = []
    started = time.monotonic()

    def waiting(seconds: float, timeout: float) -> None:
        if report:
            report(f"waiting for a process that loads {path.name} ({seconds:.0f} of at most {timeout:.0f} s)")

    if report:
        report(f"load time and memory, {path.name}")
    while len(results) < children:
        try:
            child = run_child(command, timeout=TIMEOUT, waiting=waiting)
        except subprocess.TimeoutExpired as error:
            raise RuntimeFailure(f"measuring {path} took more than {TIMEOUT} s") from error
        if child.returncode:
            said = child.stderr.decode("utf-8", "replace").strip()[-500:]
            reason = said or f"the process ended with status {child.returncode}"
            raise RuntimeFailure(f"measuring {path} failed: {reason}")
        results.append(json.loads(child.stdout))
        if results[-1]["disturbed"] and time.monotonic() - started > DISTURBED_SECONDS:
            break
    found = [result["disturbed"] for result in results]
    return Footprint(
        load_ms=statistics.median(result["load_ms"] for result in results),
        first_token_ms=statistics.median(result["first_token_ms"] for result in results),
        peak_rss_bytes=max(result["peak_rss_bytes"] for result in results),
        # one disturbed child of three does not move a median
        disturbed=found.count(True) > len(found) / 2 if True in found else None if None in found else False,
    )


def peak_rss_bytes() -> int:
    """The peak resident memory of this process."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _child(path: str, threads: str) -> None:
    from dgpt2_quant.runtime.model import Model
    from dgpt2_quant.runtime.native.bindings import bindings

    bindings()  # importing the library is not part of loading a model
    started = time.perf_counter()
    with Watch(int(threads)) as watch, Model.load(path, threads=int(threads)) as model:
        load_ms = 1000 * (time.perf_counter() - started)
        prompt = [index % model.vocabulary for index in range(min(PROMPT_TOKENS, model.positions // 2))]
        generation = model.stream(prompt, max_tokens=DECODE_TOKENS, seed=0, temperature=0, lookup=0, ignore_eos=True)
        for _ in generation:
            pass
        result = {
            "load_ms": load_ms,
            "first_token_ms": generation.timing.first_token_ms,
            "peak_rss_bytes": peak_rss_bytes(),
        }
    print(json.dumps({**result, "disturbed": watch.usage.disturbed}))


if __name__ == "__main__":
    _child(*sys.argv[1:])
