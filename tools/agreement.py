"""How far llama.cpp is from the NumPy reference on the bundled model: the F32 file against float64, and float32 too.

usage: agreement.py [CHUNKS]

Every position of the first CHUNKS (4) chunks of 512 tokens of the evaluation text. The last line is JSON.
"""

import argparse
import json
import tempfile

import numpy as np
from dgpt2_quant.bench.quality import logit_rows as rows
from dgpt2_quant.bench.quality.logit_rows import FileScores
from dgpt2_quant.core.text import load_text
from dgpt2_quant.quantize.calibration.numpy_gpt2 import from_checkpoint
from dgpt2_quant.quantize.checkpoint.resolve import resolve
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model

LENGTH = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chunks", type=int, nargs="?", default=4)
    chunks = parser.parse_args().chunks
    folder = resolve("storybook").folder
    exact, single = from_checkpoint(folder, np.float64), from_checkpoint(folder, np.float32)
    parts: dict[str, list[tuple[FileScores, np.ndarray]]] = {"llama.cpp": [], "numpy float32": []}
    with tempfile.TemporaryDirectory() as scratch, rows.on_threads(1) as for_blocks:
        [file] = convert("storybook", type="f32", output=scratch)
        with Model.load(file.path) as model:
            tokens = model.tokenize(load_text().text, special=False)
            for start in range(0, min(chunks, len(tokens) // LENGTH) * LENGTH, LENGTH):
                chunk = tokens[start : start + LENGTH]
                expected = rows.reference_rows(exact.logits(chunk)[:-1], np.asarray(chunk[1:]), for_blocks)
                for name, logits in {"llama.cpp": model.logits(chunk), "numpy float32": single.logits(chunk)}.items():
                    found = rows.no_scores(LENGTH - 1)
                    rows.compare(logits[:-1], expected, 0, found, for_blocks)
                    parts[name].append((found, found.top == expected.top))
    print(json.dumps({name: summary(of) for name, of in parts.items()}))


def summary(parts: list[tuple[FileScores, np.ndarray]]) -> dict[str, float]:
    kld = np.concatenate([found.kld for found, _ in parts])
    same = np.concatenate([same for _, same in parts])
    return {"kld_mean": float(kld.mean()), "kld_max": float(kld.max()), "top1": float(same.mean())}


if __name__ == "__main__":
    main()
