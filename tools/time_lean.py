"""How long the recipe `lean` takes, and how fast its files are beside llama.cpp's.

usage: time_lean.py MODEL OUTPUT.json [--text FILE] [--only PART ...] [--target-size BYTES] [--rounds N] [--threads N]

The parts:
- convert: one file at Q4_K_M without a search, calibration included, with nothing in the cache;
- given: the same, calibrated on 20,000 tokens of a text (`--text`) instead of the model's own;
- search: one file searched for a size (0.8 of stock Q4_K_M's, if not said), again with nothing in the cache;
- speed: `lean` at its 4-bit levels against stock Q4_0 and Q4_K_M, all in turns, one sequence and eight, greedy, timed
  as time_runtime.py does. Ratios are of speeds in the same round: above 1 `lean` is faster.

The first two run in a process each; their time is shared out over stages by what the progress tells, the time up to a
call going to what that call is about. Targets are for two cores and DistilGPT2's size. The tables go to stdout.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dgpt2_quant.bench.document.environment import describe_environment
from dgpt2_quant.bench.speed.disturbance import Watch, any_disturbed
from dgpt2_quant.core.atomic_file import output_file, refuse_existing
from dgpt2_quant.core.json_text import to_json_text
from dgpt2_quant.quantize.calibration.collect import SAMPLED_TOKENS
from dgpt2_quant.quantize.calibration.encode_text import encode_text
from dgpt2_quant.quantize.checkpoint.source import open_model
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.converted_file import ConvertedFile
from dgpt2_quant.runtime import Model
from lean_tables import BYTES_RATIO, SPEED_RATIO, seconds_table, speeds_table
from measure_lean import show
from threadpoolctl import threadpool_info
from time_runtime import SEQUENCES, SETTINGS, sequences, spread, text

LIMITS = {"convert_s": 90, "given_s": 90, "search_s": 900}
STOCK = ("q4_0", "q4_k_m")
LEAN = ("q4_0", "q4_k_m", "iq4_nl")
PARTS = ("convert", "given", "search", "speed")
SHARE = 0.8  # of stock Q4_K_M's bytes, to search for
STAGES = (  # what a stage is called, by what the progress says
    (r"text that the model writes", "sampling the calibration text"),
    (r"importance of", "importance matrix"),
    (r"gradients", "gradients"),
    (r"effect of", "effects of types"),
    (r"blk\.\d+\.\w+$", "rounding"),
    (r".*\.(weight|bias)$", "writing"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a checkpoint, for example one that random_distilgpt2.py wrote")
    parser.add_argument("output", type=Path, help="is written over")
    parser.add_argument("--text", type=Path, help="of at least 20,000 tokens, for `given`, which is left out without")
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--target-size", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--converting", type=json.loads, help="what one of the processes is called with")
    arguments = parser.parse_args()
    if arguments.converting is not None:
        print(json.dumps(staged(arguments.model, arguments.output, arguments.converting)))
        return
    refuse_existing(arguments.output, overwrite=True)
    document = {"environment": describe_environment(arguments.threads), "model": Path(arguments.model).name}
    document["blas"] = [f"{b['internal_api']} {b['version']}, {b['architecture']}" for b in blas_libraries()]
    document |= {"limits": LIMITS, "rounds": arguments.rounds}
    with tempfile.TemporaryDirectory() as scratch:
        document |= measured(arguments, Path(scratch))
    with output_file(arguments.output, overwrite=True) as file:
        file.write((to_json_text(document) + "\n").encode())
    if any(part in document for part in PARTS[:3]):
        print("\n".join(seconds_table(document)) + "\n")
    if "speed" in document:
        print("\n".join(speeds_table(document)))


def blas_libraries() -> list[dict[str, Any]]:
    """NumPy's. By the kernels that it chose for the processor, large products differ by a factor of nearly two."""
    return [library for library in threadpool_info() if library["user_api"] == "blas"]


