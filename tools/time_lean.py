"""Times the recipe `lean` for the shapes of GPT-2 medium, large and XL, with random weights and few layers.

usage: time_lean.py [--model NAME|LAYERSxWIDTH ...] [--layers FEW MORE] [--positions N] [--threads N]

`convert -t q4_k_m --recipe lean` runs at two numbers of layers, calibrated on 20,480 tokens, each in a process of its
own; the time of the whole model is extrapolated from them. Its peak memory is the larger of the two: from there on it
does not grow with the layers. Generating a text needs all weights in memory, so a batch of the size that the whole
model allows generates the first positions, again at two numbers of layers; the memory is that of `Needs`.
The last line is JSON.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from string import punctuation
from typing import Any

from dgpt2_quant.core.cores import usable_cores
from dgpt2_quant.core.parallel import calculating
from dgpt2_quant.quantize.calibration.collect import CONTEXT, SAMPLED_TOKENS
from dgpt2_quant.quantize.calibration.numpy_gpt2 import from_source
from dgpt2_quant.quantize.calibration.sample_text import batches, sample
from dgpt2_quant.quantize.checkpoint.source import open_model
from dgpt2_quant.quantize.lean.needs import Needs
from harness import PROGRAM, print_document, run

MODELS = {"medium": "24x1024", "large": "36x1280", "XL": "48x1600"}  # layers and width
CHUNKS = -(-SAMPLED_TOKENS // CONTEXT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=usable_cores(), help="all usable cores by default")
    parser.set_defaults(rounds=1)
    parser.add_argument("--model", action="append", help=f"{', '.join(MODELS)} (all by default), or LAYERSxWIDTH")
    parser.add_argument("--layers", type=int, nargs=2, default=(2, 4), help="2 and 4 by default")
    parser.add_argument("--positions", type=int, default=16, help="that are generated; 16 by default")
    arguments = parser.parse_args()
    models = {
        name: measured(arguments, *map(int, MODELS.get(name, name).split("x"))) for name in arguments.model or MODELS
    }
    print_document(arguments, {"layers_measured": arguments.layers, "models": models})


def measured(arguments: argparse.Namespace, layers: int, width: int) -> dict[str, Any]:
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for few in arguments.layers:
            model = Path(scratch, f"{few}-layers")
            flags = ["--layers", few, "--width", width, "--heads", width // 64, "--without-buffers"]
            run(sys.executable, Path(__file__).with_name("random_distilgpt2.py"), model, *flags)
            found.append({"layers": few, **converted(arguments, model), **generated(arguments, model, layers)})
        sizes = replace(open_model(str(model)).sizes, layers=layers)

    def whole(name: str) -> float:
        (few, less), (more, longer) = ((each["layers"], each[name]) for each in found)
        return round(less + (layers - few) * (longer - less) / (more - few))

    needs = Needs(sizes, CHUNKS, CONTEXT)
    return {
        "layers": layers,
        "width": width,
        "measured": found,
        "lean_s": whole("lean_s"),
        "generating_s": whole("generating_s"),
        "peak_mb": max(each["peak_mb"] for each in found),
        "needs_mb": round(needs.memory(arguments.threads) / 1e6),
        "generating_needs_mb": round(replace(needs, calibration="sampling").memory(arguments.threads) / 1e6),
        "scratch_mb": round(needs.scratch() / 1e6),
    }


def converted(arguments: argparse.Namespace, model: Path) -> dict[str, float]:
    text = model / "text.txt"
    tokens = [character for character in punctuation if character not in ".,'-"]  # the vocabulary does not merge them
    text.write_text("".join(random.Random(0).choices(tokens, k=CHUNKS * CONTEXT)), "utf-8")
    os.environ["DGPT2_QUANT_CACHE"] = str(model / "cache")
    command = [PROGRAM, "convert", model, "-t", "q4_k_m", "--recipe", "lean", "--calibrate", text]
    seconds, peak = run(*command, "-o", model / "out", "--threads", arguments.threads)
    return {"lean_s": round(seconds, 1), "peak_mb": round(peak / 1e6)}


def generated(arguments: argparse.Namespace, model: Path, layers: int) -> dict[str, float]:
    """The time to generate the whole text."""
    reference = from_source(open_model(str(model)))
    together = batches(replace(reference.sizes, layers=layers), CHUNKS, CONTEXT)
    with calculating(arguments.threads):
        started = time.perf_counter()
        sample(reference, 0, together[0].stop, arguments.positions)
        seconds = time.perf_counter() - started
    return {"generating_s": round(seconds * len(together) * CONTEXT / arguments.positions, 1)}


if __name__ == "__main__":
    main()
