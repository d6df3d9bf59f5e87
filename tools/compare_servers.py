"""Compares HTTP servers under streams of completions: tokens per second, time to the first token and between tokens.

usage: compare_servers.py OUTPUT.json MODEL.gguf [--streams N ...] [--tokens N] [--rounds N] [--threads N]
       [--llama-server FILE] [--llama-cpp-python FOLDER] [--other MODEL.gguf]

Contestants, which take turns in one run, all with the same file, threads, slots and context:
- scheduler: `Scheduler` driven directly, without HTTP;
- serve: `dgpt2-quant serve`, and once more with --other as its model (for instance a file of the recipe `lean`);
- llama-server: the program of llama.cpp at --llama-server;
- llama-cpp-python and its older server: the servers of that package. FOLDER has its environment `venv` (with the extra
  `server`) and `examples/server/server.py` of its source package.

One driver that reads bytes, in a process of its own for each round, asks all servers for `/v1/completions` with
`stream`; its CPU time is stated. Each stream has a prompt of its own of about 16 tokens. Ratios are the medians of the
rounds' ratios.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dgpt2_quant.bench.document.environment import describe_environment
from dgpt2_quant.core.json_text import to_json_text
from dgpt2_quant.core.text import load_text
from dgpt2_quant.runtime import Model, Scheduler
from harness import PROGRAM, in_turns, median_ratio, parser_of, spread

STREAMS = (1, 4, 8, 16)
SLOTS, CONTEXT = 16, 256
_STARTS = 120.0  # seconds that a server may take to answer


def main() -> None:
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("output", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--llama-cpp-python", type=Path)
    parser.add_argument("--other", type=Path)
    arguments = parser.parse_args()
    document: dict[str, Any] = {"environment": describe_environment(arguments.threads), "model": arguments.model.name}
    document |= {"tokens": arguments.tokens, "rounds": arguments.rounds, "load": os.getloadavg(), "streams": {}}
    with ExitStack() as stack:
        contestants = {name: stack.enter_context(start) for name, start in starts(arguments).items()}
        for count in arguments.streams:
            document["streams"][count] = measured(contestants, count, arguments)
            arguments.output.write_text(to_json_text(document) + "\n", "utf-8")
            print(json.dumps({count: document["streams"][count]}))


@dataclass
class Contestant:
    """`round` is called with the number of streams and of tokens, and returns the times of a round."""

    round: Callable[[int, int], dict[str, Any]]
    port: int = 0


def measured(contestants: Mapping[str, Contestant], count: int, arguments: argparse.Namespace) -> dict[str, Any]:
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}

    def one(name: str, number: int) -> float:
        found = contestants[name].round(count, arguments.tokens)
        if number:  # not the one that warms up
            rounds[name].append(found)
        return float(found["tps"])

    speeds = in_turns({name: partial(one, name) for name in contestants}, arguments.rounds)
    result: dict[str, Any] = {}
    for name, found in rounds.items():
        firsts = [value for each in found for value in each["first_ms"]]
        between = [value for each in found for value in each["between_ms"]]
        result[name] = {
            "tps": spread(speeds[name]),
            "ratio_of_serve": median_ratio(speeds["serve"], speeds[name]),
            "first_token_ms": {"p50": at(firsts, 0.5), "p99": at(firsts, 0.99)},
            "between_tokens_ms": {"p50": at(between, 0.5), "p99": at(between, 0.99)},
            "events": statistics.median(each["events"] for each in found),
            "driver_cpu_seconds": round(statistics.median(each["cpu"] for each in found), 3),
        }
    return result


def at(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)


def starts(arguments: argparse.Namespace) -> dict[str, Any]:
    """A context manager for each contestant, which gives a `Contestant`."""
    model, threads = arguments.model, arguments.threads
    own = ["--threads", threads, "--parallel", SLOTS, "--ctx-size", CONTEXT]
    found: dict[str, Any] = {
        "scheduler": scheduler(model, threads),
        "serve": server(lambda port: [PROGRAM, "serve", "-m", model, "--port", port, *own]),
    }
    if arguments.other:
        other = arguments.other
        found[f"serve {other.name}"] = server(lambda port: [PROGRAM, "serve", "-m", other, "--port", port, *own])
    if program := arguments.llama_server:
        options = ["-m", model, "-c", SLOTS * CONTEXT, "-np", SLOTS, "-t", threads, "--no-warmup", "--no-webui"]
        found["llama-server"] = server(lambda port: [program, *options, "--port", port])
    if folder := arguments.llama_cpp_python:
        python = folder / "venv" / "bin" / "python"
        found["llama-cpp-python"] = server(partial(new_server, folder, python, model, threads))
        old = ["-m", "llama_cpp.server", "--model", model, "--n_ctx", SLOTS * CONTEXT, "--n_threads", threads]
        old += ["--interrupt_requests", "false"]  # otherwise a new stream ends the one before it
        found["llama-cpp-python, older server"] = server(lambda port: [python, *old, "--port", port])
    return found


def new_server(folder: Path, python: Path, model: Path, threads: int, port: int) -> list[Any]:
    """The command of llama-cpp-python's example server, which reads a file of settings."""
    settings = folder / f"settings-{port}.json"
    options = {"path": str(model), "max_seq_len": CONTEXT, "max_batch_size": SLOTS, "n_ctx": SLOTS * CONTEXT}
    model_settings = {**options, "n_seq_max": SLOTS, "threads": threads, "threads_batch": threads, "kv_unified": True}
    settings.write_text(json.dumps({"server": {"host": "127.0.0.1", "port": port}, "model": model_settings}))
    return [python, folder / "examples" / "server" / "server.py", "--config-file", settings]


