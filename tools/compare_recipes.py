"""Compares the recipes `stock` and `lean` on any checkpoint and texts: size, KL divergence, top-1 and decode speed.

usage: compare_recipes.py OUTPUT.json [--model M] [--text FILE ...] [--scored N] [--imatrix FILE] [--level L ...]
       [--prefer GOAL ...] [--search] [--ablation] [--speed] [--rounds N] [--threads N]

All files are calibrated with one importance matrix: --imatrix, or one over a text that the model writes. The files:
stock and `lean` at the quant types of --level, and `lean` with each --prefer (quality by default; none, if no GOAL
follows) where that is another mix. --search adds `lean` searched for the size of each stock file, and for the KL
divergence of stock Q4_K_M on the first text.
--ablation makes each searched mix again without one step of the recipe, and without all of them. --speed times greedy
decoding in turns, one sequence and eight.

Each file is scored on each text (--scored: on the beginning of it, about that many tokens). Ratios compare a file with
a stock file; both sides of a ratio are of the same draws of the bootstrap, and of the same rounds. Tables go to stdout.
"""

import argparse
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from dgpt2_quant.bench.document.environment import describe_environment
from dgpt2_quant.bench.quality.bootstrap import Bootstrap
from dgpt2_quant.bench.quality.compare_files import compare_files
from dgpt2_quant.bench.quality.divergence import divergence, resampled
from dgpt2_quant.bench.quality.windows import LLAMA_CPP
from dgpt2_quant.core.json_text import to_json_text
from dgpt2_quant.core.text import load_text
from dgpt2_quant.quantize.calibration.collect import SAMPLED, imatrix
from dgpt2_quant.quantize.calibration.imatrix_file import read_importance
from dgpt2_quant.quantize.checkpoint.encode_text import encode_text
from dgpt2_quant.quantize.checkpoint.source import ModelSource, open_model
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.recipes.lean_steps import STEPS
from dgpt2_quant.quantize.recipes.tensor_types import PREFERENCES
from dgpt2_quant.runtime import Model
from doc_tables import quality_tables, speeds_table, texts_table
from harness import in_turns, parser_of, show, spread
from time_generation import SETTINGS, one_sequence, several_sequences

LEVELS = ("q3_k_m", "q4_0", "iq4_nl", "q4_k_m", "q5_k_m", "q6_k")
EQUAL = "Q4_K_M"  # the stock type for whose KL divergence a file is searched
AT_ONCE = 6  # files that are scored together: each is in memory
BATCHES: dict[str, Callable[..., float]] = {"1": one_sequence, "8": several_sequences}


def main() -> None:
    arguments = parsed()
    with tempfile.TemporaryDirectory() as scratch:
        maker = Maker(arguments, Path(scratch))
        scorer = Scorer(
            maker, [Text(name, arguments.scored, maker.source) for name in arguments.text], arguments.threads
        )
        files = maker.stock()
        scorer.score(files)
        made = maker.lean()
        if arguments.search:
            made += maker.searched(files, scorer.texts[0].key)
        scorer.score(made)
        files += made
        if arguments.speed:
            time_files(files, arguments)
        written(arguments, maker, scorer, files)
        if arguments.ablation:
            for ablated in maker.ablated([file for file in made if file.kind == "searched"]):
                scorer.score(ablated)
                files += ablated
                written(arguments, maker, scorer, files)  # the next step takes minutes
    document = json.loads(arguments.output.read_text("utf-8"))
    for table in (texts_table, quality_tables, speeds_table):
        print("\n".join(table(document)), end="\n\n")


def parsed() -> argparse.Namespace:
    parser = parser_of(__doc__, rounds=7)
    parser.add_argument("output", type=Path, help="replaced if it exists")
    parser.add_argument("--model", default="storybook")
    parser.add_argument("--text", action="append", help="a file, or a bundled text; `evaluation` by default")
    parser.add_argument("--scored", type=int, help="tokens of each text; all by default")
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--level", action="append", help=f"by default {' '.join(LEVELS)}")
    parser.add_argument("--prefer", nargs="*", choices=PREFERENCES, default=["quality"], metavar="GOAL")
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--ablation", action="store_true", help="of the searched files")
    parser.add_argument("--speed", action="store_true")
    arguments = parser.parse_args()
    arguments.text = arguments.text or ["evaluation"]
    if len({Path(text).name for text in arguments.text}) < len(arguments.text):
        parser.error("two texts have the same file name, which is their name in the document")
    if arguments.ablation and not arguments.search:
        parser.error("--ablation needs --search")
    return arguments


