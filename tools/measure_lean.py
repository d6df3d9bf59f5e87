"""How much nearer to the model files of the recipe `lean` are than llama.cpp's, at the same size.

usage: measure_lean.py OUTPUT.json --text FILE [--text FILE ...] [--scored N] [--model M] [--imatrix FILE]
       [--level L ...] [--without-search] [--ablation] [--threads N]

All files are made with one importance matrix: `--imatrix`, or one over what the model writes itself. The contestants:
stock files; `lean` at its levels, as they are and with `--prefer quality`; `lean` searched for the size of each stock
file, and for the KL divergence of stock Q4_K_M on the first text. With --ablation each searched mix is made again with
one step of the recipe left out, and with all of them. Every file is scored on each text by itself (--scored: on about
so many tokens of its beginning). Ratios and differences are paired: both sides over the same draws of the bootstrap.
The tables (lean_tables.py) go to stdout.
"""

import argparse
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from dgpt2_quant.bench.document.environment import describe_environment
from dgpt2_quant.bench.quality.bootstrap import Bootstrap
from dgpt2_quant.bench.quality.compare_files import compare
from dgpt2_quant.bench.quality.divergence import divergence, resampled
from dgpt2_quant.bench.quality.windows import LLAMA_CPP
from dgpt2_quant.core.atomic_file import output_file, refuse_existing
from dgpt2_quant.core.json_text import to_json_text
from dgpt2_quant.core.text import load_text
from dgpt2_quant.quantize.calibration.collect import SAMPLED, imatrix
from dgpt2_quant.quantize.calibration.encode_text import encode_text
from dgpt2_quant.quantize.calibration.imatrix_file import ImportanceMatrix, read_importance
from dgpt2_quant.quantize.checkpoint.source import ModelSource, open_model
from dgpt2_quant.quantize.convert import convert, prepare
from dgpt2_quant.quantize.converted_file import ConvertedFile
from dgpt2_quant.quantize.recipes.lean_steps import STEPS
from dgpt2_quant.quantize.recipes.plan import plan_of_recipe
from dgpt2_quant.quantize.recipes.recipe_file import Recipe
from dgpt2_quant.quantize.write import write_files
from lean_tables import EQUAL, print_tables, targets

STOCK = ("q3_k_m", "q4_0", "q4_k_m", "q5_k_m", "q6_k")
LEVELS = ("q3_k_m", "q4_0", "iq4_nl", "q4_k_m", "q5_k_m", "q6_k")
_AT_ONCE = 6  # files that are scored together: each is in memory
_TAILS = (0.025, 0.975)


def main() -> None:
    arguments = parsed()
    refuse_existing(arguments.output, overwrite=True)
    with tempfile.TemporaryDirectory() as scratch:
        workshop = Workshop(arguments, Path(scratch))
        judge = Judge(workshop.reference(), [Text(name, arguments.scored, workshop.source) for name in arguments.text])
        stock = workshop.stock()
        judge.score(stock, arguments.threads)
        lean = workshop.levels(arguments.level or LEVELS)
        if not arguments.without_search:
            equal = next(one for one in stock if one.file.type == EQUAL)
            wanted = equal.scores[judge.texts[0].key].figures["kld"]["value"]
            lean += [*workshop.searched(stock), workshop.equally_good(equal, wanted)]
        judge.score(lean, arguments.threads)
        measured = [*stock, *lean]
        document = written(arguments, workshop, judge, measured)
        if arguments.ablation:
            for ablated in workshop.ablated([one for one in lean if one.kind == "searched"]):
                judge.score(ablated, arguments.threads)
                measured += ablated
                document = written(arguments, workshop, judge, measured)  # the next step takes minutes
    print_tables(document)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="is written over")
    parser.add_argument("--text", action="append", required=True, help="a file, or a bundled text; not calibrated on")
    parser.add_argument("--scored", type=int, help="tokens of each text; all if not given")
    parser.add_argument("--model", default="storybook")
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--level", action="append", help=f"of lean, without a search: {' '.join(LEVELS)}")
    parser.add_argument("--without-search", action="store_true")
    parser.add_argument("--ablation", action="store_true", help="of what was searched")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    if len({Path(text).name for text in arguments.text}) < len(arguments.text):
        parser.error("two texts have the same name, by which the document tells them apart")
    if arguments.ablation and arguments.without_search:
        parser.error("--ablation is of what was searched")
    return arguments


