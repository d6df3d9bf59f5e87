"""Verifies a release: checksums, metadata, `bench.json` and the card against each other, and that each file runs."""

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from dgpt2_quant.bench.document.read import read_document
from dgpt2_quant.bench.document.schema import BenchJson
from dgpt2_quant.bench.perplexity import perplexity
from dgpt2_quant.bench.report.advice import with_advice
from dgpt2_quant.core.errors import DgptQuantError, ModelNotFoundError, ResultError
from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.paths import user_path
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.versions import tool_version
from dgpt2_quant.quantize.checkpoint.folder import file_sha256

from .card import card_text
from .folder import BENCH, CARD, IMATRIX, SUMS, fixed_files, read_sums, read_text
from .record import NAME, ReleaseJson, read_record
from .release import quick_text

_TOLERANCE = 0.005  # of a perplexity: another instruction set changes it by up to 0.0004 (docs/ci.md)
_SMALL = 1 << 20  # bytes; a text of a release, or a pointer of Git LFS
_POINTER = b"version https://git-lfs.github.com/spec/v1"


@dataclass(frozen=True)
class Check:
    """The name of a check and the problem it found; `problem` is empty if there is none."""

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
        return [Check(SUMS, "is missing or empty: the release is not finished. Run the same `release` again.")]
    document: BenchJson | None = None
    problem = ""
    try:
        document = read_document(folder / BENCH)
    except ResultError as error:
        problem = error.message
    sizes = {row["path"]: row["bytes"] for row in document["results"]} if document else {}
    found = [Check(name, _changed(folder / name, sha256, sizes.get(name))) for name, sha256 in sums.items()]
    if document is None:
        return [*found, Check(BENCH, problem)]
    changed = {check.name for check in found if check.problem}
    found += _listed(folder, sums, document)
    found += _complete(folder, sums, record, document, changed)
    found.append(_card(folder, sums, record, document))
    for number, row in enumerate(document["results"]):
        if progress:
            progress(number, len(document["results"]), f"run {row['path']}")
        if row["path"] in sums and row["path"] not in changed:
            found.append(_runs(folder / row["path"], row["type"], record, threads))
    return found


def _changed(path: Path, sha256: str, size: int | None) -> str:
    """How the file differs from the one with this hash and size (if known); empty if it does not."""
    try:
        if not path.is_file():
            return "is not a file" if path.exists() else "is missing"
        with path.open("rb") as file:
            begin = file.read(_SMALL)
        if begin.startswith(_POINTER):
            return "is a pointer of Git LFS, not the file itself. Run `git lfs pull` in the folder"
        if size is not None and (actual_size := path.stat().st_size) != size:  # without reading a huge file
            return f"has {actual_size:,} bytes, but {BENCH} states {size:,}"
        actual = file_sha256(path)
    except (OSError, DgptQuantError) as error:
        return f"cannot be read: {error}"
    if actual == sha256:
        return ""
    if hashlib.sha256(begin.replace(b"\r\n", b"\n")).hexdigest() == sha256:
        return "has CRLF line ends, which git's core.autocrlf writes. Clone again with `-c core.autocrlf=false`"
    return f"has another SHA-256 than {SUMS} states: {actual[:16]}…, not {sha256[:16]}…"


def _listed(folder: Path, sums: dict[str, str], document: BenchJson) -> Iterator[Check]:
    """Checks that bench.json describes the GGUF files of the folder, with the same hashes."""
    measured = {row["path"]: row for row in document["results"]}
    files = (path for path in folder.rglob("*") if path.suffix.lower() == ".gguf")
    present = {str(path.relative_to(folder)) for path in files} - {IMATRIX}
    for name in sorted(present | measured.keys()):
        row, problem = measured.get(name), ""
        if row is None:
            problem = f"{BENCH} does not describe it"
        elif name not in sums:
            problem = f"{SUMS} does not list it"
        elif row["sha256"] != sums[name]:
            problem = f"{BENCH} states another SHA-256 than {SUMS}"
        yield Check(f"{BENCH}: {name}", problem)


def _complete(
    folder: Path, sums: dict[str, str], record: ReleaseJson, document: BenchJson, changed: Collection[str]
) -> Iterator[Check]:
    """Checks that `SHA256SUMS` lists the other files, and that those for other programs match the GGUF files."""
    try:
        fixed = fixed_files(folder / document["results"][0]["path"])
    except (DgptQuantError, LookupError, TypeError):  # a broken file, which its own check reports
        fixed = {}
    for name in sorted({CARD, BENCH, NAME, IMATRIX, *fixed} - sums.keys()):
        yield Check(name, f"{SUMS} does not list it")
    for name, text in fixed.items():
        if name in sums and name not in changed and read_text(folder / name) != text:
            yield Check(name, "is not the one that `release` writes for these GGUF files")
    calibration = record["calibration"]
    if not calibration or sums.get(IMATRIX, "") not in ("", calibration["file_sha256"]):
        yield Check(IMATRIX, f"{NAME} states another SHA-256 than {SUMS}")


def _card(folder: Path, sums: dict[str, str], record: ReleaseJson, document: BenchJson) -> Check:
    """Checks that the card is the one computed from bench.json and release.json."""
    plots = [Path(name).stem for name in sums if name.startswith("plots/")]
    expected = card_text(record, with_advice(document), plots).splitlines()
    try:
        actual = read_text(folder / CARD).splitlines()
    except ResultError as error:
        return Check(f"{CARD} and {BENCH}", error.message)
    if actual == expected:
        return Check(f"{CARD} and {BENCH}")
    pairs = enumerate(zip_longest(actual, expected), 1)
    number, (said, wanted) = next((number, pair) for number, pair in pairs if pair[0] != pair[1])
    problem = f"they differ in line {number}. The card has: {_short(said)}. Computed from {BENCH}: {_short(wanted)}."
    if (version := record["identity"]["dgpt2_quant"]) != tool_version():
        problem += f" dgpt2-quant {version} wrote the card; this is {tool_version()}."
    return Check(f"{CARD} and {BENCH}", problem)


def _short(line: str | None) -> str:
    return "no such line" if line is None else repr(line if len(line) <= 200 else line[:200] + "…")


def _runs(path: Path, quant_type: str, record: ReleaseJson, threads: int | None) -> Check:
    """Checks that the file has the metadata of this release, loads, and has the recorded quick perplexity."""
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
        imatrix, calibration = header.metadata.get("dgpt2_quant.imatrix.sha256"), record["calibration"]
        if imatrix is not None and (not calibration or imatrix != calibration["file_sha256"]):
            return Check(name, f"its header states the importance matrix {imatrix}, {NAME} another one")
        found = perplexity(str(path), text=quick_text(), threads=threads)["perplexity"]
    except DgptQuantError as error:
        return Check(name, error.message)
    if not abs(found / expected - 1) <= _TOLERANCE:  # also for NaN
        return Check(name, f"its perplexity is {found:.4f}, {NAME} states {expected:.4f}")
    return Check(name)