@contextmanager
def scheduler(path: Path, threads: int) -> Iterator[Contestant]:
    with Model.load(path, threads=threads) as model, Scheduler(model, parallel=SLOTS, ctx_size=CONTEXT) as found:

        def one(count: int, tokens: int) -> dict[str, Any]:
            return asyncio.run(drive_scheduler(found, count, tokens))

        yield Contestant(one)


async def drive_scheduler(found: Scheduler, count: int, tokens: int) -> dict[str, Any]:
    async def follow(prompt: str) -> list[float]:
        times = [time.perf_counter()]
        async for event in found.submit(prompt, max_tokens=tokens, ignore_eos=True, temperature=0.8):
            times += [time.perf_counter()] * len(event.token_ids)
        return times

    return summary(await asyncio.gather(*map(follow, prompts(count))), tokens, 0.0)


@contextmanager
def server(command: Callable[[int], list[Any]]) -> Iterator[Contestant]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    child = subprocess.Popen(
        list(map(str, command(port))), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for(port, child)
        with get_context("spawn").Pool(1) as driver:
            yield Contestant(lambda count, tokens: driver.apply(drive, (port, count, tokens)), port)
    finally:
        os.killpg(child.pid, signal.SIGTERM)
        child.wait(30)


def wait_for(port: int, child: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + _STARTS
    while time.monotonic() < end:
        if child.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    sys.exit(f"the server did not start: {child.args!r}")


def prompts(count: int) -> list[str]:
    """Different beginnings of about 16 tokens."""
    words = load_text("evaluation").text.split()
    return [" ".join(words[12 * number : 12 * number + 12]) for number in range(count)]


def drive(port: int, count: int, tokens: int) -> dict[str, Any]:
    """Opens the streams at once and reads them to their ends, in a process of its own."""
    before = time.process_time()
    times = asyncio.run(read_all(port, count, tokens))
    return summary(times, tokens, time.process_time() - before)


async def read_all(port: int, count: int, tokens: int) -> list[list[float]]:
    return await asyncio.gather(*(read_one(port, prompt, tokens) for prompt in prompts(count)))


async def read_one(port: int, prompt: str, tokens: int) -> list[float]:
    """The time of the request, and of each event that carries a text."""
    body = {"prompt": prompt, "max_tokens": tokens, "stream": True, "temperature": 0.8, "ignore_eos": True}
    data = json.dumps({**body, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "logit_bias": {"0": -100}}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    times, ended = [time.perf_counter()], False
    writer.write(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
    while line := await reader.readline():
        if line.startswith(b"data: {") and b'"text"' in line:
            times.append(time.perf_counter())
            ended = b'"length"' in line
    writer.close()
    if not ended:
        raise SystemExit(f"a stream from port {port} ended after {len(times) - 1} texts")
    return times


def summary(streams: list[list[float]], tokens: int, cpu: float) -> dict[str, Any]:
    """Of the streams' times: that of the request, then one for each event, which has a token or a few.

    All servers generate all `tokens`: the end of a text has next to no probability.
    """
    seconds = max(times[-1] for times in streams) - min(times[0] for times in streams)
    return {
        "tps": len(streams) * tokens / seconds,
        "events": sum(len(times) - 1 for times in streams),
        "first_ms": [1000 * (times[1] - times[0]) for times in streams],
        "between_ms": [1000 * (b - a) for times in streams for a, b in pairwise(times[1:])],
        "cpu": cpu,
    }


if __name__ == "__main__":
    main()