@dataclass(frozen=True)
class Scores:
    """Of a file on a text: by token the KL divergence and whether the likeliest token is the reference's; figures."""

    kld: np.ndarray
    same: np.ndarray
    figures: dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """A file. `beside` is the stock type that it is measured against, for its size or its quality."""

    name: str
    kind: str  # stock, level, searched, equal, ablated
    file: ConvertedFile
    beside: str | None = None
    without: tuple[str, ...] = ()
    scores: dict[str, Scores] = field(default_factory=dict)

    @property
    def recipe(self) -> Recipe:
        """What a search writes, too."""
        plan = self.file.plan
        types = {name: kind for name, kind in plan.types.items() if len(plan.shapes[name]) == 2}
        return Recipe(f"{self.file.type}.json", plan.quant_type, types)

    def to_json(self) -> dict[str, Any]:
        about = {key: value for key, value in self.file.to_json().items() if key not in ("model", "path", "seconds")}
        told = self.kind not in ("stock", "ablated")  # of these it follows from what they were made from
        types = {name: kind.name for name, kind in self.recipe.types.items()} if told else {}
        return {
            "name": self.name,
            "kind": self.kind,
            "beside": self.beside,
            "without": list(self.without),
            **about,
            "types": types,
            "quality": {text: scores.figures for text, scores in self.scores.items()},
        }


