"""How far llama.cpp is from the NumPy reference on the bundled model: the F32 file against float64, and float32 too.

usage: agreement.py [CHUNKS]

Every position of the first CHUNKS (4) chunks of 512 tokens of the evaluation text. The last line is JSON.
"""

import json
import sys
import tempfile

import numpy as np
from dgpt2_quant.bench.divergence import TokenScores, combine, score
from dgpt2_quant.bench.perplexity import chunks, log_softmax
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.reference import from_checkpoint
from dgpt2_quant.quantize.resolve import resolve
from dgpt2_quant.quantize.text import load_text
from dgpt2_quant.runtime import Model


def main() -> None:
    folder = resolve("storybook").folder
    oracle, single = from_checkpoint(folder, np.float64), from_checkpoint(folder, np.float32)
    found: dict[str, list[TokenScores]] = {"llama.cpp": [], "numpy float32": []}
    with tempfile.TemporaryDirectory() as scratch:
        [file] = convert("storybook", type="f32", output=scratch)
        with Model.load(file.path) as model:
            parts = chunks(model.tokenize(load_text().text, special=False), 512)
            for chunk in parts[: int(sys.argv[1]) if len(sys.argv) > 1 else 4]:
                expected, targets = log_softmax(oracle.logits(chunk))[:-1], np.asarray(chunk[1:])
                for name, logits in {"llama.cpp": model.logits(chunk), "numpy float32": single.logits(chunk)}.items():
                    found[name].append(score(expected, log_softmax(logits)[:-1], targets))
    result = {name: combine(scores) for name, scores in found.items()}
    print(json.dumps({n: {"kld_mean": d.kld_mean, "kld_max": d.kld_max, "top1": d.top1} for n, d in result.items()}))


if __name__ == "__main__":
    main()
