"""Times generation against llama.cpp's own tools and `llama_cpp.Llama`, in turns.

usage: time_runtime.py MODEL.gguf [MODEL.gguf ...] [--llama-cpp-bin DIR] [--rounds N] [--only PART ...]

The parts, each after a round that warms up:
- decode: 256 tokens from a prompt of one, at positions 0 to 255, from the call to the last piece, by
  `Model.stream`, by `Llama.create_completion` (streaming and not) and by llama-bench, which feeds tokens at the same
  positions and samples nothing; greedy, the same without guesses from earlier in the text, and with the default
  settings (top-k 40);
- pages: the same by `Model.stream` alone, with huge pages and with the file mapped, and what each takes to load;
- lookup: greedy texts behind passages of the bundled text, with and without such guesses;
- prompt: from a prompt of 4 and of 512 tokens to the first token, against one `llama_decode` of it in the same context;
- batch: 8 sequences of 256 tokens from one prompt of 4, against llama-batched-bench, whose prompt is shared too;
- depth: decoding behind position 10, 100, 200, 480 and 1,000, with and without flash attention, by types of cache;
- bandwidth: what a token has to read, over how fast this machine reads memory.

Ratios are of speeds, the median of the rounds' own: above 1 ours is faster. llama.cpp's tools come from
--llama-cpp-bin and are left out without it. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.text import load_text
from dgpt2_quant.runtime import Completion, Model
from dgpt2_quant.runtime.native.model_context import NativeContext, NativeModel

TOKENS = 256
SEQUENCES = 8
PROMPT_OF_BATCH = 4
SETTINGS: Mapping[str, Mapping[str, Any]] = {"greedy": {"temperature": 0.0}, "top-k 40": {"temperature": 0.8}}
ALONE = {**SETTINGS, "greedy, lookup=0": {"temperature": 0.0, "lookup": 0}}
PASSAGE = 16  # tokens
PLACES, BEHIND = (10, 100, 200, 480, 1000), 20  # positions, and how many tokens are timed behind each
CACHES = [("auto", "f16"), (False, "f16"), (True, "f16"), (False, "f32"), (True, "bf16"), (True, "q8_0")]

Contestant = Callable[[int], float]  # round number -> tokens per second
Name = TypeVar("Name")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--llama-cpp-bin", type=Path, help="the folder of llama-bench and llama-batched-bench")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", action="append", choices=PARTS)
    arguments = parser.parse_args()
    document: dict[str, Any] = {"threads": arguments.threads, "rounds": arguments.rounds, "loadavg": os.getloadavg()}
    for path in arguments.models:
        found = document[read_header(path, arrays=False).quant_type or path.name] = {}
        for part in arguments.only or PARTS:
            found[part] = PARTS[part](path, arguments)
            print(path.name, part, json.dumps(found[part]), file=sys.stderr)
    print(json.dumps(document))


def decode(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    found = {}
    with (
        Model.load(path, threads=arguments.threads) as model,
        ProcessPoolExecutor(1, get_context("spawn")) as process,
    ):
        for name, settings in ALONE.items():
            contestants = {
                "ours": partial(text, model, settings),
                **peer(path, arguments.threads, SETTINGS[name.split(",")[0]], process),
            }
            if arguments.llama_cpp_bin:
                contestants["llama-bench"] = partial(llama_bench, path, arguments)
            found[name] = compare(contestants, arguments.rounds)
    return found


def text(model: Model, settings: Mapping[str, Any], number: int) -> float:
    """Tokens per second from the call to the last piece, as whoever iterates sees them."""
    started = time.perf_counter()
    for _ in model.stream([1000 + number], max_tokens=TOKENS, ignore_eos=True, seed=1, **settings):
        pass
    return TOKENS / (time.perf_counter() - started)


def pages(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    kinds = {"huge pages": True, "file mapped": False}
    with ExitStack() as stack:
        models = {
            name: stack.enter_context(Model.load(path, threads=arguments.threads, huge_pages=huge_pages))
            for name, huge_pages in kinds.items()
        }
        found: dict[str, Any] = {
            name: compare(
                {kind: partial(text, model, settings) for kind, model in models.items()}, 2 * arguments.rounds
            )
            for name, settings in ALONE.items()
        }
    seconds = in_turns({name: partial(seconds_to_load, path, kind) for name, kind in kinds.items()}, arguments.rounds)
    return {**found, "load_ms": {name: round(1000 * statistics.median(times)) for name, times in seconds.items()}}


def seconds_to_load(path: Path, huge_pages: bool, _number: int) -> float:
    started = time.perf_counter()
    with Model.load(path, huge_pages=huge_pages):
        return time.perf_counter() - started


def lookup(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    with Model.load(path, threads=arguments.threads) as model:
        story = model.tokenize(load_text("evaluation").text)
        texts: dict[str, list[Completion | None]] = {name: [] for name in ("greedy", "greedy, lookup=0")}
        tokens_per_decode = []

        def speed(name: str, number: int) -> float:
            before = model._single.totals.steps
            prompt = story[300 * number :][:PASSAGE]
            generation = model.stream(prompt, max_tokens=TOKENS, ignore_eos=True, **ALONE[name])
            for _ in generation:
                pass
            if name == "greedy":
                tokens_per_decode.append((TOKENS - 1) / (model._single.totals.steps - before))
            texts[name].append(generation.completion)
            return generation.timing.decode_tps or 0

        found = compare({name: partial(speed, name) for name in texts}, 3 * arguments.rounds)
        same = sum(one == other for one, other in zip(*texts.values(), strict=True))
        return {
            **found,
            "tokens_per_decode": spread(tokens_per_decode[1:]),
            "same_texts": same,
            "texts": 3 * arguments.rounds + 1,
        }


def stream(model: Model, prompt: Sequence[int], tokens: int, **settings: Any) -> float:
    """Tokens per second behind the second piece.

    The first comes with the prompt; deep in the context the second one waits for the cache to be carried over.
    """
    pieces = model.stream(prompt, max_tokens=tokens + 2, ignore_eos=True, seed=1, **settings)
    next(pieces)
    next(pieces)
    started = time.perf_counter()
    for _ in pieces:
        pass
    return tokens / (time.perf_counter() - started)


def peer(path: Path, threads: int, settings: Mapping[str, Any], process: Executor) -> dict[str, Contestant]:
    def speed(streamed: bool, number: int) -> float:
        return process.submit(completion, path, threads, settings, streamed, number).result()

    return {"create_completion, streamed": partial(speed, True), "create_completion": partial(speed, False)}


@cache
def peer_model(path: Path, threads: int) -> Any:
    from llama_cpp import Llama

    return Llama(str(path), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)


def completion(path: Path, threads: int, settings: Mapping[str, Any], streamed: bool, number: int) -> float:
    """Tokens per second of a peer, in a process of its own: ours has set how long OpenMP's threads spin."""
    llama = peer_model(path, threads)
    llama.reset()
    started = time.perf_counter()
    answer = llama.create_completion([1000 + number], stream=streamed, max_tokens=TOKENS, seed=1, **settings)
    if streamed:
        for _ in answer:
            pass
    return llama.n_tokens / (time.perf_counter() - started)  # a text that ends by itself has fewer


