"""What a token costs beside its decode: choosing it, turning it into text, handing it out.

usage: time_overhead.py MODEL.gguf [--rounds N] [--threads N]

For each setting, in turns: the whole (milliseconds a token, by `Model.stream`); a bare loop of `llama_decode` in the
same kind of context; microseconds from the end of a decode to the beginning of the next one in `Model.stream`; and the
same with the decode left out: what Python takes where nothing empties the caches. The last line is JSON.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from dgpt2_quant.runtime import Model
from dgpt2_quant.runtime.depth_context import FLASH_POSITIONS
from dgpt2_quant.runtime.native.model_context import NativeContext, NativeModel

TOKENS = FLASH_POSITIONS - 8  # all where single tokens have flash attention
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "greedy": {"temperature": 0, "lookup": 0},
    "top-k 40": {},
    "temperature alone": {"top_k": 0, "top_p": 1.0, "min_p": 0},
    "top-p alone": {"top_k": 0, "min_p": 0},
    "mirostat": {"mirostat": 2},
    "penalties": {"repeat_penalty": 1.1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    native = NativeModel(arguments.model)
    context = NativeContext(native, TOKENS + 2, threads=arguments.threads, flash_attention=True)
    times: dict[str, dict[str, list[float]]] = {
        name: {key: [] for key in ("whole", "bare", "between", "without")} for name in SETTINGS
    }
    with Model.load(arguments.model, threads=arguments.threads) as model:
        for number in range(arguments.rounds + 1):
            for name, settings in SETTINGS.items():
                whole, between = stream(model, settings)
                warm, _ = stream(model, settings, decode=False)
                taken = whole / TOKENS, bare(context) / TOKENS, between, warm / TOKENS
                for key, seconds in zip(times[name], taken, strict=True):
                    if number:  # the first warms up
                        times[name][key].append(seconds)
    context.close()
    native.close()
    found = {
        name: {
            "whole_ms": round(1e3 * statistics.median(parts["whole"]), 3),
            "bare_ms": round(1e3 * statistics.median(parts["bare"]), 3),
            "between_us": round(1e6 * statistics.median(parts["between"]), 1),
            "python_warm_us": round(1e6 * statistics.median(parts["without"]), 1),
        }
        for name, parts in times.items()
    }
    print(json.dumps({"settings": found, "threads": arguments.threads, "loadavg": os.getloadavg()}))


def stream(model: Model, settings: Mapping[str, Any], *, decode: bool = True) -> tuple[float, float]:
    """Seconds for the tokens behind the first one, and the median of those between two decodes."""
    pieces = model.stream([5], max_tokens=TOKENS + 1, ignore_eos=True, seed=1, **settings)
    next(pieces)
    single: Any = model._single.context
    context = single._near
    real, marks = context._decode, []

    def marked(handle: Any, batch: Any) -> int:
        begun = time.perf_counter()
        # without a decode the logits stay those of the prompt
        status = real(handle, batch) if decode else 0
        marks.append((begun, time.perf_counter()))
        return int(status)

    context._decode = marked
    try:
        started = time.perf_counter()
        for _ in pieces:
            pass
        seconds = time.perf_counter() - started
    finally:
        context._decode = real
    return seconds, statistics.median(begun - ended for (_, ended), (begun, _) in pairwise(marks))


def bare(context: NativeContext) -> float:
    context.keep(0)
    started = time.perf_counter()
    fed = SimpleNamespace(token=5, next_position=0, slot=0)
    for fed.next_position in range(TOKENS):
        context.decode_each([fed])
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
