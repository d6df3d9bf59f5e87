"""Measures what one client can do to the others: times between their tokens while it sends the worst it may.

usage: disturb_server.py MODEL.gguf [--streams N] [--tokens N] [--rounds N]

N streams of /v1/completions are read while one more client sends requests of one kind, again and again: ordinary ones,
the most expensive settings that the server accepts, or for comparison `GET /health`. The kinds take turns. The server
has its default threads, `auto`. The last line is JSON. By kind: between-token times in milliseconds, the ratio of their
99 % quantile to that next to an ordinary client, the client's requests per second, and the share of a core that this
script itself takes. Then the times to a 429 when the queue is full.
"""

import asyncio
import json
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from compare_servers import CONTEXT, at, prompts, read_one, server
from dgpt2_quant.core.text import load_text
from dgpt2_quant.runtime.scheduler import QUEUE
from harness import PROGRAM, in_turns, parser_of, print_document

PROMPT = "Once upon a time"
PASSAGE = load_text("evaluation").text[:700]
ORDINARY = {"temperature": 0.8, "top_k": 40, "top_p": 0.95}
SLOTS = 16
KINDS: dict[str, dict[str, Any] | None] = {
    "ordinary": ORDINARY,
    "no filter": {"temperature": 1.5},
    "top-p alone": {"temperature": 2.0, "top_p": 0.99},
    "typical": {"temperature": 2.0, "typical_p": 0.99},
    "mirostat": {"mirostat": 2, "mirostat_tau": 20},
    "penalties": {"repetition_penalty": 1.3, "frequency_penalty": 1, "presence_penalty": 1, "repeat_last_n": -1},
    "DRY": {"dry_multiplier": 1, "dry_allowed_length": 1, "dry_sequence_breakers": [chr(97 + n) for n in range(26)]},
    "biases": {**ORDINARY, "logit_bias": {str(token): -1.0 for token in range(300)}},
    "stops": {**ORDINARY, "stop": ["a" * 990 + str(number) for number in range(64)]},
    "log-probabilities": {**ORDINARY, "logprobs": 100},
    "scored prompts": {**ORDINARY, "prompt": PASSAGE, "echo": True, "logprobs": 100, "max_tokens": 1},
    "new prompts": {**ORDINARY, "prompt": PASSAGE, "max_tokens": 1, "seed": 1},
    "eight texts": {**ORDINARY, "n": 8},
    "health": None,
    "bad requests": {"prompt": PASSAGE, "banana": 1},
    "a megabyte": {"prompt": "a" * 1_000_000},
}


def main() -> None:
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("model", type=Path)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
    own = ["--parallel", SLOTS, "--ctx-size", CONTEXT]
    rounds: dict[str, list[Round]] = {name: [] for name in KINDS}

    def one(port: int, name: str, number: int) -> float:
        found = asyncio.run(disturbed(port, KINDS[name], arguments.streams, arguments.tokens))
        if number:
            rounds[name].append(found)
        return at(found.between_ms, 0.99)

    with server(lambda port: [PROGRAM, "serve", "-m", arguments.model, "--port", port, *own]) as running:
        in_turns({name: partial(one, running.port, name) for name in KINDS}, arguments.rounds)
        refusals = asyncio.run(refused(running.port))
    between = {name: [value for each in found for value in each.between_ms] for name, found in rounds.items()}
    usual = at(between["ordinary"], 0.99)
    kinds = {
        name: {
            **{f"p{p}": at(found, p / 100) for p in (50, 99)},
            "max": at(found, 1),
            "ratio": round(at(found, 0.99) / usual, 2),
            "requests_per_second": round(median(each.requests / each.seconds for each in rounds[name]), 1),
            "client_cpu": round(median(each.cpu / each.seconds for each in rounds[name]), 2),
        }
        for name, found in between.items()
    }
    about = {"threads": "auto", "model": arguments.model.name, "streams": arguments.streams, "between_ms": kinds}
    print_document(arguments, {**about, "refused_ms": {f"p{p}": at(refusals, p / 100) for p in (50, 99)}})


class Round(NamedTuple):
    """The streams' times between tokens; the other client's requests; the seconds, and this script's CPU seconds."""

    between_ms: list[float]
    requests: int
    seconds: float
    cpu: float


async def disturbed(port: int, settings: dict[str, Any] | None, count: int, tokens: int) -> Round:
    """Reads streams next to a client with these settings."""
    answered: list[float] = []
    started, cpu = time.perf_counter(), time.process_time()
    disturbing = asyncio.create_task(disturb(port, settings, answered))
    try:
        streams = await asyncio.gather(*(read_one(port, prompt, tokens) for prompt in prompts(count)))
    finally:
        disturbing.cancel()
    between = [1000 * (b - a) for times in streams for a, b in pairwise(times[1:])]
    return Round(between, len(answered), time.perf_counter() - started, time.process_time() - cpu)


async def disturb(port: int, settings: dict[str, Any] | None, answered: list[float]) -> None:
    while True:
        await ask(port, settings)
        answered.append(time.perf_counter())


async def ask(port: int, settings: dict[str, Any] | None) -> bytes:
    """The answer to a completion with these settings, or for None to `GET /health`."""
    body = b"" if settings is None else json.dumps({"prompt": PROMPT, "max_tokens": 64, **settings}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"{'POST /v1/completions' if body else 'GET /health'} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    try:
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return await reader.read()
    finally:
        writer.close()


async def refused(port: int, count: int = 200) -> list[float]:
    """Milliseconds to each of `count` refusals, one after the other, while the slots and the queue are full."""
    await asyncio.sleep(1)  # the texts of the rounds end
    texts = {**ORDINARY, "max_tokens": CONTEXT - 8, "n": (SLOTS + QUEUE) // 2}
    filling = [asyncio.create_task(ask(port, texts)) for _ in range(2)]
    await asyncio.sleep(0.5)
    times = []
    for _ in range(count):
        started = time.perf_counter()
        answer = await ask(port, ORDINARY)
        times.append(1000 * (time.perf_counter() - started))
        if b" 429 " not in answer[:20]:
            raise SystemExit(f"the queue was not full after {len(times)} refusals")
    for task in filling:
        task.cancel()
    return times


if __name__ == "__main__":
    main()
