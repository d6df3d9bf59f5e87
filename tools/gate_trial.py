"""Whether `compare` tells a regression from chance: runs of one build, and tensors planted one level lower.

usage: gate_trial.py [--runs N] [--rounds N]

Measures the bundled checkpoint N + 1 times at Q4_K_M, files and processes all the same, and compares each run with the
one before, speeds too; then converts it at several levels with one tensor a level lower, for tensors of each kind, and
compares each of these files with the sound one. The last line is JSON.
"""

import argparse
import json
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

from dgpt2_quant.bench.bench import bench_files
from dgpt2_quant.bench.compare import Change, compare
from dgpt2_quant.bench.document.schema import BenchJson
from dgpt2_quant.bench.measure import Settings, Subject
from dgpt2_quant.bench.speed.grid import Grid
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.text import load_text
from dgpt2_quant.quantize.convert import convert

SPEED_TOLERANCE = 0.25
LEVELS = ("q4_k_m", "q8_0", "q5_k_m", "q4_0")
TENSORS = (
    "token_embd.weight",
    "blk.2.ffn_down.weight",
    "blk.4.attn_qkv.weight",
    "blk.1.attn_output.weight",
    "blk.0.ffn_up.weight",
)
LOWER = {"Q4_K": "Q3_K", "Q5_K": "Q4_K", "Q6_K": "Q5_K", "Q8_0": "Q6_K", "Q4_0": "Q3_K"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base, *files = (Path(file.path) for file in convert("storybook", type=["f32", *LEVELS], output=folder))
        same = [measured(base, files[0], arguments.rounds) for _ in range(arguments.runs + 1)]
        found = [compare(old, new, speed_tolerance=SPEED_TOLERANCE) for old, new in pairwise(same)]
        speeds = [change for comparison in found for change in comparison["changes"] if is_speed(change)]
        planted = [row for level, file in zip(LEVELS, files, strict=True) for row in plant(base, level, file, folder)]
    print(
        json.dumps(
            {
                "runs": arguments.runs,
                "flagged_of_the_same_build": sum(comparison["worse"] for comparison in found),
                "speed_tolerance": SPEED_TOLERANCE,
                "speeds_compared": sum(change["compared"] for change in speeds),
                "speeds_disturbed": sum(not change["compared"] for change in speeds),
                "planted": planted,
            }
        )
    )


def measured(base: Path, file: Path, rounds: int) -> BenchJson:
    subject = Subject("storybook", "0" * 64, base, [file])
    return bench_files(subject, load_text(), Settings(rounds=rounds, grid=Grid.none()))


def is_speed(change: Change) -> bool:
    return change["figure"].endswith("_ratio")


def plant(base: Path, level: str, file: Path, folder: Path) -> list[dict[str, Any]]:
    """What `compare` says of the level with each of the tensors one level lower."""
    sound, rows = measured(base, file, 1), []
    for tensor in TENSORS:
        kind = LOWER[read_header(file).tensors[tensor].type.name]
        override = f"{tensor.replace('.', chr(92) + '.')}={kind}"
        (changed,) = convert("storybook", type=level, tensor_type=[override], output=folder / f"{level}.{tensor}")
        comparison = compare(sound, measured(base, Path(changed.path), 1))
        worse = {change["figure"]: change for change in comparison["changes"]}
        rows.append(
            {
                "level": level,
                "tensor": tensor,
                "as": kind,
                "kld_change": worse["kld_mean"]["change"],
                "caught_by_quality": any(worse[name]["worse"] for name in ("kld_mean", "kld_p99", "perplexity")),
                "caught": comparison["worse"],
            }
        )
    return rows


if __name__ == "__main__":
    main()
