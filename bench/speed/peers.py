"""Times other programs with the same weights (peers) in the same rounds: the parent's side.

Each library runs in its own process (`peer_worker`) for the whole benchmark, because several OpenMP libraries disturb
each other in one process. The next contestant's turn begins when the threads of the idle child have stopped spinning.
llama-bench of llama.cpp is a new process for each measurement. A peer that is missing, crashes, hangs or gives a wrong
answer raises `PeerFailed` with the end of its stderr, and only this peer is skipped.
"""

import contextlib
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from dgpt2_quant.bench.document.files import read_files
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime.model import Model

from .child_process import Waiting
from .disturbance import Usage, Watch
from .peer_process import PeerFailed, Worker, number, run_once, shortened
from .timing import TEXT_SECONDS, Sample

LOAD_TIMEOUT = 900.0  # seconds, in which CTranslate2 converts the checkpoint
ANSWER_TIMEOUT = 300.0
# Threads of Intel's OpenMP spin for 0.2 s after their work (KMP_BLOCKTIME), those of libgomp for some milliseconds.
SETTLE_SECONDS = 0.25
# The first token, and at least half of all, must be among the reference's 10 likeliest tokens. The same weights
# quantized to 4 bits chose the first or second in the median, at most the 4th with an untrained model; random tokens
# are thousands of ranks away.
_LIKELY = 10
_SLOWEST = 1e-6  # tokens per second; 0 is not a speed


@dataclass(frozen=True)
class PeerSpec:
    """A library, the precision of its weights, and the command of its worker (or llama-bench), without a process.

    The numbers of threads and positions are appended to the command.
    """

    name: str
    precision: str
    command: tuple[str, ...]
    is_llama_bench: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.precision}"


def peers_for(checkpoint: Path, files: Sequence[Path]) -> list[PeerSpec]:
    """`llama_cpp.Llama` on each GGUF file; Transformers and CTranslate2 on the checkpoint's folder."""
    specs = [_worker("llama_cpp.Llama", file.name, file.path) for file in read_files(files)]
    for library, precision in (
        ("Transformers", "F32"),
        ("Transformers", "BF16"),
        ("CTranslate2", "F32"),
        ("CTranslate2", "INT8"),
    ):
        specs.append(_worker(library, precision, checkpoint))
    return specs


def llama_bench_for(files: Sequence[Path], folder: Path) -> list[PeerSpec]:
    """llama-bench in this folder, on each file. Raises `UsageError` if it is missing."""
    program = folder / "llama-bench"
    if not (program.is_file() and os.access(program, os.X_OK)):
        raise UsageError(
            f"`llama_cpp_bin` must be a folder with llama-bench, not {folder}", "Name llama.cpp's build/bin."
        )
    return [
        PeerSpec("llama-bench", file.name, (str(program.resolve()), "-m", str(file.path.resolve())), True)
        for file in read_files(files)
    ]


class Peer:
    """A running peer; `close` ends its process. `waiting` is called during a long answer.

    Every method may raise `PeerFailed`.
    """

    def __init__(self, spec: PeerSpec, *, threads: int, positions: int, waiting: Waiting | None = None) -> None:
        self.spec = spec
        self.samples: list[Sample] = []
        self.version = ""
        self.load_ms: float | None = None
        self.peak_rss_bytes: int | None = None
        self.sane: bool | None = None
        self._threads = threads
        self._waiting = waiting
        self._worker: Worker | None = None
        self._text: tuple[list[int], list[int]] | None = None
        if not spec.is_llama_bench:
            self._worker = Worker([*spec.command, str(threads), str(positions)], threads)
            with self._closing_on_error():
                ready = self._worker.answer(LOAD_TIMEOUT, waiting)
                if "absent" in ready:
                    raise PeerFailed(f"not installed: {ready['absent']}")
                self.version, self.load_ms = str(ready.get("version")), number(ready, "load_ms")

    def time(self, prompt: Sequence[int], tokens: int) -> Sample:
        """Times a prompt, then `tokens` tokens after it."""
        if self._worker is None:
            return self._bench(len(prompt), tokens)
        self._worker.ask({"prompt": list(prompt), "tokens": tokens, "seconds": TEXT_SECONDS})
        found = self._worker.answer(ANSWER_TIMEOUT, self._waiting)
        time.sleep(SETTLE_SECONDS)
        written = found.get("tokens")
        if not isinstance(written, list) or len(written) != tokens or not all(type(one) is int for one in written):
            raise PeerFailed(f"it should generate {tokens} tokens, and answered {shortened(written)}")
        self._text = list(prompt), written
        self.peak_rss_bytes = self.peak_rss_bytes or int(number(found, "peak_rss_bytes"))
        usage = Usage(
            number(found, "asked"),
            None if found.get("waited") is None else number(found, "waited"),
            number(found, "available"),
            None if found.get("others") is None else number(found, "others", -math.inf),  # ticks are coarse
        )
        return Sample(number(found, "prompt_tps", _SLOWEST), number(found, "decode_tps", _SLOWEST), None, usage)

    def check(self, reference: Model) -> None:
        """Sets `sane`: whether the reference finds the last tokens likely. llama-bench reports no tokens."""
        if self._text:
            self.sane = is_sane(reference, *self._text)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _closing_on_error(self) -> Any:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _bench(self, prompt_tokens: int, tokens: int) -> Sample:
        """Both speeds by llama-bench: of the prompt, and of decoding after it."""
        with Watch(self._threads) as watch:
            prompt = self._llama_bench("-p", prompt_tokens, "-n", 0)
            decode = self._llama_bench("-p", 0, "-n", tokens, "-d", prompt_tokens)
        self.version = f"b{decode.get('build_number')} ({decode.get('build_commit')})"
        usage = watch.usage  # without the time its threads waited, which is lost when they end
        return Sample(
            number(prompt, "avg_ts", _SLOWEST),
            number(decode, "avg_ts", _SLOWEST),
            None,
            Usage(usage.asked, None, usage.available, usage.others),
        )

    def _llama_bench(self, *options: object) -> dict[str, Any]:
        command = [*self.spec.command, "-t", self._threads, *options, "-r", 1, "-ngl", 0, "-o", "json"]
        found = run_once(list(map(str, command)), self._threads, ANSWER_TIMEOUT, self._waiting)
        if not (isinstance(found, list) and len(found) == 1 and isinstance(found[0], dict)):
            raise PeerFailed(f"it answered {shortened(found)}")
        return found[0]


def is_sane(reference: Model, prompt: Sequence[int], tokens: Sequence[int]) -> bool:
    """Whether the reference finds greedily decoded tokens likely: the first one, which shows that the prompt was read,
    and at least half of all."""
    if not all(0 <= token < reference.vocabulary for token in tokens):
        return False
    rows = reference.logits([*prompt, *tokens[:-1]], len(prompt) - 1)
    chosen = rows[np.arange(len(tokens)), list(tokens)]
    ranks = (rows > chosen[:, None]).sum(axis=1)
    return bool(ranks[0] < _LIKELY and np.median(ranks) < _LIKELY)


def _worker(library: str, precision: str, source: Path) -> PeerSpec:
    module = "dgpt2_quant.bench.speed.peer_worker"
    return PeerSpec(library, precision, (sys.executable, "-m", module, library, precision, str(source.resolve())))
