"""How much probability the pad tokens of GGUF files take in a program that does not leave them out.

usage: measure_pads.py FILE.gguf [FILE.gguf ...] [--text TEXT] [--threads N]

Scores a text (a file, or a bundled one by name) as llama-perplexity does, and writes a table: the mean and the largest
share of the pads in the softmax over all tokens, and the perplexity over all tokens and without the pads.
"""

import argparse
from pathlib import Path

import numpy as np
from dgpt2_quant.bench.quality.compare_files import visit
from dgpt2_quant.bench.quality.logit_rows import Logits
from dgpt2_quant.bench.quality.windows import LLAMA_CPP
from dgpt2_quant.bench.report.markdown import markdown_table
from dgpt2_quant.core.cores import usable_cores
from dgpt2_quant.core.text import load_text
from dgpt2_quant.runtime import Model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--text", default="evaluation")
    parser.add_argument("--threads", type=int, default=usable_cores())
    arguments = parser.parse_args()
    text = load_text(arguments.text).text
    rows = []
    for path in arguments.files:
        with Model.load(path, ctx_size=LLAMA_CPP.context, threads=arguments.threads) as model:
            pads = model.vocabulary - model.real_vocabulary
            shares, losses = measured(model, text)
        perplexities = np.exp([losses.mean(), (losses + np.log1p(-shares)).mean()])
        figures = [f"{share:.1e}" for share in (shares.mean(), shares.max())] if pads else ["", ""]
        rows.append([path.name, str(pads), *figures, *(f"{perplexity:.4f}" for perplexity in perplexities)])
    columns = ["file", "pads", "their share, mean", "largest", "perplexity, all tokens", "without pads"]
    print("\n".join(markdown_table(columns, rows)))


def measured(model: Model, text: str) -> tuple[np.ndarray, np.ndarray]:
    """For each scored token: the pads' share of the probability, and the negative log-likelihood over all tokens."""
    shares: list[np.ndarray] = []
    losses: list[np.ndarray] = []
    for window in LLAMA_CPP.fitted(model.positions).windows(model.tokenize(text, special=False)):

        def see(start: int, part: Logits, targets: np.ndarray = window.targets) -> None:
            logits = part.astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            weights = np.exp(logits)
            totals = weights.sum(axis=1)
            came = logits[np.arange(len(part)), targets[start : start + len(part)]]
            shares.append(weights[:, model.real_vocabulary :].sum(axis=1) / totals)
            losses.append(np.log(totals) - came)

        visit(model, window, see)
    return np.concatenate(shares), np.concatenate(losses)


if __name__ == "__main__":
    main()