def measured(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    parts, found = arguments.only or PARTS, {}
    stock = convert(arguments.model, type=STOCK, output=folder / "stock", threads=arguments.threads)
    if "convert" in parts:
        found["convert"] = in_a_process(arguments, folder / "first", {"type": "q4_k_m"})
    if "given" in parts and arguments.text:
        text = beginning(arguments, folder / "text.txt")
        found["given"] = in_a_process(arguments, folder / "given", {"type": "q4_k_m", "calibrate": str(text)})
        found["given"]["settings"]["calibrate"] = arguments.text.name  # the beginning lay in a scratch folder
    if "search" in parts:
        size = arguments.target_size or int(SHARE * stock[-1].bytes)
        found["search"] = in_a_process(arguments, folder / "second", {"target_size": size})
    if "speed" in parts:
        os.environ["DGPT2_QUANT_CACHE"] = str(folder / "first" / "cache")  # the calibration is there already
        lean = convert(
            arguments.model, type=LEAN, recipe="lean", output=folder / "lean", threads=arguments.threads, progress=show
        )
        found["speed"] = speeds(stock, lean, arguments)
    return found


def beginning(arguments: argparse.Namespace, output: Path) -> Path:
    """As much of the text as the model would write itself, in a file."""
    whole = arguments.text.read_text("utf-8")
    tokens = len(encode_text(open_model(arguments.model).tokenizer(), whole))
    output.write_text(whole[: int(len(whole) * 1.01 * SAMPLED_TOKENS / tokens)], "utf-8")
    return output


def in_a_process(arguments: argparse.Namespace, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """One conversion, with a cache of its own."""
    settings |= {"recipe": "lean", "threads": arguments.threads}
    command = [
        sys.executable,
        __file__,
        arguments.model,
        str(folder / "file.gguf"),
        "--converting",
        json.dumps(settings),
    ]
    own = {**os.environ, "DGPT2_QUANT_CACHE": str(folder / "cache")}
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=own).stdout
    (folder / "file.gguf").unlink()
    found: dict[str, Any] = json.loads(said)
    return found


def staged(model: str, output: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a conversion, of its stages, and the process's peak memory."""
    stages: dict[str, float] = {}
    started = last = time.monotonic()

    def progress(done: int, total: int, what: str) -> None:
        nonlocal last
        show(done, total, what)
        now, name = time.monotonic(), stage_of(what)
        stages[name] = stages.get(name, 0.0) + now - last
        last = now

    (file,) = convert(model, output=output, progress=progress, **settings)
    seconds = time.monotonic() - started
    stages["the rest"] = seconds - sum(stages.values())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    rounded = {name: round(spent, 2) for name, spent in stages.items()}
    about = {"settings": settings, "bytes": file.bytes, "peak_rss_bytes": peak, "loadavg": os.getloadavg()[0]}
    return {"seconds": round(seconds, 2), "stages": rounded, **about}


def stage_of(what: str) -> str:
    return next((name for pattern, name in STAGES if re.match(pattern, what)), what)


def speeds(stock: list[ConvertedFile], lean: list[ConvertedFile], arguments: argparse.Namespace) -> dict[str, Any]:
    files = {f"{file.recipe} {file.type}": file for file in (*stock, *lean)}
    with ExitStack() as stack:
        models = {
            name: stack.enter_context(Model.load(file.path, threads=arguments.threads)) for name, file in files.items()
        }
        taken = {batch: in_turns(models, batch, arguments) for batch in (1, SEQUENCES)}
    return {
        "files": [
            {
                "name": name,
                "bytes": file.bytes,
                "tensors": file.tensors,
                "tps": {str(batch): spread(found[name][0]) for batch, found in taken.items()},
                "disturbed": {str(batch): found[name][1] for batch, found in taken.items()},
            }
            for name, file in files.items()
        ],
        "pairs": [
            pair(f"lean {one.type}", f"stock {other.type}", one.bytes / other.bytes, batch, found)
            for batch, found in taken.items()
            for one in lean
            for other in stock
        ],
    }


def in_turns(
    models: dict[str, Model], batch: int, arguments: argparse.Namespace
) -> dict[str, tuple[list[float], bool | None]]:
    """Tokens per second of each file in each round, and whether something else took the processor meanwhile."""
    timed = text if batch == 1 else sequences
    found: dict[str, list[float]] = {name: [] for name in models}
    usage: dict[str, list[Any]] = {name: [] for name in models}
    for number in range(arguments.rounds + 1):
        for name, model in models.items():
            with Watch(arguments.threads) as watch:
                speed = timed(model, SETTINGS["greedy"], number)
            if number:  # the first warms up
                found[name].append(speed)
                usage[name].append(watch.usage)
        show(number, arguments.rounds, f"decoding, {batch} at once")
    return {name: (found[name], any_disturbed(usage[name])) for name in models}


def pair(lean: str, stock: str, bytes_ratio: float, batch: int, found: dict[str, Any]) -> dict[str, Any]:
    ratios = [a / b for a, b in zip(found[lean][0], found[stock][0], strict=True)]
    ratio = {"median": round(statistics.median(ratios), 3), "min": round(min(ratios), 3), "max": round(max(ratios), 3)}
    return {
        "lean": lean,
        "stock": stock,
        "batch": batch,
        "ratio": ratio,
        "bytes_ratio": round(bytes_ratio, 4),
        "met": ratio["median"] >= SPEED_RATIO and bytes_ratio <= BYTES_RATIO,
    }


if __name__ == "__main__":
    main()