def llama_bench(path: Path, arguments: argparse.Namespace, _number: int) -> float:
    command = [arguments.llama_cpp_bin / "llama-bench", "-m", path, "-t", arguments.threads, "-p", 0, "-n", TOKENS]
    (result,) = json.loads(output_of([*command, "-r", 1, "-o", "json"]))
    return float(result["avg_ts"])


def prompt(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    found = {}
    with Model.load(path, threads=arguments.threads) as model:
        natives = {fa: NativeModel(path) for fa in (True, False)}  # weights of its own for each: none finds them warm
        contexts = {
            fa: NativeContext(native, model.positions, threads=arguments.threads, flash_attention=fa)
            for fa, native in natives.items()
        }

        def tokens(length: int, number: int) -> list[int]:
            return [(7 + 31 * index + 1009 * number) % model.vocabulary for index in range(length)]

        def ours(length: int, number: int) -> float:
            given = tokens(length, number)
            started = time.perf_counter()
            next(model.stream(given, max_tokens=2, temperature=0, ignore_eos=True))
            return length / (time.perf_counter() - started)

        def plain(context: NativeContext, length: int, number: int) -> float:
            given = tokens(length, number)
            context.keep(0)
            started = time.perf_counter()
            context.decode(given, 0)
            context.logits(1)
            return length / (time.perf_counter() - started)

        for length in (4, 512):
            found[str(length)] = compare(
                {
                    "ours": partial(ours, length),
                    "llama_decode": partial(plain, contexts[False], length),
                    "llama_decode, flash attention": partial(plain, contexts[True], length),
                },
                5 * arguments.rounds,
            )
        for fa, native in natives.items():
            contexts[fa].close()
            native.close()
    return found


def batch(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    found = {}
    with Model.load(path, threads=arguments.threads) as model:
        for name, settings in SETTINGS.items():
            contestants = {"ours": partial(sequences, model, settings)}
            if arguments.llama_cpp_bin:
                contestants["llama-batched-bench"] = partial(llama_batched_bench, path, arguments)
            found[name] = compare(contestants, arguments.rounds)
    return found


def sequences(model: Model, settings: Mapping[str, Any], number: int) -> float:
    """Tokens per second of all together, from when each has its first one to the end."""
    texts = model.batch(
        [[1000 + number, 2, 3, 4]],
        num_return_sequences=SEQUENCES,
        parallel=SEQUENCES,
        max_tokens=TOKENS + 1,
        ignore_eos=True,
        seed=1,
        **settings,
    )
    for count, _ in enumerate(texts, 1):
        if count == SEQUENCES:
            started = time.perf_counter()
    return SEQUENCES * TOKENS / (time.perf_counter() - started)


def llama_batched_bench(path: Path, arguments: argparse.Namespace, _number: int) -> float:
    command = [arguments.llama_cpp_bin / "llama-batched-bench", "-m", path, "-t", arguments.threads]
    command += ["-c", SEQUENCES * 512, "-npp", PROMPT_OF_BATCH, "-ntg", TOKENS, "-npl", SEQUENCES, "-pps"]
    lines = output_of([*command, "--output-format", "jsonl"]).splitlines()
    (result,) = [json.loads(line) for line in lines if line.startswith("{")]
    return float(result["speed_tg"])


def depth(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All places and all caches take turns; each ratio is of the last place's speed to the first one's."""
    with ExitStack() as stack:
        models = {
            f"{kv_type}, flash attention {flash_attention}": stack.enter_context(
                Model.load(path, threads=arguments.threads, flash_attention=flash_attention, kv_type=kv_type)
            )
            for flash_attention, kv_type in CACHES
        }
        beginning = [31 * index % 8000 for index in range(PLACES[-1])]
        contestants = {
            (name, place): partial(behind, model, beginning[:place])
            for place in PLACES
            for name, model in models.items()
        }
        speeds = in_turns(contestants, 3 * arguments.rounds)
    return {
        name: {
            "tps": {str(place): spread(speeds[name, place]) for place in PLACES},
            "ratio": median_ratio(speeds[name, PLACES[-1]], speeds[name, PLACES[0]]),
        }
        for name in models
    }


def behind(model: Model, prompt: Sequence[int], _number: int) -> float:
    return stream(model, prompt, BEHIND, temperature=0.0, lookup=0)


def bandwidth(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Bytes that a token must read (all matrices but the rows that are looked up), and how fast memory is read."""
    header = read_header(path, arrays=False)
    looked_up = {"position_embd.weight"} | ({"token_embd.weight"} if "output.weight" in header.tensors else set())
    needed = sum(tensor.nbytes for name, tensor in header.tensors.items() if name not in looked_up)
    block = np.ones(256 << 20, np.float32)
    parts = np.array_split(block, arguments.threads)
    rates = []
    with ThreadPoolExecutor(arguments.threads) as pool:
        for _ in range(arguments.rounds + 1):
            started = time.perf_counter()
            list(pool.map(np.maximum.reduce, parts))
            rates.append(block.nbytes / (time.perf_counter() - started))
    rate = statistics.median(rates[1:])
    return {"bytes_per_token": needed, "read_gb_per_s": round(rate / 1e9, 1), "bound_tps": round(rate / needed, 1)}


def compare(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, Any]:
    """Each in each round, in turns; speeds with their spread, and the first one's ratio to each other."""
    speeds = in_turns(contestants, rounds)
    first, *others = speeds
    ratios = {name: median_ratio(speeds[first], speeds[name]) for name in others}
    return {"tps": {name: spread(values) for name, values in speeds.items()}, "ratio": ratios}


def in_turns(contestants: Mapping[Name, Contestant], rounds: int) -> dict[Name, list[float]]:
    """The speeds of each in each round, behind a round that warms up."""
    speeds: dict[Name, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, contestant in contestants.items():
            speed = contestant(number)
            if number:
                speeds[name].append(speed)
    return speeds


def median_ratio(speeds: Sequence[float], others: Sequence[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(speeds, others, strict=True)), 3)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(values), 1), "min": round(min(values), 1), "max": round(max(values), 1)}


def output_of(command: Sequence[object]) -> str:
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return done.stdout.decode()


PARTS = {
    "decode": decode,
    "pages": pages,
    "lookup": lookup,
    "prompt": prompt,
    "batch": batch,
    "depth": depth,
    "bandwidth": bandwidth,
}

if __name__ == "__main__":
    main()