class Workshop:
    """Makes the files, all with the same importance matrix."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.model, self.threads, self.folder = arguments.model, arguments.threads, folder
        self.source: ModelSource = open_model(arguments.model)
        self.imatrix = arguments.imatrix or folder / "imatrix.gguf"
        if arguments.imatrix is None:
            imatrix(self.model, text=SAMPLED, output=self.imatrix, progress=show)
        self.importance: ImportanceMatrix = read_importance(self.imatrix)

    def reference(self) -> Path:
        (file,) = convert(self.model, type="f32", output=self.folder / "reference.gguf", threads=self.threads)
        return Path(file.path)

    def make(self, output: str, **settings: Any) -> list[ConvertedFile]:
        settings |= {"imatrix": self.imatrix, "threads": self.threads, "progress": show}
        return convert(self.model, output=self.folder / output, **settings)

    def stock(self) -> list[Contestant]:
        return [Contestant(f"stock {file.type}", "stock", file) for file in self.make("stock", type=STOCK)]

    def levels(self, levels: Sequence[str]) -> list[Contestant]:
        """As the recipe mixes types by itself, and with `quality` preferred where that is another mix."""
        plain = self.make("lean", type=levels, recipe="lean")
        better = self.make("quality", type=levels, recipe="lean", prefer="quality")
        made = [Contestant(f"lean {file.type}", "level", file) for file in plain]
        return made + [
            Contestant(f"lean {file.type}, quality", "level", file)
            for file, other in zip(better, plain, strict=True)
            if file.plan.types != other.plan.types
        ]

    def searched(self, stock: Sequence[Contestant]) -> list[Contestant]:
        made = []
        for one in stock:
            level = one.file.type
            output = f"searched/{level}.gguf"
            (file,) = self.make(output, recipe="lean", target_size=one.file.bytes)
            made.append(Contestant(f"lean, size of {level}", "searched", file, level))
        return made

    def equally_good(self, stock: Contestant, kld: float) -> Contestant:
        (file,) = self.make("searched/equal.gguf", recipe="lean", max_kld=kld)
        return Contestant(f"lean, KLD of {stock.file.type}", "equal", file, stock.file.type)

    def ablated(self, searched: Sequence[Contestant]) -> Iterator[list[Contestant]]:
        """The same types with one step left out after the other, and with all; each time all levels in one go."""
        for without in [*((step,) for step in STEPS), STEPS]:
            name = "-".join(without) if len(without) == 1 else "all"
            plans = {
                self.folder / name / f"{one.beside}.gguf": plan_of_recipe(
                    self.source, replace(one.recipe, skip_steps=without), self.importance.entries
                )
                for one in searched
            }
            prepared = prepare(self.source, plans, self.importance, threads=self.threads, progress=show)
            files = write_files(self.source, plans, prepared, self.importance, threads=self.threads, progress=show)
            yield [
                Contestant(f"{one.name}, without {name}", "ablated", file, one.beside, without)
                for one, file in zip(searched, files, strict=True)
            ]


class Text:
    """A text, or its beginning with about so many scored tokens. `key` names it in the document."""

    def __init__(self, name: str, scored: int | None, source: ModelSource) -> None:
        text = load_text(name)
        self.key, self.sha256, self.text = text.name, text.sha256, text.text
        if scored:
            windows = ceil(scored / (LLAMA_CPP.context // 2 - 1))
            tokens = encode_text(source.tokenizer(), text.text)
            # the text has as many letters a token everywhere, as near as matters
            self.text = text.text[: ceil(len(text.text) * (windows + 0.5) * LLAMA_CPP.context / len(tokens))]
        self.about: dict[str, Any] = {}
        self.draws: Bootstrap | None = None


class Judge:
    """Scores files beside the reference, and removes them."""

    def __init__(self, reference: Path, texts: Sequence[Text]) -> None:
        self.reference, self.texts = reference, texts

    def score(self, contestants: Sequence[Contestant], threads: int) -> None:
        for first in range(0, len(contestants), _AT_ONCE):
            group = contestants[first : first + _AT_ONCE]
            paths = [Path(one.file.path) for one in group]
            for text in self.texts:
                quality = compare(self.reference, paths, text.text, threads=threads, cache_bytes=0, progress=show)
                text.draws = text.draws or resampled(quality)
                text.about = {
                    "name": text.key,
                    "sha256": text.sha256,
                    "scored_sha256": hashlib.sha256(text.text.encode()).hexdigest(),
                    "tokens": len(quality.tokens),
                    "tokens_scored": sum(quality.lengths),
                    "context": quality.cut.context,
                    "perplexity": float(np.exp(quality.base.nll.mean())),
                }
                for number, one in enumerate(group):
                    found, base = quality.levels[number], quality.base
                    figures = figures_of(divergence(quality, number, text.draws))
                    one.scores[text.key] = Scores(found.kld, found.top == base.top, figures)
            for path in paths:
                path.unlink()

    def pair(self, one: Contestant, other: Contestant, text: Text) -> dict[str, Any]:
        """A file beside another one: ratios of the first to the second, and the difference of top-1."""
        a, b = one.scores[text.key], other.scores[text.key]
        assert text.draws
        return {
            "a": one.name,
            "b": other.name,
            "text": text.key,
            "bytes_ratio": one.file.bytes / other.file.bytes,
            "kld_ratio": ratio_of_means(text.draws, a.kld, b.kld),
            "kld_p999_ratio": a.figures["kld_p999"] / b.figures["kld_p999"],
            "top1_difference": text.draws.mean(a.same.astype(np.float64) - b.same),
        }


def figures_of(found: Any) -> dict[str, Any]:
    """The KL divergence in nats; shares as fractions of 1."""
    return {
        "kld": found.kld_interval,
        "kld_median": found.kld_median,
        "kld_p99": found.kld_p99,
        "kld_p999": found.kld_p999,
        "top1_agreement": found.top1_agreement,
        "perplexity": found.perplexity.perplexity,
        "ppl_ratio": found.ppl_ratio_interval,
    }


def ratio_of_means(draws: Bootstrap, above: np.ndarray, below: np.ndarray) -> dict[str, float]:
    """With its 95 % interval: both means are taken over the same draws."""
    (means, whole), (other_means, other_whole) = means_of(draws, above), means_of(draws, below)
    low, high = np.quantile(means / other_means, _TAILS)
    return {"value": float(whole / other_whole), "low": float(low), "high": float(high)}


def means_of(draws: Bootstrap, values: np.ndarray) -> list[np.ndarray]:
    """Over each draw, and over all."""
    seen: list[np.ndarray] = []

    def keep(means: np.ndarray) -> np.ndarray:
        seen.append(means)
        return means

    draws.mean(values, of=keep)
    return seen


def written(
    arguments: argparse.Namespace, workshop: Workshop, judge: Judge, contestants: Sequence[Contestant]
) -> dict[str, Any]:
    document = described(workshop, judge, contestants, arguments.threads)
    with output_file(arguments.output, overwrite=True) as file:
        file.write((to_json_text(document) + "\n").encode())
    return document


def described(workshop: Workshop, judge: Judge, contestants: Sequence[Contestant], threads: int) -> dict[str, Any]:
    stock = {one.file.type: one for one in contestants if one.kind == "stock"}
    searched = {one.beside: one for one in contestants if one.kind == "searched"}
    pairs = []
    for text in judge.texts:
        for one in contestants:
            if one.kind == "ablated":
                pairs.append(judge.pair(one, searched[one.beside], text))
            elif one.kind != "stock":
                others = dict.fromkeys([one.beside or beside(one, stock), EQUAL])
                pairs += [judge.pair(one, stock[other], text) for other in others]
    importance = workshop.importance
    document = {
        "environment": describe_environment(threads),
        "model": {"name": workshop.source.name, "source_sha256": workshop.source.sha256()},
        "calibration": {
            "datasets": list(importance.datasets),
            "tokens": len(importance.tokens),
            "sha256": importance.sha256,
        },
        "texts": [text.about for text in judge.texts],
        "files": [one.to_json() for one in contestants],
        "pairs": pairs,
    }
    return {**document, "targets": targets(document)}


def beside(one: Contestant, stock: dict[str, Contestant]) -> str:
    """The smallest stock file that is no smaller; the largest, where none is."""
    by_size = sorted(stock.values(), key=lambda other: other.file.bytes)
    return next((other for other in by_size if other.file.bytes >= one.file.bytes), by_size[-1]).file.type


def show(done: int, total: int, what: str) -> None:
    """A line where something begins or ends: it is watched in a log."""
    if done in (1, total):
        print(f"{what}: {done} of {total}", file=sys.stderr)


if __name__ == "__main__":
    main()