@dataclass
class File:
    """A converted file. `beside` is the stock type that it is compared with, for its size or its quality."""

    name: str
    kind: str  # stock, level, searched, equal, ablated
    converted: Any
    beside: str | None = None
    without: tuple[str, ...] = ()
    scores: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)  # KL divergences; top-1 is the same
    figures: dict[str, Any] = field(default_factory=dict)  # by text
    speeds: dict[str, list[float]] = field(default_factory=dict)  # by batch size

    @property
    def types(self) -> dict[str, str]:
        """The tensor types of the matrices, as in a recipe file."""
        plan = self.converted.plan
        return {name: kind.name for name, kind in plan.types.items() if len(plan.shapes[name]) == 2}

    def to_json(self) -> dict[str, Any]:
        about = {k: v for k, v in self.converted.to_json().items() if k not in ("model", "path", "seconds")}
        types = self.types if self.kind in ("searched", "equal") else {}  # of the others they follow from the recipe
        found = {"name": self.name, "kind": self.kind, "beside": self.beside, "without": list(self.without), **about}
        tps = {"tps": {batch: spread(speeds) for batch, speeds in self.speeds.items()}} if self.speeds else {}
        return {**found, "types": types, "quality": self.figures, **tps}


class Maker:
    """Converts the model, with one importance matrix for all files."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.model, self.threads, self.folder = arguments.model, arguments.threads, folder
        self.levels = arguments.level or LEVELS
        self.goals = arguments.prefer
        self.source: ModelSource = open_model(arguments.model)
        self.imatrix = arguments.imatrix or folder / "imatrix.gguf"
        if arguments.imatrix is None:
            imatrix(self.model, text=SAMPLED, output=self.imatrix, progress=show)
        (file,) = convert(self.model, type="f32", output=folder / "reference.gguf", threads=self.threads)
        self.reference = Path(file.path)

    def make(self, output: str, **settings: Any) -> list[Any]:
        settings |= {"imatrix": self.imatrix, "threads": self.threads, "progress": show}
        return convert(self.model, output=self.folder / output, **settings)

    def stock(self) -> list[File]:
        return [File(f"stock {file.type}", "stock", file) for file in self.make("stock", type=self.levels)]

    def lean(self) -> list[File]:
        plain = self.make("lean", type=self.levels, recipe="lean")
        made = [File(f"lean {file.type}", "level", file) for file in plain]
        for goal in self.goals:
            made += [
                File(f"lean {file.type}, {goal}", "level", file)
                for file, other in zip(
                    self.make(goal, type=self.levels, recipe="lean", prefer=goal), plain, strict=True
                )
                if file.plan.types != other.plan.types
            ]
        return made

    def searched(self, stock: Sequence[File], text: str) -> list[File]:
        found = []
        for one in stock:
            level = one.converted.type
            (file,) = self.make(f"searched/{level}.gguf", recipe="lean", target_size=one.converted.bytes)
            found.append(File(f"lean, size of {level}", "searched", file, level))
            if level == EQUAL:
                limit = one.figures[text]["kld"]["value"]
                (file,) = self.make("searched/equal.gguf", recipe="lean", max_kld=limit)
                found.append(File(f"lean, KLD of {level}", "equal", file, level))
        return found

    def ablated(self, searched: Sequence[File]) -> Iterator[list[File]]:
        """The searched types again, without each step and without all; each time all files."""
        for without in [*((step,) for step in STEPS), STEPS]:
            name = "-".join(without) if len(without) == 1 else "all"
            files = []
            for one in searched:
                recipe = self.folder / f"{one.beside}.json"
                about = {"format": "dgpt2-quant recipe", "version": 1, "type": one.converted.type}
                recipe.write_text(json.dumps({**about, "without": without, "types": one.types}), "utf-8")
                (file,) = self.make(f"{name}/{one.beside}.gguf", recipe=recipe)
                files.append(File(f"{one.name}, without {name}", "ablated", file, one.beside, without))
            yield files


class Text:
    """A text, or its beginning with about that many scored tokens. `key` is its name in the document."""

    def __init__(self, name: str, scored: int | None, source: ModelSource) -> None:
        text = load_text(name)
        self.key, self.sha256, self.text = text.name, text.sha256, text.text
        if scored:
            windows = ceil(scored / (LLAMA_CPP.context // 2 - 1))
            tokens = encode_text(source.tokenizer(), text.text)
            # assumes the same number of letters a token throughout the text
            self.text = text.text[: ceil(len(text.text) * (windows + 0.5) * LLAMA_CPP.context / len(tokens))]
        self.about: dict[str, Any] = {}
        self.draws: Bootstrap | None = None


class Scorer:
    """Scores files on the texts, compared with the reference."""

    def __init__(self, maker: Maker, texts: Sequence[Text], threads: int) -> None:
        self.reference, self.texts, self.threads = maker.reference, texts, threads

    def score(self, files: Sequence[File]) -> None:
        for first in range(0, len(files), AT_ONCE):
            group = files[first : first + AT_ONCE]
            paths = [Path(one.converted.path) for one in group]
            for text in self.texts:
                quality = compare_files(
                    self.reference, paths, text.text, threads=self.threads, reference_cache=0, progress=show
                )
                text.draws = text.draws or resampled(quality)
                text.about = {
                    "name": text.key,
                    "sha256": text.sha256,
                    "scored_sha256": hashlib.sha256(text.text.encode()).hexdigest(),
                    "tokens": len(quality.tokens),
                    "tokens_scored": sum(quality.lengths),
                    "context": quality.windowing.context,
                    "perplexity": float(np.exp(quality.base.nll.mean())),
                }
                for number, one in enumerate(group):
                    level, found = quality.files[number], divergence(quality, number, text.draws)
                    one.scores[text.key] = level.kld, level.top == quality.base.top
                    one.figures[text.key] = {
                        "kld": found.kld_interval,
                        "kld_median": found.kld_median,
                        "kld_p99": found.kld_p99,
                        "kld_p999": found.kld_p999,
                        "top1_agreement": found.top1_agreement,
                        "perplexity": found.perplexity.perplexity,
                        "ppl_ratio": found.ppl_ratio_interval,
                    }

    def pair(self, one: File, other: File, text: Text) -> dict[str, Any]:
        """Ratios of a file to another one, and the difference of their top-1 agreements."""
        (kld, same), (other_kld, other_same) = one.scores[text.key], other.scores[text.key]
        assert text.draws
        return {
            "a": one.name,
            "b": other.name,
            "text": text.key,
            "bytes_ratio": one.converted.bytes / other.converted.bytes,
            "kld_ratio": ratio_of_means(text.draws, kld, other_kld),
            "kld_p999_ratio": one.figures[text.key]["kld_p999"] / other.figures[text.key]["kld_p999"],
            "top1_difference": text.draws.mean(same.astype(np.float64) - other_same),
            "speed_ratio": {
                batch: spread([a / b for a, b in zip(speeds, other.speeds[batch], strict=True)], 3)
                for batch, speeds in one.speeds.items()
            },
        }


def ratio_of_means(draws: Bootstrap, above: np.ndarray, below: np.ndarray) -> dict[str, float]:
    """With its 95 % interval: both means are over the same draws."""
    means: list[np.ndarray] = []
    for values in (above, below):
        draws.mean(values, of=lambda found: means.append(found) or found)
    (drawn, whole), (other_drawn, other_whole) = means[:2], means[2:]
    low, high = np.quantile(drawn / other_drawn, (0.025, 0.975))
    return {"value": float(whole / other_whole), "low": float(low), "high": float(high)}


def time_files(files: Sequence[File], arguments: argparse.Namespace) -> None:
    """Tokens per second of each file in each round, one sequence and eight."""
    with ExitStack() as stack:
        models = [stack.enter_context(Model.load(one.converted.path, threads=arguments.threads)) for one in files]
        for batch, speed in BATCHES.items():
            contestants = {n: partial(speed, model, SETTINGS["greedy"]) for n, model in enumerate(models)}
            for number, speeds in in_turns(contestants, arguments.rounds).items():
                files[number].speeds[batch] = speeds


def written(arguments: argparse.Namespace, maker: Maker, scorer: Scorer, files: Sequence[File]) -> None:
    stock = {one.converted.type: one for one in files if one.kind == "stock"}
    searched = {one.beside: one for one in files if one.kind == "searched"}
    pairs = []
    for text in scorer.texts:
        for one in files:
            if one.kind == "ablated":
                pairs.append(scorer.pair(one, searched[one.beside], text))
            elif one.kind != "stock":
                others = dict.fromkeys([one.beside or one.converted.type, EQUAL])
                pairs += [scorer.pair(one, stock[other], text) for other in others if other in stock]
    importance = read_importance(maker.imatrix)
    datasets, tokens = list(importance.datasets), len(importance.tokens)
    document = {
        "environment": describe_environment(arguments.threads),
        "model": {"name": maker.source.name, "source_sha256": maker.source.sha256()},
        "calibration": {"datasets": datasets, "tokens": tokens, "sha256": importance.sha256},
        "texts": [text.about for text in scorer.texts],
        "files": [one.to_json() for one in files],
        "pairs": pairs,
    }
    arguments.output.write_text(to_json_text(document) + "\n", "utf-8")


if __name__ == "__main__":
    main()
