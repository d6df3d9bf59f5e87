"""Verifies a release: checksums, metadata, `bench.json` and the card against each other, and that each file runs."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dgpt2_quant.bench.document.read import read_document
from dgpt2_quant.bench.document.schema import BenchJson
from dgpt2_quant.bench.perplexity import perplexity
from dgpt2_quant.bench.report.advice import with_advice
from dgpt2_quant.core.errors import CheckpointError, DgptQuantError, ModelNotFoundError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.paths import user_path
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.versions import tool_version
from dgpt2_quant.quantize.checkpoint.folder import file_sha256

from .card import card_text
from .folder import BENCH, CARD, IMATRIX, SUMS, read_sums
from .record import NAME, ReleaseJson, read_record
from .release import quick_text

_TOLERANCE = 0.005  # of a perplexity: another instruction set changes it by up to 0.0004 (docs/ci.md)


@dataclass(frozen=True)
class Check:
    """What was checked, and what is wrong; `problem` is empty if nothing is."""

    name: str
    problem: str = ""


def verify(folder: str | Path, *, threads: int | None = None, progress: Progress | None = None) -> list[Check]:
    """Checks a release folder. Raises `DgptQuantError` if the folder is not a release."""
    folder = user_path(folder)
    record = read_record(folder)
    if record is None:
        raise ModelNotFoundError(
            f"{folder} is not a release: it has no {NAME}", "Make one with `dgpt2-quant release MODEL -o FOLDER`."
        )
    sums = read_sums(folder)
    if not sums:
        return [Check(SUMS, "is missing: the release is not finished. Run the same `release` again.")]
    document = read_document(folder / BENCH)
    found = list(_sums(folder, sums))
    found += _listed(folder, sums, document)
    found.append(_card(folder, sums, record, document))
    for number, row in enumerate(document["results"]):
        if progress:
            progress(number, len(document["results"]), f"run {row['path']}")
        if row["path"] in sums and (folder / row["path"]).is_file():
            found.append(_runs(folder / row["path"], row["type"], record, threads))
    return found


def _sums(folder: Path, sums: dict[str, str]) -> Iterator[Check]:
    for name, sha256 in sums.items():
        try:
            actual = file_sha256(folder / name)
        except CheckpointError as error:
            yield Check(name, error.message)
            continue
        yield Check(name, "" if actual == sha256 else f"has another SHA-256 than {SUMS} states")


def _listed(folder: Path, sums: dict[str, str], document: BenchJson) -> Iterator[Check]:
    """The files that bench.json describes are those of the folder, and have the same hashes."""
    measured = {row["path"]: row for row in document["results"]}
    present = {path.name for path in folder.glob("*.gguf")} - {IMATRIX}
    for name in sorted(present | measured.keys()):
        row, problem = measured.get(name), ""
        if row is None:
            problem = f"{BENCH} does not describe it"
        elif name not in sums:
            problem = f"{SUMS} does not list it"
        elif row["sha256"] != sums[name]:
            problem = f"{BENCH} states another SHA-256 than {SUMS}"
        elif name in present and row["bytes"] != (folder / name).stat().st_size:
            problem = f"has {(folder / name).stat().st_size:,} bytes, but {BENCH} states {row['bytes']:,}"
        yield Check(f"{BENCH}: {name}", problem)


def _card(folder: Path, sums: dict[str, str], record: ReleaseJson, document: BenchJson) -> Check:
    """The card is the one that follows from bench.json and release.json."""
    plots = [Path(name).stem for name in sums if name.startswith("plots/")]
    expected = card_text(record, with_advice(document), plots).splitlines()
    try:
        actual = (folder / CARD).read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        return Check(f"{CARD} and {BENCH}", f"the card cannot be read: {error}")
    if actual == expected:
        return Check(f"{CARD} and {BENCH}")
    changed = [line for line in difflib.ndiff(actual, expected) if line[:2] in ("- ", "+ ")]
    said = next((line[2:] for line in changed if line[0] == "-"), "")
    wanted = next((line[2:] for line in changed if line[0] == "+"), "")
    problem = f"they differ. The card has: {_short(said)}. From {BENCH} follows: {_short(wanted)}."
    if (version := record["identity"]["dgpt2_quant"]) != tool_version():
        problem += f" The card is by dgpt2-quant {version}, this is {tool_version()}."
    return Check(f"{CARD} and {BENCH}", problem)


def _short(line: str) -> str:
    return repr(line if len(line) <= 200 else line[:200] + "…") if line else "no such line"


def _runs(path: Path, quant_type: str, record: ReleaseJson, threads: int | None) -> Check:
    """The file has the metadata of this release, loads, and repeats its quick perplexity."""
    name = f"run {path.name}"
    expected = {one["file"]: one["perplexity"] for one in record["quick"]}.get(path.name)
    if expected is None:
        return Check(name, f"{NAME} has no perplexity for it")
    try:
        header = read_header(path, arrays=False)
        source = header.metadata.get("dgpt2_quant.source.sha256")
        if header.quant_type != quant_type:
            return Check(name, f"its header states the type {header.quant_type}, {BENCH} {quant_type}")
        if source != record["identity"]["source_sha256"]:
            return Check(name, f"its header states the source {source}, {NAME} another one")
        found = perplexity(str(path), text=quick_text(), threads=threads)["perplexity"]
    except DgptQuantError as error:
        return Check(name, error.message)
    if abs(found / expected - 1) > _TOLERANCE:
        return Check(name, f"its perplexity is {found:.4f}, {NAME} states {expected:.4f}")
    return Check(name)
