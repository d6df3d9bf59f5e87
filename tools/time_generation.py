"""Times generation, in turns with llama.cpp's own programs and `llama_cpp.Llama`.

usage: time_generation.py PART MODEL ... [--rounds N] [--threads N] [--llama-cpp-bin DIR]

MODEL is a GGUF file. The parts (`all`: every one of them):
- decode: 256 tokens after a prompt of one, by `Model.stream`, `Llama.create_completion` and llama-bench; greedy, greedy
  without prompt lookup, and with the default settings (top-k 40);
- pages: the same by `Model.stream` alone, with huge pages and with the file mapped, and how long each takes to load;
- lookup: greedy texts after passages of the bundled text, with and without prompt lookup;
- prompt: prompts of 4 and 512 tokens to the first token, compared with one `llama_decode` of the prompt;
- batch: 8 sequences of 256 tokens after a shared prompt of 4, compared with llama-batched-bench;
- depth: decoding after position 10 to 1,000, by flash attention and by types of KV cache;
- overhead: milliseconds a token by `Model.stream`, and by a loop of bare decodes;
- bandwidth: the bytes that a token reads, and how fast this machine reads memory;
- startup: seconds from the start of the program to `--help`, and to the first token of `run`. Here MODEL may also be a
  checkpoint folder, which the warm-up round converts into the cache.

Ratios are of speeds, the median of the rounds' ratios: above 1 `Model` is faster. llama.cpp's programs are taken from
--llama-cpp-bin and left out without it. The last line is JSON.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.text import load_text
from dgpt2_quant.runtime import Completion, Model
from dgpt2_quant.runtime.native.context import NativeContext
from dgpt2_quant.runtime.native.model import NativeModel
from harness import PROGRAM, compare, in_turns, median_ratio, output_of, parser_of, print_document, seconds_of, spread

TOKENS, SEQUENCES, PASSAGE = 256, 8, 16
SETTINGS: Mapping[str, Mapping[str, Any]] = {"greedy": {"temperature": 0.0}, "top-k 40": {"temperature": 0.8}}
ALONE = {**SETTINGS, "greedy, lookup=0": {"temperature": 0.0, "lookup": 0}}
SAMPLERS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0, "lookup": 0},
    "top-k 40": {},
    "temperature alone": {"top_k": 0, "top_p": 1.0, "min_p": 0},
    "top-p alone": {"top_k": 0, "min_p": 0},
    "mirostat": {"mirostat": 2},
    "penalties": {"repeat_penalty": 1.1},
}
DEPTHS, AFTER = (10, 100, 200, 480, 1000), 20  # positions, and how many tokens are timed after each
CACHES = [("auto", "f16"), (False, "f16"), (True, "f16"), (False, "f32"), (True, "bf16"), (True, "q8_0")]
PROMPT = "Once upon a time"


def main() -> None:
    parser = parser_of(__doc__, rounds=7)
    parser.add_argument("part", choices=[*PARTS, "all"])
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL")
    parser.add_argument("--llama-cpp-bin", type=Path, help="the folder of llama-bench and llama-batched-bench")
    arguments = parser.parse_args()
    document: dict[str, Any] = {}
    for path in arguments.models:
        name = None if path.is_dir() else read_header(path, arrays=False).quant_type
        parts = list(PARTS) if arguments.part == "all" else [arguments.part]
        document[name or path.name] = {part: PARTS[part](path, arguments) for part in parts}
    print_document(arguments, document)


def decode(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    found = {}
    with (
        Model.load(path, threads=arguments.threads) as model,
        ProcessPoolExecutor(1, get_context("spawn")) as process,
    ):
        for name, settings in ALONE.items():
            contestants = {
                "ours": partial(one_sequence, model, settings),
                **llama(path, arguments.threads, SETTINGS[name.split(",")[0]], process),
            }
            if arguments.llama_cpp_bin:
                contestants["llama-bench"] = partial(llama_bench, path, arguments)
            found[name] = compare(contestants, arguments.rounds)
    return found


def one_sequence(model: Model, settings: Mapping[str, Any], number: int) -> float:
    """Tokens per second from the call to the last piece."""
    return TOKENS / seconds_of(
        list, model.stream([1000 + number], max_tokens=TOKENS, ignore_eos=True, seed=1, **settings)
    )


def llama(path: Path, threads: int, settings: Mapping[str, Any], process: Executor) -> dict[str, Callable[..., float]]:
    """`llama_cpp.Llama` in a process of its own: ours has set how long OpenMP's threads spin."""

    def speed(streamed: bool, number: int) -> float:
        return process.submit(completion, path, threads, settings, streamed, number).result()

    return {"create_completion, streamed": partial(speed, True), "create_completion": partial(speed, False)}


