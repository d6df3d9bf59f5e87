"""Our perplexity and KL divergence beside llama-perplexity's: the same files, text and threads.

usage: compare_perplexity.py REFERENCE.gguf FILE.gguf ... --llama-cpp-bin DIR [--text FILE] [--rounds N] [--threads N]

For each file (the reference too): perplexity by both, the speed of scoring in rounds in which the two take turns
(tokens per second, loading left out on both sides: llama-perplexity's by the times that its log begins with), and the
figures of KL divergence from the reference. The last line is JSON.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from dgpt2_quant.bench.perplexity import perplexity
from dgpt2_quant.bench.quality.compare_files import compare_files
from dgpt2_quant.bench.quality.divergence import divergence, resampled
from dgpt2_quant.core.text import load_text

_STAMP = r"^(\d+)\.(\d+)\.(\d+)\.(\d+) I "  # minutes, seconds, milli-, microseconds
_FIGURES = {  # ours: how llama-perplexity calls it, and what to multiply its figure by
    "kld_mean": ("Mean    KLD", 1),
    "kld_median": ("Median  KLD", 1),
    "kld_p90": ("90.0%   KLD", 1),
    "kld_p95": ("95.0%   KLD", 1),
    "kld_p99": ("99.0%   KLD", 1),
    "kld_p999": ("99.9%   KLD", 1),
    "kld_max": ("Maximum KLD", 1),
    "mean_dp": ("Mean    Δp", 0.01),
    "rms_dp": ("RMS Δp    ", 0.01),
    "top1_agreement": ("Same top p", 0.01),
    "nll_correlation": ("Cor(ln(PPL(Q)), ln(PPL(base)))", 0.01),
    "ppl_ratio": ("Mean PPL(Q)/PPL(base)         ", 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reference", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--llama-cpp-bin", type=Path, required=True)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = arguments.text or Path(folder, "evaluation.txt")
        if not arguments.text:
            text.write_text(load_text().text, "utf-8")
        theirs = Theirs(arguments.llama_cpp_bin, text, arguments.threads)
        results = [side_by_side(path, theirs, arguments.rounds) for path in (arguments.reference, *arguments.files)]
        figures = divergences(arguments.reference, arguments.files, theirs, Path(folder, "base.kld"))
    print(
        json.dumps(
            {
                "text": text.name,
                "threads": arguments.threads,
                "loadavg": os.getloadavg(),
                "perplexity": results,
                "divergence": figures,
            }
        )
    )


class Theirs:
    """llama-perplexity."""

    def __init__(self, folder: Path, text: Path, threads: int) -> None:
        self.command = [str(folder / "llama-perplexity"), "-t", str(threads)]
        self.text = text
        self.threads = threads

    def run(self, path: Path, *more: object) -> str:
        command = [*self.command, "-m", str(path), *map(str, more)]
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True).stdout

    def perplexity(self, path: Path) -> tuple[float, float]:
        """Perplexity, and tokens per second between the two lines that frame the work."""
        log = self.run(path, "-f", self.text)
        begin = re.search(_STAMP + r"perplexity: calculating perplexity over (\d+) chunks, n_ctx=(\d+)", log, re.M)
        end = re.search(_STAMP + r"Final estimate: PPL = ([\d.]+)", log, re.M)
        assert begin
        assert end
        tokens = int(begin[5]) * int(begin[6])
        return float(end[5]), tokens / (_seconds(end) - _seconds(begin))


def _seconds(stamp: re.Match[str]) -> float:
    minutes, seconds, milli, micro = (int(part) for part in stamp.groups()[:4])
    return 60 * minutes + seconds + milli / 1e3 + micro / 1e6


def side_by_side(path: Path, theirs: Theirs, rounds: int) -> dict[str, Any]:
    """Perplexities and speeds of one file; the first round warms up."""
    ours = [perplexity(str(path), text=theirs.text, threads=theirs.threads)]
    other = [theirs.perplexity(path)]
    for _ in range(rounds):
        ours.append(perplexity(str(path), text=theirs.text, threads=theirs.threads))
        other.append(theirs.perplexity(path))
    ratios = [a["tps"] / b for a, (_, b) in zip(ours[1:], other[1:], strict=True)]
    return {
        "file": path.name,
        "perplexity": round(ours[0]["perplexity"], 4),
        "llama_perplexity": other[0][0],
        "difference_percent": round(100 * (ours[0]["perplexity"] / other[0][0] - 1), 4),
        "tps": round(statistics.median(one["tps"] for one in ours[1:])),
        "llama_tps": round(statistics.median(tps for _, tps in other[1:])),
        "ratio": {
            "median": round(statistics.median(ratios), 3),
            "min": round(min(ratios), 3),
            "max": round(max(ratios), 3),
            "rounds": rounds,
        },
    }


def divergences(reference: Path, files: list[Path], theirs: Theirs, base: Path) -> list[dict[str, Any]]:
    """Each figure of each file as ours, theirs (as it prints them)."""
    theirs.run(reference, "-f", theirs.text, "--kl-divergence-base", base)
    quality = compare_files(reference, files, load_text(theirs.text).text, threads=theirs.threads)
    draws = resampled(quality)
    found = []
    for number, path in enumerate(files):
        printed = theirs.run(path, "--kl-divergence-base", base, "--kl-divergence")
        ours = divergence(quality, number, draws)
        figures = {}
        for name, (label, factor) in _FIGURES.items():
            match = re.search(re.escape(label) + r"\s*:\s*(-?[\d.]+)", printed)
            assert match, label
            figures[name] = [getattr(ours, name), factor * float(match[1])]
        found.append({"file": path.name, "figures": figures})
    return found


if __name__ == "__main__":
    main()
