"""The child of `bench.peers`: one library with one model in a process of its own.

usage: python -m dgpt2_quant.bench.speed.peer_worker LIBRARY PRECISION SOURCE THREADS POSITIONS

Its first line on stdout says that the model is loaded, or why not; then it answers each line on stdin, a prompt's
token ids and how many tokens to write, with one line: JSON all of them. It ends with its stdin. Each library is used
as its documentation shows, greedily, and an end-of-text token ends nothing.
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

CONVERTED = "converted"  # CTranslate2's model, in the folder that this process was started in


class Written(NamedTuple):
    """The token ids, and the seconds to the first one and from there to the last."""

    tokens: list[int]
    prompt_seconds: float
    decode_seconds: float


Write = Callable[[list[int], int], Written]  # of a prompt, so many tokens


class Loaded(NamedTuple):
    write: Write
    load_seconds: float  # of the model; not of importing the library


class Clock:
    """When the first token came."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._first: float | None = None

    def token(self) -> None:
        if self._first is None:
            self._first = time.perf_counter()

    def written(self, tokens: Sequence[int]) -> Written:
        """When the last one is there."""
        if self._first is None:
            raise RuntimeError("no token came")
        return Written(list(tokens), self._first - self._started, time.perf_counter() - self._first)


def load_llama(precision: str, source: str, threads: int, positions: int) -> Loaded:
    """`llama_cpp.Llama.create_completion`, streamed, with its own settings but for what all contestants share."""
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
                yield prompt[0] if token == end else token  # a bias against it would slow down every token
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
        """What `generate` hands first the prompt and then each token to."""

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
    """`Generator.generate_batch` of CTranslate2, with a model that another process converts: it takes PyTorch, which is
    no part of this one's memory."""
    import ctranslate2

    kind = {"F32": "float32", "INT8": "int8"}[precision]
    for module in ("torch", "transformers"):
        if importlib.util.find_spec(module) is None:
            raise ImportError(f"its converter takes {module}, which is not installed")
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


# library: the distribution that has its version, and what loads a model
LIBRARIES = {
    "llama_cpp.Llama": ("llama-cpp-python", load_llama),
    "Transformers": ("transformers", load_transformers),
    "CTranslate2": ("ctranslate2", load_ctranslate2),
}


def main(library: str, precision: str, source: str, threads: str, positions: str) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer

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
    """Writes the text again and again until so many seconds are over; speeds, and the first one's tokens."""
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
