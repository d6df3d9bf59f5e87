"""Times a batch job in turns with other ways to answer the same prompts: generated tokens per second.

usage: time_batch.py OUTPUT.json MODEL.gguf [--lines N] [--tokens N] [--slice N] [--parallel N] [--rounds N]
       [--threads N] [--ctx-size N] [--ray] [--llama-server FILE]

Contestants, all with the same prompts (4 to 120 words of the bundled text), threads and sampling:
- batch: `dgpt2_quant.jobs.batch.batch`, from the file of requests to the complete output, loading the model included;
- batch_lines: the same lines with a loaded model and without files;
- Model.generate: the same prompts, `parallel` at a time;
- Llama.create_completion: one prompt after the other with llama-cpp-python's own class, in a process of its own;
- llama-server: the program of llama.cpp at --llama-server, asked by a client that keeps twice its slots busy.

With --ray there are two: batch, and batch with the engine `ray`, in a cluster on this machine that is started before.
Ratios are the medians of the rounds' ratios: above 1 `batch` is faster.
"""

import argparse
import asyncio
import json
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from compare_servers import wait_for
from dgpt2_quant.bench.document.environment import describe_environment
from dgpt2_quant.core.json_text import to_json_text
from dgpt2_quant.core.text import load_text
from dgpt2_quant.jobs.batch import batch, batch_lines
from dgpt2_quant.jobs.slices import PARALLEL, SLICE
from dgpt2_quant.runtime import Model
from harness import compare, parser_of
from time_generation import llama_of

SAMPLING = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
CONTEXT = 512  # of each slot of llama-server


def main() -> None:
    parser = parser_of(__doc__, rounds=5)
    parser.add_argument("output", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--lines", type=int, default=2 * SLICE)
    parser.add_argument("--tokens", type=int, default=64, help="of each text; all texts are as long")
    parser.add_argument("--slice", type=int, default=SLICE)
    parser.add_argument("--parallel", type=int, default=PARALLEL)
    parser.add_argument("--ctx-size", type=int, help="of each text; the model's by default")
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--llama-server", type=Path)
    arguments = parser.parse_args()
    prompts = some_prompts(arguments.lines)
    document: dict[str, Any] = {"environment": describe_environment(arguments.threads), "model": arguments.model.name}
    document |= {name: getattr(arguments, name) for name in ("lines", "tokens", "slice", "parallel", "rounds")}
    with ExitStack() as stack:
        least = 0.9 * arguments.lines * arguments.tokens  # create_completion may end a text early
        contestants = {name: partial(speed, start, least) for name, start in starts(arguments, prompts, stack).items()}
        document |= compare(contestants, arguments.rounds)
    arguments.output.write_text(to_json_text(document) + "\n", "utf-8")
    print(json.dumps(document))


def speed(start: Callable[[], int], least: float, number: int) -> float:
    started = time.perf_counter()
    if (tokens := start()) < least:
        raise SystemExit(f"a contestant generated {tokens} tokens instead of {least:.0f}")
    return tokens / (time.perf_counter() - started)


def some_prompts(count: int) -> list[str]:
    """Parts of the bundled text, 4 to 120 words long."""
    words, chance = load_text("evaluation").text.split(), random.Random(0)
    starts = [chance.randrange(len(words) - 120) for _ in range(count)]
    return [" ".join(words[start : start + chance.randint(4, 120)]) for start in starts]


def starts(arguments: argparse.Namespace, prompts: list[str], stack: ExitStack) -> dict[str, Callable[[], int]]:
    """A function for each contestant, which answers all prompts once and returns the number of tokens."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    options = {"max_tokens": arguments.tokens, "ignore_eos": True, **SAMPLING}
    lines = [{"prompt": prompt, **options} for prompt in prompts]
    source = folder / "in.jsonl"
    source.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    job = {"slice": arguments.slice, "parallel": arguments.parallel}
    model = stack.enter_context(Model.load(arguments.model, threads=arguments.threads, ctx_size=arguments.ctx_size))
    process = stack.enter_context(ProcessPoolExecutor(1, get_context("spawn")))
    serial = partial(complete_each, arguments.model, arguments.threads, prompts, arguments.tokens)
    files = {
        "model": str(arguments.model),
        "threads": arguments.threads,
        "ctx_size": arguments.ctx_size,
        "restart": True,
    }
    found: dict[str, Callable[[], int]] = {
        "batch": lambda: batch(source, folder / "out.jsonl", **job, **files).tokens,
        "batch_lines": lambda: sum(answer["tokens"] for answer in batch_lines(lines, model=model, **job)),
        "Model.generate": lambda: sum(
            text.tokens for (text,) in model.generate(prompts, parallel=arguments.parallel, seed=1, **options)
        ),
        "Llama.create_completion": lambda: process.submit(serial).result(),
    }
    if arguments.ray:
        import ray

        ray.init(num_cpus=arguments.threads, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        stack.callback(ray.shutdown)
        on_ray = partial(batch, source, folder / "ray.jsonl", engine="ray", **job, **files)
        return {"batch": found["batch"], "batch, ray": lambda: on_ray().tokens}
    if arguments.llama_server:
        port = stack.enter_context(llama_server(arguments))
        ask = partial(ask_all, port, prompts, arguments.tokens, 2 * arguments.parallel)
        found["llama-server"] = lambda: asyncio.run(ask())
    return found


def complete_each(path: Path, threads: int, prompts: list[str], tokens: int) -> int:
    """Its class has no `ignore_eos`, but the end of a text has next to no probability."""
    model, written = llama_of(path, threads), 0
    for prompt in prompts:
        answer = model.create_completion(prompt, max_tokens=tokens, seed=1, **SAMPLING)
        written += answer["usage"]["completion_tokens"]
    return written


@contextmanager
def llama_server(arguments: argparse.Namespace) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    slots = arguments.parallel
    command = [arguments.llama_server, "-m", arguments.model, "-c", slots * CONTEXT, "-np", slots]
    command += ["-t", arguments.threads, "--no-warmup", "--no-webui", "--cache-ram", 0, "--port", port]
    child = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, child)
        yield port
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)


async def ask_all(port: int, prompts: list[str], tokens: int, clients: int) -> int:
    waiting = iter(prompts)
    settings = {**SAMPLING, "cache_prompt": False}  # otherwise it has the prompts of the round before

    async def client() -> int:
        bodies = ({"prompt": prompt, "max_tokens": tokens, "ignore_eos": True, **settings} for prompt in waiting)
        return sum([await ask_one(port, body) for body in bodies])

    return sum(await asyncio.gather(*(client() for _ in range(clients))))


async def ask_one(port: int, body: dict[str, Any]) -> int:
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
    answer = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
    writer.close()
    return int(answer["usage"]["completion_tokens"])


if __name__ == "__main__":
    main()
