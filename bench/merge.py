"""Several benchmarks as one: what the jobs of a CI matrix measured, each a level or some, perhaps on other machines.

They must be of the same checkpoint, text, context, method and reference, and agree on the reference's perplexity. What
is the same in all is kept once; each run's environment is kept in `runs`, and each level says by `run` where it was
timed. The reference's figures, its speeds among them, are of the document that the first of `runs` is from.

A level that was measured more than once becomes one row, the last one given, if the measurements agree within rounding
(another processor's kernels round otherwise): its quality is then the same, and its timing the later one. If they do
not agree, the files differ, or the measuring did, and that is an error: no reader could tell which row to believe.
"""

from collections.abc import Sequence
from pathlib import Path

from dgpt2_quant.bench.document.format_numbers import label, small
from dgpt2_quant.bench.document.read import read_document
from dgpt2_quant.bench.document.schema import BenchJson, Environment, NoiseFloor, Pair, PeerJson, Result, SkippedPeer
from dgpt2_quant.bench.report.advice import with_advice
from dgpt2_quant.core.errors import ResultError, UsageError

from .compare import refuse_different, rounding, same_quality, same_reference


def merge(files: Sequence[str | Path]) -> BenchJson:
    """One document of several `bench.json`s, or of a single one, with the advice made anew.

    The levels of several are ordered from the largest file to the smallest. Raises `ResultError` for a file that is
    not sound, and for files that do not belong together; `UsageError` when there are none.
    """
    if not files:
        raise UsageError("no results were given", "Name one bench.json or several.")
    paths = [Path(file) for file in files]
    documents = [read_document(path) for path in paths]
    first = documents[0]
    for path, document in zip(paths[1:], documents[1:], strict=True):
        refuse_different(first, document, f"{paths[0]} and {path}")
        _refuse_other_reference(paths[0], first, path, document)
    floor = _noise_floor(documents)
    results, runs, first = _results(paths, documents, rounding(floor))
    if len(documents) > 1:
        results.sort(key=lambda row: -row["bytes"])
    pairs: dict[frozenset[str], Pair] = {}
    peers: dict[tuple[str, str], PeerJson] = {}
    skipped: dict[str, SkippedPeer] = {}
    for document in documents:
        pairs |= {frozenset((pair["a"], pair["b"])): pair for pair in document["pairs"]}
        peers |= {(peer["name"], peer["precision"]): peer for peer in document["peers"]}
        skipped |= {peer["name"]: peer for peer in document["skipped_peers"]}
    there = {name for name, _ in peers}
    merged: BenchJson = {
        **first,
        "environment": runs[0],
        "runs": runs,
        "noise_floor": floor,
        "results": results,
        "pairs": list(pairs.values()),
        "peers": list(peers.values()),
        "skipped_peers": [peer for name, peer in skipped.items() if name not in there],
    }
    return with_advice(merged)


def _results(
    paths: Sequence[Path], documents: Sequence[BenchJson], floor: float
) -> tuple[list[Result], list[Environment], BenchJson]:
    """Each level once, the runs that they are of, numbered anew, and the document that the first of these is from."""
    rows: dict[tuple[str, str], tuple[Path, Result]] = {}
    runs: list[tuple[Environment, BenchJson]] = []
    for path, document in zip(paths, documents, strict=True):
        for row in document["results"]:
            key = row["type"], row["recipe"]
            if key in rows:
                _refuse_other_quality(*rows[key], path, row, floor)
            rows[key] = path, {**row, "run": row["run"] + len(runs)}
        runs += [(environment, document) for environment in document["runs"]]
    used = sorted({row["run"] for _, row in rows.values()})
    numbers = {run: number for number, run in enumerate(used)}
    results: list[Result] = [{**row, "run": numbers[row["run"]]} for _, row in rows.values()]
    return results, [runs[run][0] for run in used], runs[used[0]][1]


def _refuse_other_reference(path: Path, document: BenchJson, other_path: Path, other: BenchJson) -> None:
    if not same_reference(document, other):
        one, two = document["reference"]["perplexity"], other["reference"]["perplexity"]
        raise ResultError(
            f"{path} and {other_path} can not be laid side by side: reference.perplexity is {one:.4f} in one and"
            f" {two:.4f} in the other",
            "On the same text that is another reference or another way of measuring; leave one of the files out.",
        )


def _refuse_other_quality(path: Path, row: Result, other_path: Path, other: Result, floor: float) -> None:
    if not same_quality(row, other, floor):
        raise ResultError(
            f"{label(row)} is in {path} and in {other_path}, and not the same: its results[].kld_mean is"
            f" {small(row['kld_mean'])} and {small(other['kld_mean'])}, its perplexity {row['perplexity']:.4f} and"
            f" {other['perplexity']:.4f}",
            "Leave one of the files out; `compare` lays two builds side by side.",
        )


def _noise_floor(documents: Sequence[BenchJson]) -> NoiseFloor | None:
    """The highest of those that were measured: on another machine less may be no difference."""
    floors = [floor for document in documents if (floor := document["noise_floor"])]
    return max(floors, key=lambda floor: floor["kld_mean"], default=None)