@cache
def llama_of(path: Path, threads: int) -> Any:
    from llama_cpp import Llama

    return Llama(str(path), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)


def completion(path: Path, threads: int, settings: Mapping[str, Any], streamed: bool, number: int) -> float:
    model = llama_of(path, threads)
    model.reset()
    started = time.perf_counter()
    answer = model.create_completion([1000 + number], stream=streamed, max_tokens=TOKENS, seed=1, **settings)
    if streamed:
        for _ in answer:
            pass
    return float(model.n_tokens / (time.perf_counter() - started))  # a text that ends early has fewer


def llama_bench(path: Path, arguments: argparse.Namespace, _number: int) -> float:
    command = [arguments.llama_cpp_bin / "llama-bench", "-m", path, "-t", arguments.threads, "-p", 0, "-n", TOKENS]
    return float(json.loads(output_of(*command, "-r", 1, "-o", "json"))[0]["avg_ts"])


def pages(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    kinds = {"huge pages": True, "file mapped": False}

    def seconds_to_load(huge_pages: bool, _number: int) -> float:
        return seconds_of(lambda: Model.load(path, huge_pages=huge_pages).close())

    with ExitStack() as stack:
        models = {
            name: stack.enter_context(Model.load(path, threads=arguments.threads, huge_pages=huge_pages))
            for name, huge_pages in kinds.items()
        }
        found: dict[str, Any] = {
            name: compare(
                {kind: partial(one_sequence, model, settings) for kind, model in models.items()}, arguments.rounds
            )
            for name, settings in ALONE.items()
        }
    seconds = in_turns({name: partial(seconds_to_load, kind) for name, kind in kinds.items()}, arguments.rounds)
    return {**found, "load_ms": {name: round(1000 * statistics.median(times)) for name, times in seconds.items()}}


def lookup(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    with Model.load(path, threads=arguments.threads) as model:
        story = model.tokenize(load_text("evaluation").text)
        texts: dict[str, list[Completion | None]] = {name: [] for name in ("greedy", "greedy, lookup=0")}

        def speed(name: str, number: int) -> float:
            prompt = story[300 * number :][:PASSAGE]
            generation = model.stream(prompt, max_tokens=TOKENS, ignore_eos=True, **ALONE[name])
            for _ in generation:
                pass
            texts[name].append(generation.completion)
            return generation.timing.decode_tps or 0

        found = compare({name: partial(speed, name) for name in texts}, arguments.rounds)
    same = [one == other for one, other in zip(*texts.values(), strict=True)]
    return {**found, "same_texts": sum(same), "texts": len(same)}


def prompt(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    found = {}
    with ExitStack() as stack:
        model = stack.enter_context(Model.load(path, threads=arguments.threads))
        contexts = {flash: bare_context(path, arguments, model.positions, flash, stack) for flash in (False, True)}

        def tokens(length: int, number: int) -> list[int]:
            return [(7 + 31 * index + 1009 * number) % model.vocabulary for index in range(length)]

        def ours(length: int, number: int) -> float:
            generation = model.stream(tokens(length, number), max_tokens=2, temperature=0, ignore_eos=True)
            return length / seconds_of(next, generation)

        def plain(context: NativeContext, length: int, number: int) -> float:
            context.keep(0)
            started = time.perf_counter()
            context.decode(tokens(length, number), 0)
            context.logits(1)
            return length / (time.perf_counter() - started)

        for length in (4, min(512, model.positions - 2)):
            contestants = {
                "ours": partial(ours, length),
                "llama_decode": partial(plain, contexts[False], length),
                "llama_decode, flash attention": partial(plain, contexts[True], length),
            }
            found[str(length)] = compare(contestants, 5 * arguments.rounds)
    return found


def bare_context(
    path: Path, arguments: argparse.Namespace, positions: int, flash_attention: bool, stack: ExitStack
) -> NativeContext:
    """A context of llama.cpp with weights of its own: no other contestant has left them in the processor's caches."""
    native = NativeModel(path)
    context = NativeContext(native, positions, threads=arguments.threads, flash_attention=flash_attention)
    stack.callback(native.close)
    stack.callback(context.close)
    return context


def batch(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    found = {}
    with Model.load(path, threads=arguments.threads) as model:
        for name, settings in SETTINGS.items():
            contestants = {"ours": partial(several_sequences, model, settings)}
            if arguments.llama_cpp_bin:
                contestants["llama-batched-bench"] = partial(llama_batched_bench, path, arguments)
            found[name] = compare(contestants, arguments.rounds)
    return found


def several_sequences(model: Model, settings: Mapping[str, Any], number: int) -> float:
    """Tokens per second of all sequences together, from the first token of the last one to the end."""
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
    command += ["-c", SEQUENCES * 512, "-npp", 4, "-ntg", TOKENS, "-npl", SEQUENCES, "-pps", "--output-format", "jsonl"]
    (result,) = [json.loads(line) for line in output_of(*command).splitlines() if line.startswith("{")]
    return float(result["speed_tg"])


def depth(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All depths and caches take turns; each ratio is of the speed at the last depth to that at the first."""
    with ExitStack() as stack:
        models = {
            f"{kv_type}, flash attention {flash_attention}": stack.enter_context(
                Model.load(path, threads=arguments.threads, flash_attention=flash_attention, kv_type=kv_type)
            )
            for flash_attention, kv_type in CACHES
        }
        positions = min(model.positions for model in models.values())
        depths = [depth for depth in DEPTHS if depth + AFTER + 2 < positions]
        beginning = [31 * index % 8000 for index in range(depths[-1])]
        contestants = {
            (name, depth): partial(after, model, beginning[:depth])
            for depth in depths
            for name, model in models.items()
        }
        speeds = in_turns(contestants, arguments.rounds)
    return {
        name: {
            "tps": {str(depth): spread(speeds[name, depth]) for depth in depths},
            "ratio": median_ratio(speeds[name, depths[-1]], speeds[name, depths[0]]),
        }
        for name in models
    }


def after(model: Model, prompt: Sequence[int], _number: int) -> float:
    """Tokens per second after the second piece: the first comes with the prompt, the second may copy the cache."""
    pieces = model.stream(prompt, max_tokens=AFTER + 2, ignore_eos=True, temperature=0.0, lookup=0)
    next(pieces)
    next(pieces)
    return AFTER / seconds_of(list, pieces)


def overhead(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    tokens = 120  # flash attention throughout
    with ExitStack() as stack:
        model = stack.enter_context(Model.load(path, threads=arguments.threads))
        context = bare_context(path, arguments, tokens + 2, True, stack)

        def whole(settings: Mapping[str, Any], _number: int) -> float:
            pieces = model.stream([5], max_tokens=tokens + 1, ignore_eos=True, seed=1, **settings)
            next(pieces)
            return 1e3 * seconds_of(list, pieces) / tokens

        def bare(_number: int) -> float:
            context.keep(0)
            return 1e3 * seconds_of(lambda: [context.decode([5], position) for position in range(tokens)]) / tokens

        found = {}
        for name, settings in SAMPLERS.items():
            times = in_turns({"whole_ms": partial(whole, settings), "bare_ms": bare}, arguments.rounds)
            found[name] = {key: round(statistics.median(values), 3) for key, values in times.items()}
    return found


def bandwidth(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The bytes that a token reads are those of all matrices but the rows that are looked up."""
    header = read_header(path, arrays=False)
    looked_up = {"position_embd.weight"} | ({"token_embd.weight"} if "output.weight" in header.tensors else set())
    needed = sum(tensor.nbytes for name, tensor in header.tensors.items() if name not in looked_up)
    block = np.ones(256 << 20, np.float32)
    parts = np.array_split(block, arguments.threads)
    with ThreadPoolExecutor(arguments.threads) as pool:
        seconds = in_turns({"read": lambda _: seconds_of(list, pool.map(np.maximum.reduce, parts))}, arguments.rounds)[
            "read"
        ]
    rate = block.nbytes / statistics.median(seconds)
    return {"bytes_per_token": needed, "read_gb_per_s": round(rate / 1e9, 1), "bound_tps": round(rate / needed, 1)}


def startup(path: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    run = [PROGRAM, "run", PROMPT, "-m", path, "-n", "1", "--seed", "1", *(["-t", "q4_0"] if path.is_dir() else [])]
    contestants = {
        "help": partial(seconds_to_output, [PROGRAM, "--help"], 0),
        "run": partial(seconds_to_output, run, len(PROMPT)),
    }
    return {name: spread(values, 3) for name, values in in_turns(contestants, arguments.rounds).items()}


def seconds_to_output(command: Sequence[str | Path], after: int, _number: int) -> float:
    """Seconds from the start of the process to byte number `after` of its output."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as child:
        assert child.stdout
        received = 0
        while received <= after:
            data = child.stdout.read(4096)
            if not data:
                raise SystemExit(f"{' '.join(map(str, command))} wrote {received} bytes")
            received += len(data)
        seconds = time.perf_counter() - started
        child.stdout.read()
    return seconds


PARTS = {
    "decode": decode,
    "pages": pages,
    "lookup": lookup,
    "prompt": prompt,
    "batch": batch,
    "depth": depth,
    "overhead": overhead,
    "bandwidth": bandwidth,
    "startup": startup,
}

if __name__ == "__main__":
    main()
