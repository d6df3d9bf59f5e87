"""Measures quality figures that `bench` does not report, and how they compare with llama-perplexity's.

usage: measure_quality.py perplexity REFERENCE.gguf FILE.gguf ... --llama-cpp-bin DIR [--text FILE] [--rounds N]
       measure_quality.py roundings [--model M] [--text TEXT] [--scored N] [--imatrix FILE]
       measure_quality.py pads FILE.gguf ... [--text TEXT]
       measure_quality.py gate [--level L ...] [--runs N] [--rounds N]

- perplexity: of each file, by us and by llama-perplexity, with the speed of scoring in turns, loading left out; and the
  figures of the KL divergence from REFERENCE by both.
- roundings: llama.cpp rounds activations to eight bits where a matrix is quantized. For some matrices, all others in
  F32: the KL divergence of the file that llama.cpp quantizes (`both`), and of one with the same weights in F32, whose
  activations are not rounded (`weights`).
- pads: the share of the probability that the pad tokens of `lean` files take in a program that does not mask them.
- gate: how `compare` judges runs of one file, and files with one tensor of a lower type.

Progress goes to stderr. The last line is JSON.
"""

import argparse
import re
import tempfile
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from compare_recipes import Text
from dgpt2_quant.bench.bench import bench_files
from dgpt2_quant.bench.compare import compare
from dgpt2_quant.bench.document.environment import describe_environment
from dgpt2_quant.bench.document.schema import BenchJson
from dgpt2_quant.bench.measure import Settings, Subject
from dgpt2_quant.bench.perplexity import perplexity as our_perplexity
from dgpt2_quant.bench.quality.compare_files import compare_files, visit
from dgpt2_quant.bench.quality.divergence import divergence, resampled
from dgpt2_quant.bench.quality.logit_rows import Logits
from dgpt2_quant.bench.quality.windows import LLAMA_CPP
from dgpt2_quant.bench.speed.grid import Grid
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.text import load_text
from dgpt2_quant.quantize.calibration.collect import SAMPLED, imatrix
from dgpt2_quant.quantize.calibration.imatrix_file import read_importance
from dgpt2_quant.quantize.checkpoint.source import open_model
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.runtime import Model
from harness import add_turns, in_turns, output_of, print_document, show, spread

Arguments = argparse.Namespace

