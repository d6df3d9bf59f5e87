"""Loads a server for a long time with everything that clients do, and checks that it stays well.

usage: soak_server.py MODEL.gguf [MODEL.gguf ...] [--minutes N] [--clients N] [--parallel N] [--queue N]

Starts `dgpt2-quant serve` and, in this process, clients that each choose again and again: a stream, a whole answer, a
score with echo, a stream that is left early, a request that is left while it waits, a bad request, a reader that does
not read, embeddings, a burst of 50 requests. The last line is JSON: answers by kind and status, accepted requests
without an end, time to the first token, and the server's memory. Exit status 1: an answer of 5xx, an accepted request
without an end, or more than 5 % growth of memory after the first fifth of the time.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from dgpt2_quant.core.text import load_text
from harness import PROGRAM

_GROWTH = 1.05
_SAMPLES = 5.0  # seconds between two looks at the memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--queue", type=int, default=16)
    arguments = parser.parse_args()
    options = [word for path in arguments.models for word in ("-m", path)]
    options += ["--port", 0, "--parallel", arguments.parallel, "--queue", arguments.queue]
    child = subprocess.Popen([PROGRAM, "serve", *map(str, options)], stderr=subprocess.PIPE, text=True)
    assert child.stderr
    port = next(
        int(found[1]) for line in child.stderr if (found := re.search(r"Serving .*http://127.0.0.1:(\d+)", line))
    )
    try:
        found = asyncio.run(Soak(port, child, arguments).run())
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(30)
    found["exit_status"] = child.returncode
    print(json.dumps(found))
    sys.exit(not found["well"])


class Soak:
    """The clients, and what they saw."""

    def __init__(self, port: int, child: "subprocess.Popen[str]", arguments: argparse.Namespace) -> None:
        self.port, self.child, self.arguments = port, child, arguments
        self.answers: Counter[str] = Counter()
        self.unfinished = 0
        self.first_ms: list[float] = []
        self.memory: list[int] = []
        self.texts = load_text("evaluation").text
        self.random = random.Random(1)
        self.end = time.monotonic() + 60 * arguments.minutes
        self.kinds = {
            self.stream: 8,
            self.whole: 4,
            self.score: 3,
            self.leaves_stream: 3,
            self.leaves_waiting: 3,
            self.bad: 3,
            self.slow: 1,
            self.embeddings: 1,
            self.burst: 0.3,
        }

    async def run(self) -> dict[str, Any]:
        watching = asyncio.create_task(self.watch())
        threading.Thread(target=self.drain_log, daemon=True).start()
        await asyncio.gather(*(self.client() for _ in range(self.arguments.clients)))
        watching.cancel()
        early = self.memory[len(self.memory) // 5 : 2 * len(self.memory) // 5]
        late = self.memory[-len(self.memory) // 5 :]
        growth = max(late, default=0) / max(early, default=1)
        failures = sum(count for name, count in self.answers.items() if re.search(r" 5\d\d$", name))
        ordered = sorted(self.first_ms)
        return {
            "minutes": self.arguments.minutes,
            "requests": sum(self.answers.values()),
            "answers": dict(sorted(self.answers.items())),
            "failures": failures,
            "unfinished": self.unfinished,
            "first_token_ms": {f"p{p}": round(ordered[int(len(ordered) * p / 100)], 1) for p in (50, 99)},
            "memory_mb": {"early": max(early) // 1000, "late": max(late) // 1000, "growth": round(growth, 3)},
            "well": not failures and not self.unfinished and growth <= _GROWTH,
        }

    async def watch(self) -> None:
        while True:
            status = Path(f"/proc/{self.child.pid}/status").read_text()
            self.memory.append(int(re.search(r"VmRSS:\s+(\d+)", status)[1]))  # type: ignore[index]
            await asyncio.sleep(_SAMPLES)

    def drain_log(self) -> None:
        for _ in self.child.stderr or ():
            pass

    async def client(self) -> None:
        kinds, weights = list(self.kinds), list(self.kinds.values())
        while time.monotonic() < self.end:
            (kind,) = self.random.choices(kinds, weights)
            try:
                await asyncio.wait_for(kind(), 120)
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                self.answers[f"{kind.__name__} {type(error).__name__}"] += 1
                self.unfinished += 1
            await asyncio.sleep(self.random.random() * 0.2)

    def body(self, **extra: Any) -> dict[str, Any]:
        start = self.random.randrange(len(self.texts) - 2000)
        prompt = self.texts[start : start + self.random.choice((20, 200, 900))]
        sampling = self.random.choice(({}, {"temperature": 0}, {"top_k": 40}, {"mirostat": 2}, {"dry_multiplier": 0.8}))
        return {"prompt": prompt, "max_tokens": self.random.choice((8, 32, 100)), **sampling, **extra}

    async def open(self, body: Any, path: str = "/v1/completions") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        data = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + data)
        return reader, writer

    async def ask(self, kind: str, body: Any, path: str = "/v1/completions", end: bytes = b"}") -> bytes:
        """The whole answer; one without its end is counted."""
        started = time.perf_counter()
        reader, writer = await self.open(body, path)
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split()[1])
        first = await reader.read(1 << 16)
        if status == 200 and "stream" in kind:
            self.first_ms.append(1000 * (time.perf_counter() - started))
        answer = first + await reader.read()
        writer.close()
        self.answers[f"{kind} {status}"] += 1
        if status == 200 and not answer.rstrip(b"\r\n0").endswith(end):
            self.unfinished += 1
        return answer

    async def stream(self) -> None:
        await self.ask("stream", self.body(stream=True), end=b"data: [DONE]")

    async def whole(self) -> None:
        await self.ask("whole", self.body(n=self.random.choice((1, 1, 3))))

    async def score(self) -> None:
        await self.ask("score", self.body(echo=True, logprobs=5, max_tokens=1))

    async def bad(self) -> None:
        wrong = ({"prompt": 5}, [], {"banana": 1}, {"n": 0}, {"prompt": "a", "model": "nobody"}, {"prompt": [10**9]})
        await self.ask("bad", self.random.choice(wrong))

    async def embeddings(self) -> None:
        await self.ask("embeddings", {"input": ["The king", "The wolf"]}, "/v1/embeddings")

    async def leaves_stream(self) -> None:
        reader, writer = await self.open(self.body(stream=True, max_tokens=100))
        await reader.read(self.random.choice((1, 300, 3000)))
        writer.close()
        self.answers["leaves_stream"] += 1

    async def leaves_waiting(self) -> None:
        _, writer = await self.open(self.body(max_tokens=100))
        await asyncio.sleep(self.random.random() * 0.1)
        writer.close()
        self.answers["leaves_waiting"] += 1

    async def slow(self) -> None:
        reader, writer = await self.open(self.body(stream=True, max_tokens=100, logprobs=100))
        await asyncio.sleep(self.random.random() * 15)
        with suppress(OSError):
            await reader.read(100)
        writer.close()
        self.answers["slow"] += 1

    async def burst(self) -> None:
        bodies = [self.body(stream=True, max_tokens=8) for _ in range(50)]
        await asyncio.gather(*(self.ask("burst stream", body, end=b"data: [DONE]") for body in bodies))


if __name__ == "__main__":
    main()
