"""What the rounding of weights costs, and what that of the activations which meet them does.

usage: measure_roundings.py OUTPUT.json [--text FILE] [--scored N] [--model M] [--imatrix FILE] [--threads N]

llama.cpp rounds activations to eight bits where a matrix is quantized. For some matrices of the model, all others in
F32: a file with them quantized by llama.cpp's own code, with an importance matrix; and one that holds the very same
weights in F32, which activations meet as they are. Their KL divergences from the model, in nats, are `both` and
`weights`. The table goes to stdout.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

from dgpt2_quant.bench.document.environment import describe_environment
from dgpt2_quant.bench.quality.compare_files import compare_files
from dgpt2_quant.bench.quality.divergence import divergence, resampled
from dgpt2_quant.core.atomic_file import output_file, refuse_existing
from dgpt2_quant.core.json_text import to_json_text
from dgpt2_quant.quantize.calibration.collect import SAMPLED, imatrix
from dgpt2_quant.quantize.calibration.imatrix_file import read_importance
from dgpt2_quant.quantize.checkpoint.source import open_model
from dgpt2_quant.quantize.convert import convert
from lean_tables import roundings_table
from measure_lean import Text, show

LEVELS = {"Q4_K": "q4_k_s", "Q5_K": "q5_k_s", "Q6_K": "q6_k", "Q8_0": "q8_0"}  # tensor type: a level to start from
PARTS = {  # what is quantized, and at which types
    "blk": tuple(LEVELS),
    "token_embd": tuple(LEVELS),
    "attn_qkv": ("Q6_K",),
    "attn_output": ("Q6_K",),
    "ffn_up": ("Q6_K",),
    "ffn_down": ("Q6_K",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="is written over")
    parser.add_argument("--text", default="evaluation")
    parser.add_argument("--scored", type=int, help="tokens of the text; all if not given")
    parser.add_argument("--model", default="storybook")
    parser.add_argument("--imatrix", type=Path, help="over what the model writes itself, if not given")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    refuse_existing(arguments.output, overwrite=True)
    with tempfile.TemporaryDirectory() as scratch:
        document = measured(arguments, Path(scratch))
    with output_file(arguments.output, overwrite=True) as file:
        file.write((to_json_text(document) + "\n").encode())
    print("\n".join(roundings_table(document)))


def measured(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    source = open_model(arguments.model)
    text = Text(arguments.text, arguments.scored, source)
    importance = arguments.imatrix or folder / "imatrix.gguf"
    if arguments.imatrix is None:
        imatrix(arguments.model, text=SAMPLED, output=importance, progress=show)
    (reference,) = convert(arguments.model, type="f32", output=folder / "reference.gguf")
    rows, scored = [], 0
    for part, types in PARTS.items():
        for name in types:
            both, weights = made(arguments.model, part, name, importance, folder)
            quality = compare_files(
                Path(reference.path),
                [both, weights],
                text.text,
                threads=arguments.threads,
                reference_cache=0,
                progress=show,
            )
            draws, scored = resampled(quality), sum(quality.lengths)
            found = [divergence(quality, number, draws) for number in range(2)]
            figures = [{"kld": one.kld_interval, "kld_p999": one.kld_p999} for one in found]
            rows.append({"part": part, "type": name, "both": figures[0], "weights": figures[1]})
            both.unlink()
            weights.unlink()
    return {
        "environment": describe_environment(arguments.threads),
        "model": {"name": source.name, "source_sha256": source.sha256()},
        "calibration": {"datasets": list(read_importance(importance).datasets)},
        "text": {"name": text.key, "sha256": text.sha256, "tokens_scored": scored},
        "roundings": rows,
    }


def made(model: str, part: str, name: str, importance: Path, folder: Path) -> tuple[Path, Path]:
    """The file in which the part is quantized, and that with the same weights in F32."""
    both, weights = folder / "both.gguf", folder / "weights.gguf"
    types = [f"{part}={name}", ".*=f32"]
    convert(model, type=LEVELS[name], output=both, tensor_type=types, imatrix=importance)
    convert(str(both), type="f32", output=weights, allow_requantize=True)
    return both, weights


if __name__ == "__main__":
    main()
