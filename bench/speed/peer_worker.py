"""The worker process of `peers`: times one other library with one model.

usage: python -m dgpt2_quant.bench.speed.peer_worker LIBRARY PRECISION SOURCE THREADS POSITIONS

All lines are JSON. The first line on stdout reports that the model is loaded, or why not. Each line on stdin has the
token ids of a prompt and the number of tokens to generate, and is answered with one line. The worker ends when stdin
ends. Each library is used as its documentation shows, with greedy decoding past end-of-text tokens.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from .disturbance import Watch
from .footprint import peak_rss_bytes

CONVERTED = "converted"  # folder of CTranslate2's model, in the working directory


class Written(NamedTuple):
    """The token ids, the seconds to the first one, and the seconds from the first to the last."""

    tokens: list[int]
    prompt_seconds: float
    decode_seconds: float


Write = Callable[[list[int], int], Written]  # (prompt, number of tokens)


class Loaded(NamedTuple):
    write: Write
    load_seconds: float  # of the model, without importing the library


class Clock:
    """Times the first token."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._first: float | None = None

    def token(self) -> None:
        if self._first is None:
            self._first = time.perf_counter()

    def written(self, tokens: Sequence[int]) -> Written:
        """The result, after the last token."""
        if self._first is None:
            raise RuntimeError("no token was generated")
        return Written(list(tokens), self._first - self._started, time.perf_counter() - self._first)


def load_llama(precision: str, source: str, threads: int, positions: int) -> Loaded:
    """`llama_cpp.Llama.create_completion`, streamed, with its defaults except for what all contestants share."""
    from llama_cpp import Llama

    started = time.perf_counter()
    llama = Llama(source, n_ctx=positions, n_threads=threads, n_threads_batch=threads, verbose=False)
    seconds = time.perf_counter() - started
    generate, end = llama.generate, llama.token_eos()

    def write(prompt: list[int], tokens: int) -> Written:
        found: list[int] = []

        def watched(ids: Sequence[int], **options: Any) -> Iterator[int]:
            for token in generate(ids, **options):
                clock.token()
                found.append(token)
                yield prompt[0] if token == end else token  # a logit bias would slow down every token
                if len(found) == tokens:
                    return

        llama.generate = watched
        llama.reset()
        clock = Clock()
        for _ in llama.create_completion(prompt, max_tokens=tokens, temperature=0.0, stream=True):
            pass
        return clock.written(found)

    return Loaded(write, seconds)


def load_transformers(precision: str, source: str, threads: int, positions: int) -> Loaded:
    """`generate` of Transformers on PyTorch."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    started = time.perf_counter()
    dtype = {"F32": torch.float32, "BF16": torch.bfloat16}[precision]
    model = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, local_files_only=True).eval()
    seconds = time.perf_counter() - started

    class Streamer:
        """Receives first the prompt and then each token from `generate`."""

        def __init__(self, clock: Clock) -> None:
            self._clock = clock
            self._prompt = True

        def put(self, _: object) -> None:
            if not self._prompt:
                self._clock.token()
            self._prompt = False

        def end(self) -> None: ...

    def write(prompt: list[int], tokens: int) -> Written:
        ids = torch.tensor([prompt])
        clock = Clock()
        with torch.inference_mode():
            found = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
                streamer=Streamer(clock),
            )
        return clock.written(found[0, len(prompt) :].tolist())

    return Loaded(write, seconds)


def load_ctranslate2(precision: str, source: str, threads: int, positions: int) -> Loaded:
    """`Generator.generate_batch` of CTranslate2. Another process converts the model, because that loads PyTorch, whose
    memory must not count here."""
    import ctranslate2

    kind = {"F32": "float32", "INT8": "int8"}[precision]
    for module in ("torch", "transformers"):
        if importlib.util.find_spec(module) is None:
            raise ImportError(f"its converter needs {module}, which is not installed")
    command = [sys.executable, "-m", "dgpt2_quant.bench.speed.peer_worker", "--convert", source, kind]
    converter = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if converter.returncode:
        raise RuntimeError(f"the conversion failed: {converter.stderr.strip()[-300:]}")
    started = time.perf_counter()
    generator = ctranslate2.Generator(
        CONVERTED, device="cpu", compute_type=kind, inter_threads=1, intra_threads=threads
    )
    seconds = time.perf_counter() - started
    names = json.loads(Path(CONVERTED, "vocabulary.json").read_bytes())

    def write(prompt: list[int], tokens: int) -> Written:
        texts = [[names[token] for token in prompt]]
        clock = Clock()
        (result,) = generator.generate_batch(
            texts,
            max_length=tokens,
            min_length=tokens,
            beam_size=1,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=lambda _: clock.token(),
        )
        return clock.written(result.sequences_ids[0])

    return Loaded(write, seconds)


def convert_to_ctranslate2(source: str, kind: str) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(source).convert(CONVERTED, quantization=kind)


# library: its distribution, and the function that loads a model
LIBRARIES = {
    "llama_cpp.Llama": ("llama-cpp-python", load_llama),
    "Transformers": ("transformers", load_transformers),
    "CTranslate2": ("ctranslate2", load_ctranslate2),
}


def main(library: str, precision: str, source: str, threads: str, positions: str) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is not an answer

    def answer(**document: Any) -> None:
        print(json.dumps(document), file=answers, flush=True)

    distribution, load = LIBRARIES[library]
    try:
        loaded = load(precision, source, int(threads), int(positions))
    except ImportError as error:
        answer(absent=f"{error}")
        return
    try:
        found = version(distribution)
    except PackageNotFoundError:
        found = "unknown"
    answer(version=found, load_ms=1000 * loaded.load_seconds)
    for line in sys.stdin:
        answer(**time_text(loaded.write, int(threads), **json.loads(line)))


def time_text(write: Write, threads: int, prompt: list[int], tokens: int, seconds: float) -> dict[str, Any]:
    """Generates the text repeatedly for this time; returns speeds, and the tokens of the first one."""
    texts: list[Written] = []
    with Watch(threads) as watch:
        end = time.perf_counter() + seconds
        while not texts or time.perf_counter() < end:
            texts.append(write(prompt, tokens))
    usage = watch.usage
    return {
        "prompt_tps": len(texts) * len(prompt) / sum(text.prompt_seconds for text in texts),
        "decode_tps": sum(len(text.tokens) - 1 for text in texts) / sum(text.decode_seconds for text in texts),
        "tokens": texts[0].tokens,
        "asked": usage.asked,
        "waited": usage.waited,
        "available": usage.available,
        "others": usage.others,
        "peak_rss_bytes": peak_rss_bytes(),
    }


if __name__ == "__main__":
    if sys.argv[1] == "--convert":
        convert_to_ctranslate2(*sys.argv[2:])
    else:
        main(*sys.argv[1:])
