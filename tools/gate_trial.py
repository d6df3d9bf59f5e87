"""Whether `compare` tells a regression from chance: runs of one build, and tensors planted one level lower.

usage: gate_trial.py [--runs N] [--rounds N] [--type TYPE]

Measures the bundled checkpoint N + 1 times, files and processes all the same, and compares each run with the one
before, speeds too; then converts it with one tensor a level lower, for one tensor of each kind, and compares each of
these files with the sound one. The last line is JSON.
"""

import argparse
import json
import tempfile
from itertools import pairwise
from pathlib import Path

from dgpt2_quant.bench.grid import Grid
from dgpt2_quant.bench.matrix import Settings, Subject, measure_levels
from dgpt2_quant.bench.regression import compare_documents
from dgpt2_quant.bench.schema import BenchJson
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.gguf_file import read_header
from dgpt2_quant.quantize.text import load_text

SPEED_TOLERANCE = 0.25
LOWER = {"Q4_K": "Q3_K", "Q5_K": "Q4_K", "Q6_K": "Q5_K", "Q8_0": "Q6_K", "Q4_0": "Q3_K"}
PLANTED = ("blk.2.ffn_down.weight", "blk.4.attn_qkv.weight", "blk.1.attn_output.weight", "blk.0.ffn_up.weight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--type", default="q4_k_m")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        base, sound = (Path(file.path) for file in convert("storybook", type=["f32", arguments.type], output=folder))
        documents = [measured(base, sound, arguments.rounds) for _ in range(arguments.runs + 1)]
        flagged = []
        for old, new in pairwise(documents):
            flagged.append(compare_documents(old, new, speed_tolerance=SPEED_TOLERANCE))
        planted = {
            name: compare_documents(documents[0], measured(base, lower(name, arguments.type, folder / name), 1))
            for name in PLANTED
        }
    print(
        json.dumps(
            {
                "type": arguments.type,
                "runs": arguments.runs,
                "flagged_of_the_same_build": sum(found["worse"] for found in flagged),
                "speed_tolerance": SPEED_TOLERANCE,
                "planted": {name: found["reasons"] for name, found in planted.items()},
            }
        )
    )


def measured(base: Path, file: Path, rounds: int) -> BenchJson:
    subject = Subject("storybook", "0" * 64, base, [file])
    return measure_levels(subject, load_text(), Settings(rounds=rounds, grid=Grid.none()))


def lower(tensor: str, level: str, folder: Path) -> Path:
    """The level's file with one tensor stored one level lower."""
    (plain,) = convert("storybook", type=level, output=folder / "plain")
    found = read_header(Path(plain.path)).tensors[tensor].type.name
    override = f"{tensor.replace('.', chr(92) + '.')}={LOWER[found]}"
    (planted,) = convert("storybook", type=level, tensor_type=[override], output=folder / "planted")
    return Path(planted.path)


if __name__ == "__main__":
    main()
