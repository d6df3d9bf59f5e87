"""Merges several benchmarks into one, such as those of the jobs of a CI matrix.

All must have the same checkpoint, text, context, method and reference, and the same perplexity of the reference. Common
values are kept once. `runs` has the environment of each run, and each result has the index of its run. The reference's
figures, including its speeds, are those of the first document that is used.

A file that was measured more than once becomes one row, the last one given, if the measurements agree within rounding
(which depends on the processor). If they do not agree, the files or the measurements differ. That is an error, because
no reader could know which row is right.
"""

from collections.abc import Sequence
from pathlib import Path

from dgpt2_quant.bench.document.format_numbers import label, small
from dgpt2_quant.bench.document.read import read_document
from dgpt2_quant.bench.document.schema import BenchJson, Environment, NoiseFloor, Pair, PeerJson, Result, SkippedPeer
from dgpt2_quant.bench.report.advice import with_advice
from dgpt2_quant.core.errors import ResultError, UsageError

from .compare import refuse_different, rounding, same_quality, same_reference


def merge(results: Sequence[str | Path]) -> BenchJson:
    """One document from one or more `bench.json`, with new advice.

    The results of several documents are ordered by size, the largest first. Raises `ResultError` for a broken file, and
    for files that do not belong together; `UsageError` for no files.
    """
    if not results:
        raise UsageError("`results` is empty", "Name one or more bench.json.")
    paths = [Path(file) for file in results]
    documents = [read_document(path) for path in paths]
    first = documents[0]
    for path, document in zip(paths[1:], documents[1:], strict=True):
        refuse_different(first, document, f"{paths[0]} and {path}")
        _refuse_other_reference(paths[0], first, path, document)
    floor = _noise_floor(documents)
    rows, runs, first = _rows(paths, documents, rounding(floor))
    if len(documents) > 1:
        rows.sort(key=lambda row: -row["bytes"])
    pairs: dict[frozenset[str], Pair] = {}
    peers: dict[tuple[str, str], PeerJson] = {}
    skipped: dict[str, SkippedPeer] = {}
    for document in documents:
        pairs |= {frozenset((pair["a"], pair["b"])): pair for pair in document["pairs"]}
        peers |= {(peer["name"], peer["precision"]): peer for peer in document["peers"]}
        skipped |= {peer["name"]: peer for peer in document["skipped_peers"]}
    measured = {name for name, _ in peers}
    merged: BenchJson = {
        **first,
        "environment": runs[0],
        "runs": runs,
        "noise_floor": floor,
        "results": rows,
        "pairs": list(pairs.values()),
        "peers": list(peers.values()),
        "skipped_peers": [peer for name, peer in skipped.items() if name not in measured],
    }
    return with_advice(merged)


def _rows(
    paths: Sequence[Path], documents: Sequence[BenchJson], floor: float
) -> tuple[list[Result], list[Environment], BenchJson]:
    """Each file once, the runs that they belong to, renumbered, and the document of the first of these runs."""
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
            f"{path} and {other_path} cannot be compared: reference.perplexity is {one:.4f} in one and {two:.4f} in the"
            " other",
            "On the same text this means another reference or another method. Omit one of the files.",
        )


def _refuse_other_quality(path: Path, row: Result, other_path: Path, other: Result, floor: float) -> None:
    if not same_quality(row, other, floor):
        raise ResultError(
            f"{label(row)} differs between {path} and {other_path}: results[].kld_mean is {small(row['kld_mean'])} and"
            f" {small(other['kld_mean'])}, perplexity {row['perplexity']:.4f} and {other['perplexity']:.4f}",
            "Omit one of the files. `dgpt2-quant compare` compares two builds.",
        )


def _noise_floor(documents: Sequence[BenchJson]) -> NoiseFloor | None:
    """The highest one that was measured, which holds for all machines."""
    floors = [floor for document in documents if (floor := document["noise_floor"])]
    return max(floors, key=lambda floor: floor["kld_mean"], default=None)
