"""Measures what one client can do to the others: times between their tokens while it sends the worst it may.

usage: disturb_server.py MODEL.gguf [--streams N] [--tokens N] [--rounds N] [--threads N]

N streams of /v1/completions are read while one more client sends requests of one kind, again and again: ordinary ones,
or the most expensive settings that the server accepts. The kinds take turns. The last line is JSON: between-token times
in milliseconds by kind, and the ratio of their 99 % quantile to that next to an ordinary client.
"""

import asyncio
import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from compare_servers import CONTEXT, at, prompts, read_one, server
from dgpt2_quant.core.text import load_text
from harness import PROGRAM, in_turns, parser_of, print_document

PASSAGE = load_text("evaluation").text[:700]
ORDINARY = {"temperature": 0.8, "top_k": 40, "top_p": 0.95}
KINDS: dict[str, dict[str, Any]] = {
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
    "bad requests": {"prompt": PASSAGE, "banana": 1},
    "a megabyte": {"prompt": "a" * 1_000_000},
}


def main() -> None:
    parser = parser_of(__doc__, rounds=3)
    parser.add_argument("model", type=Path)
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128)
    arguments = parser.parse_args()
    own = ["--threads", arguments.threads, "--parallel", 16, "--ctx-size", CONTEXT]
    between: dict[str, list[float]] = {name: [] for name in KINDS}

    def one(port: int, name: str, number: int) -> float:
        found = asyncio.run(disturbed(port, KINDS[name], arguments.streams, arguments.tokens))
        if number:
            between[name] += found
        return at(found, 0.99)

    with server(lambda port: [PROGRAM, "serve", "-m", arguments.model, "--port", port, *own]) as running:
        in_turns({name: partial(one, running.port, name) for name in KINDS}, arguments.rounds)
    usual = at(between["ordinary"], 0.99)
    kinds = {
        name: {**{f"p{p}": at(found, p / 100) for p in (50, 99)}, "max": at(found, 1), "ratio": at(found, 0.99) / usual}
        for name, found in between.items()
    }
    print_document(arguments, {"model": arguments.model.name, "streams": arguments.streams, "between_ms": kinds})


async def disturbed(port: int, settings: dict[str, Any], count: int, tokens: int) -> list[float]:
    """Milliseconds between the tokens of the streams, next to a client with these settings."""
    disturbing = asyncio.create_task(disturb(port, settings))
    try:
        streams = await asyncio.gather(*(read_one(port, prompt, tokens) for prompt in prompts(count)))
    finally:
        disturbing.cancel()
    return [1000 * (b - a) for times in streams for a, b in pairwise(times[1:])]


async def disturb(port: int, settings: dict[str, Any]) -> None:
    body = json.dumps({"prompt": "Once upon a time", "max_tokens": 64, **settings}).encode()
    while True:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
        await reader.read()
        writer.close()


if __name__ == "__main__":
    main()