STAMP = r"^(\d+)\.(\d+)\.(\d+)\.(\d+) I "  # minutes, seconds, milli-, microseconds
FIGURES = {  # ours: the name that llama-perplexity prints, and the factor to multiply its figure by
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
ROUNDED = {
    "Q4_K": "q4_k_s",
    "Q5_K": "q5_k_s",
    "Q6_K": "q6_k",
    "Q8_0": "q8_0",
}  # tensor type: a quant type to begin with
ROUNDED_PARTS = {"blk": tuple(ROUNDED), "token_embd": tuple(ROUNDED)}
ROUNDED_PARTS |= dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), ("Q6_K",))
SPEED_TOLERANCE = 0.25
PLANTED_IN = ("q4_k_m", "q8_0", "q5_k_m", "q4_0")
PLANTED = (
    "token_embd.weight",
    "blk.2.ffn_down.weight",
    "blk.4.attn_qkv.weight",
    "blk.1.attn_output.weight",
    "blk.0.ffn_up.weight",
)
LOWER = {"Q4_K": "Q3_K", "Q5_K": "Q4_K", "Q6_K": "Q5_K", "Q8_0": "Q6_K", "Q4_0": "Q3_K"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    part = parts.add_parser("perplexity")
    part.add_argument("reference", type=Path)
    part.add_argument("files", type=Path, nargs="+")
    part.add_argument("--llama-cpp-bin", type=Path, required=True, help="the folder of llama-perplexity")
    part.set_defaults(measure=perplexity)
    part = parts.add_parser("roundings")
    part.add_argument("--model", default="storybook")
    part.add_argument("--scored", type=int, help="tokens of the text; all by default")
    part.add_argument("--imatrix", type=Path, help="by default over a text that the model writes")
    part.set_defaults(measure=roundings)
    part = parts.add_parser("pads")
    part.add_argument("files", nargs="+", type=Path)
    part.set_defaults(measure=pads)
    part = parts.add_parser("gate")
    part.add_argument("--runs", type=int, default=10)
    part.add_argument("--level", action="append", help=f"by default {' '.join(PLANTED_IN)}")
    part.set_defaults(measure=gate)
    for part in parts.choices.values():
        part.add_argument("--text", default="evaluation", help="a file, or a bundled text")
        add_turns(part, rounds=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print_document(arguments, arguments.measure(arguments, Path(scratch)))


def perplexity(arguments: Arguments, scratch: Path) -> dict[str, Any]:
    text = scratch / Path(arguments.text).with_suffix(".txt").name
    text.write_text(load_text(arguments.text).text, "utf-8")
    program = [arguments.llama_cpp_bin / "llama-perplexity", "-t", arguments.threads, "-m"]
    results = []
    for path in (arguments.reference, *arguments.files):
        seen: dict[str, float] = {}

        def ours(_number: int, path: Path = path, seen: dict[str, float] = seen) -> float:
            found = our_perplexity(str(path), text=text, threads=arguments.threads)
            seen["perplexity"] = round(found["perplexity"], 4)
            return found["tps"]

        def theirs(_number: int, path: Path = path, seen: dict[str, float] = seen) -> float:
            log = output_of(*program, path, "-f", text, log=True)
            begin = re.search(STAMP + r"perplexity: calculating perplexity over (\d+) chunks, n_ctx=(\d+)", log, re.M)
            end = re.search(STAMP + r"Final estimate: PPL = ([\d.]+)", log, re.M)
            assert begin
            assert end
            seen["llama_perplexity"] = float(end[5])
            return int(begin[5]) * int(begin[6]) / (seconds(end) - seconds(begin))

        speeds = in_turns({"tps": ours, "llama_tps": theirs}, arguments.rounds)
        ratios = [a / b for a, b in zip(*speeds.values(), strict=True)]
        difference = 100 * (seen["perplexity"] / seen["llama_perplexity"] - 1)
        medians = {name: round(spread(values)["median"]) for name, values in speeds.items()}
        about = {"difference_percent": round(difference, 4), **medians, "ratio": spread(ratios, 3)}
        results.append({"file": path.name, **seen, **about})
    return {"text": text.name, "perplexity": results, "divergence": divergences(arguments, text, program, scratch)}


def seconds(stamp: re.Match[str]) -> float:
    minutes, whole, milli, micro = (int(part) for part in stamp.groups()[:4])
    return 60 * minutes + whole + milli / 1e3 + micro / 1e6


def divergences(arguments: Arguments, text: Path, program: list[Any], scratch: Path) -> list[dict[str, Any]]:
    """Each figure of each file as ours and as llama-perplexity prints it."""
    base = scratch / "base.kld"
    output_of(*program, arguments.reference, "-f", text, "--kl-divergence-base", base)
    quality = compare_files(arguments.reference, arguments.files, load_text(text).text, threads=arguments.threads)
    draws = resampled(quality)
    found = []
    for number, path in enumerate(arguments.files):
        printed = output_of(*program, path, "--kl-divergence-base", base, "--kl-divergence", log=True)
        ours = divergence(quality, number, draws)
        figures = {}
        for name, (label, factor) in FIGURES.items():
            match = re.search(re.escape(label) + r"\s*:\s*(-?[\d.]+)", printed)
            assert match, label
            figures[name] = [getattr(ours, name), factor * float(match[1])]
        found.append({"file": path.name, "figures": figures})
    return found


def roundings(arguments: Arguments, scratch: Path) -> dict[str, Any]:
    source = open_model(arguments.model)
    text = Text(arguments.text, arguments.scored, source)
    importance = arguments.imatrix or scratch / "imatrix.gguf"
    if arguments.imatrix is None:
        imatrix(arguments.model, text=SAMPLED, output=importance, progress=show)
    (reference,) = convert(arguments.model, type="f32", output=scratch / "reference.gguf")
    both, weights = scratch / "both.gguf", scratch / "weights.gguf"
    rows = []
    for part, name in ((part, name) for part, names in ROUNDED_PARTS.items() for name in names):
        types = [f"{part}={name}", ".*=f32"]
        convert(arguments.model, type=ROUNDED[name], output=both, tensor_type=types, imatrix=importance, overwrite=True)
        convert(str(both), type="f32", output=weights, allow_requantize=True, overwrite=True)
        files = {"both": both, "weights": weights}
        quality = compare_files(
            Path(reference.path), [*files.values()], text.text, threads=arguments.threads, reference_cache=0
        )
        draws = resampled(quality)
        found = [divergence(quality, number, draws) for number in range(len(files))]
        figures = [{"kld": one.kld_interval, "kld_p999": one.kld_p999} for one in found]
        rows.append({"part": part, "type": name, **dict(zip(files, figures, strict=True))})
        show(len(rows), sum(map(len, ROUNDED_PARTS.values())), "roundings")
    return {
        "environment": describe_environment(arguments.threads),
        "model": {"name": source.name, "source_sha256": source.sha256()},
        "calibration": {"datasets": list(read_importance(importance).datasets)},
        "text": {"name": text.key, "sha256": text.sha256, "tokens_scored": sum(quality.lengths)},
        "roundings": rows,
    }


def pads(arguments: Arguments, _scratch: Path) -> dict[str, Any]:
    text = load_text(arguments.text).text
    rows = []
    for path in arguments.files:
        with Model.load(path, ctx_size=LLAMA_CPP.context, threads=arguments.threads) as model:
            shares: list[np.ndarray] = []
            losses: list[np.ndarray] = []
            for window in LLAMA_CPP.fitted(model.positions).windows(model.tokenize(text, special=False)):
                visit(model, window, partial(share_of_pads, model.real_vocabulary, window.targets, shares, losses))
        share, loss = np.concatenate(shares), np.concatenate(losses)
        rows.append(
            {
                "file": path.name,
                "pads": model.vocabulary - model.real_vocabulary,
                "share_mean": float(share.mean()),
                "share_max": float(share.max()),
                "perplexity": round(float(np.exp(loss.mean())), 4),
                "perplexity_without_pads": round(float(np.exp((loss + np.log1p(-share)).mean())), 4),
            }
        )
    return {"text": arguments.text, "files": rows}


def share_of_pads(
    real: int, targets: np.ndarray, shares: list[np.ndarray], losses: list[np.ndarray], start: int, part: Logits
) -> None:
    """Adds, for each scored token, the share of the pads and the negative log-likelihood over all tokens."""
    logits = part.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    weights = np.exp(logits)
    totals = weights.sum(axis=1)
    shares.append(weights[:, real:].sum(axis=1) / totals)
    losses.append(np.log(totals) - logits[np.arange(len(part)), targets[start : start + len(part)]])


def gate(arguments: Arguments, scratch: Path) -> dict[str, Any]:
    levels = arguments.level or PLANTED_IN
    base, *files = (Path(file.path) for file in convert("storybook", type=["f32", *levels], output=scratch))

    def measured(file: Path, rounds: int = 1) -> BenchJson:
        subject = Subject("storybook", "0" * 64, base, [file])
        return bench_files(subject, load_text(arguments.text), Settings(rounds=rounds, grid=Grid.none()))

    same = [measured(files[0], arguments.rounds) for _ in range(arguments.runs + 1)]
    found = [compare(old, new, speed_tolerance=SPEED_TOLERANCE) for old, new in pairwise(same)]
    speeds = [one for document in found for one in document["changes"] if one["figure"].endswith("_ratio")]
    planted: list[dict[str, Any]] = []
    for level, file in zip(levels, files, strict=True):
        sound, tensors = measured(file), read_header(file).tensors
        for tensor in PLANTED:
            kind = LOWER[tensors[tensor].type.name]
            override = f"{re.escape(tensor)}={kind}"
            (changed,) = convert("storybook", type=level, tensor_type=[override], output=scratch / f"{level}.{tensor}")
            comparison = compare(sound, measured(Path(changed.path)))
            changes = {change["figure"]: change for change in comparison["changes"]}
            planted.append(
                {
                    "level": level,
                    "tensor": tensor,
                    "as": kind,
                    "kld_change": changes["kld_mean"]["change"],
                    "caught_by_quality": any(changes[name]["worse"] for name in ("kld_mean", "kld_p99", "perplexity")),
                    "caught": comparison["worse"],
                }
            )
            show(len(planted), len(levels) * len(PLANTED), "planted tensors")
    return {
        "runs": arguments.runs,
        "flagged_of_the_same_build": sum(comparison["worse"] for comparison in found),
        "speed_tolerance": SPEED_TOLERANCE,
        "speeds_compared": sum(change["compared"] for change in speeds),
        "speeds_disturbed": sum(not change["compared"] for change in speeds),
        "planted": planted,
    }


if __name__ == "__main__":
    main()
