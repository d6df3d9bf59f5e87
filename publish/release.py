"""`release()`: a folder for the Hub. An interrupted call continues when it is repeated.

The steps are: the importance matrix, the GGUF files, `bench`, a quick perplexity and the bias prompts of each file, and
last the card and the checksums. A step whose result is in the folder is not repeated.
"""

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dgpt2_quant.bench.bench import bench
from dgpt2_quant.bench.document.read import read_document
from dgpt2_quant.bench.document.schema import BenchJson
from dgpt2_quant.bench.perplexity import perplexity
from dgpt2_quant.bench.report.advice import with_advice
from dgpt2_quant.bench.report.plots import PLOTS, draw_plots
from dgpt2_quant.bench.tasks.evaluate import evaluate
from dgpt2_quant.core.atomic_file import explain_errors
from dgpt2_quant.core.cores import threads_or_all
from dgpt2_quant.core.errors import OutputError, ResultError
from dgpt2_quant.core.json_text import to_json_text
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.quant_types import QuantType
from dgpt2_quant.core.read_input import Announce
from dgpt2_quant.core.text import NamedText, bundled_text
from dgpt2_quant.quantize.calibration.collect import SAMPLED, imatrix
from dgpt2_quant.quantize.calibration.imatrix_file import read_importance
from dgpt2_quant.quantize.checkpoint.folder import file_sha256
from dgpt2_quant.quantize.checkpoint.resolve import DEFAULT_MODEL
from dgpt2_quant.quantize.convert import convert
from dgpt2_quant.quantize.recipes.plan import UNWEIGHTED
from dgpt2_quant.quantize.recipes.tensor_types import has_lean

from .card import card_text
from .folder import BENCH, CARD, IMATRIX, LICENSE, SUMS, fixed_files, read_sums, sums_text, write
from .record import NAME, BiasJson, CalibrationJson, QuickJson, ReleaseJson, read_record, record_text
from .request import ROUNDS, Request, read_request

QUICK_CHARACTERS = 5000  # of the bundled text: about two windows
_ON_CARD = 2  # prompts: those of GPT-2's card


@dataclass(frozen=True)
class Release:
    """A finished release: its folder, the files in it, its record and its `bench.json`."""

    folder: Path
    files: Sequence[str]
    record: ReleaseJson
    document: BenchJson


def release(
    model: str = DEFAULT_MODEL,
    *,
    output: str | Path,
    type: str | QuantType | Sequence[str | QuantType] | None = None,
    recipe: str = "stock",
    calibrate: str | Path | NamedText = SAMPLED,
    calibration_license: str | None = None,
    text: str | Path | NamedText = "evaluation",
    repo: str | None = None,
    license: str | None = None,
    base_model: str | None = None,
    rounds: int = ROUNDS,
    threads: int | None = None,
    revision: str | None = None,
    offline: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    announce: Announce | None = None,
) -> Release:
    """Makes the release of a checkpoint in the folder `output`.

    `type` defaults to F16, Q8_0, Q6_K, Q5_K_M, Q4_K_M and Q4_0; `recipe` is `stock` or `lean`. The importance matrix is
    collected over `calibrate`: a text, or `sampled` for text that the model generates; `calibration_license` is the
    license of that text. `bench` scores `text`, and times `rounds` rounds. `repo` is the name on the Hub (owner/name)
    for the card; `license` and `base_model` replace what the checkpoint states. `overwrite` makes everything
    again.

    Raises `DgptQuantError`. After an interrupt the same call continues.
    """
    threads = threads_or_all(threads)
    request = read_request(
        model,
        output=output,
        type=type,
        recipe=recipe,
        calibrate=calibrate,
        calibration_license=calibration_license,
        text=text,
        repo=repo,
        license=license,
        base_model=base_model,
        rounds=rounds,
        revision=revision,
        offline=offline,
        announce=announce,
    )
    with _only_one(request.folder):
        return _make(
            request, rounds, threads, overwrite, common={"offline": offline, "progress": progress, "announce": announce}
        )


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Creates the folder and keeps other calls out of it. Raises `OutputError` if one is in it."""
    from filelock import FileLock, Timeout

    is_new = not folder.exists()
    with explain_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".release.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            raise OutputError(
                f"another process is making a release in {folder}", "Wait until it ends, or choose another `output`."
            ) from None
    try:
        yield
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()  # before it is released, so that no other process holds it
            if is_new:
                folder.rmdir()  # if nothing could be written
        lock.release(force=True)


def _make(request: Request, rounds: int, threads: int, overwrite: bool, common: Mapping[str, Any]) -> Release:
    known = _begin(request, overwrite)
    calibration = _calibrate(request, common)
    _convert(request, threads, common)
    hashes = {path.name: file_sha256(path) for path in request.paths.values()}
    document = _measured(request, hashes, rounds, threads, common)
    record: ReleaseJson = {**request.record, "calibration": calibration}
    if known:
        record |= {"repo": record["repo"] or known["repo"], "commit": known["commit"]}
    kept = known if known and set(read_sums(request.folder).items()) >= set(hashes.items()) else None
    if kept:
        record["quick"] = [one for one in kept["quick"] if one["file"] in hashes]
        record["bias"] = [one for one in kept["bias"] if one["file"] in hashes]
    else:
        record["quick"] = [_quick(path, threads) for path in request.paths.values()]
        record["bias"] = [_bias(path, threads, common["progress"]) for path in request.paths.values()]
    return Release(request.folder, _finish(request, record, document), record, document)


def _begin(request: Request, overwrite: bool) -> ReleaseJson | None:
    """Returns the record of an earlier call for this release, finished or interrupted; None if there is none.

    Raises `OutputError` if the folder has another release, or files that this one does not write.
    """
    folder, ours = request.folder, {path.name for path in request.paths.values()}
    record = None if overwrite else read_record(folder)
    was, now = (record or request.record)["identity"], request.record["identity"]
    if changed := [key for key in now if now[key] != was[key]]:  # type: ignore[literal-required]
        raise OutputError(
            f"{folder} has a release with another {' and '.join(changed)}",
            "Set `overwrite` to make it again, or choose another `output`.",
        )
    others = sorted(path.name for path in folder.glob("*.gguf") if path.name not in {*ours, IMATRIX})
    if others:
        raise OutputError(
            f"{folder} has {others[0]}, which is not a file of this release",
            "Remove it, add its type as `type`, or choose another `output`.",
        )
    if record is None:
        texts = (CARD, BENCH, SUMS, IMATRIX, LICENSE, "template", "params")
        found = [name for name in (*texts, *sorted(ours)) if (folder / name).exists()]
        if found and not overwrite:
            raise OutputError(
                f"{folder / found[0]} exists, and {folder} has no {NAME}",
                "Set `overwrite` to replace it, or choose another `output`.",
            )
        for name in found:
            (folder / name).unlink()
        write(folder / NAME, record_text(request.record))
        return None
    for name, sha256 in read_sums(folder).items():
        if name in {*ours, IMATRIX} and (path := folder / name).exists() and file_sha256(path) != sha256:
            raise OutputError(f"{path} has changed since it was released", "Remove it, and run the same command again.")
    return record


def _calibrate(request: Request, common: Mapping[str, Any]) -> CalibrationJson:
    """The importance matrix, collected if it is missing, and its entry in the record."""
    path, text = request.folder / IMATRIX, request.calibration
    if not path.exists():
        imatrix(request.model, text=text or SAMPLED, output=path, revision=request.revision, **common)
    matrix = read_importance(path)
    ids = array("i", matrix.tokens)
    return {
        "text": text.name if text else "text that the model generated",
        "tokens": len(ids),
        "sha256": text.sha256 if text else hashlib.sha256(ids.tobytes()).hexdigest(),
        "license": request.calibration_license,
        "file_sha256": file_sha256(path),
    }


def _convert(request: Request, threads: int, common: Mapping[str, Any]) -> None:
    """Writes the GGUF files that are missing: unquantized ones, and those that take the importance matrix."""
    missing = [quant_type for quant_type, path in request.paths.items() if not path.exists()]
    to_folder = partial(
        convert, request.model, output=request.folder, revision=request.revision, threads=threads, **common
    )
    plain = [t for t in missing if t.base in UNWEIGHTED and (request.recipe == "stock" or not has_lean(t))]
    if plain:
        to_folder(type=plain)
    if weighed := [t for t in missing if t not in plain]:
        to_folder(type=weighed, recipe=request.recipe, imatrix=request.folder / IMATRIX)


def _measured(
    request: Request, hashes: Mapping[str, str], rounds: int, threads: int, common: Mapping[str, Any]
) -> BenchJson:
    """`bench.json` of exactly these files and this text: the one in the folder, or a new measurement."""
    path = request.folder / BENCH
    if path.exists():
        try:
            found = read_document(path)
        except ResultError:
            found = None
        if found and _describes(found, hashes, request.text, rounds, threads):
            if announce := common["announce"]:
                announce(f"{path} already has the measurements of these files. To measure again, remove it.")
            return found
    document = bench(
        request.model,
        file=list(request.paths.values()),
        text=request.text,
        rounds=rounds,
        threads=threads,
        revision=request.revision,
        **common,
    )
    document["model"]["name"] = request.record["model"]["name"]
    for result in document["results"]:
        result["path"] = Path(result["path"]).name
    write(path, to_json_text(document) + "\n")
    return document


def _describes(document: BenchJson, hashes: Mapping[str, str], text: NamedText, rounds: int, threads: int) -> bool:
    measured = {row["path"]: row["sha256"] for row in document["results"]}
    environment = document["environment"]
    asked = (environment["threads"], environment.get("rounds_asked"), document["text"]["sha256"])
    return measured == dict(hashes) and asked == (threads, rounds, text.sha256)


def quick_text() -> NamedText:
    """The text of the quick perplexity."""
    whole = bundled_text("evaluation")
    text = whole.text[:QUICK_CHARACTERS]
    return NamedText(whole.name, hashlib.sha256(text.encode()).hexdigest(), text)


def _quick(path: Path, threads: int) -> QuickJson:
    return {"file": path.name, "perplexity": perplexity(str(path), text=quick_text(), threads=threads)["perplexity"]}


def _bias(path: Path, threads: int, progress: Progress | None) -> BiasJson:
    (result,) = evaluate(str(path), task="card-prompts", threads=threads, progress=progress)[0]["results"]
    found = result["metrics"]["js_divergence"]
    interval: Any = {"value": found["value"], "low": found["low"], "high": found["high"]}
    prompts: Any = [
        {"prompt": one["prompt"], "tokens": [token["text"] for token in one["top"]]}
        for one in result["prompts"][:_ON_CARD]
    ]
    return {"file": path.name, "js_divergence": interval, "prompts": prompts}


def _finish(request: Request, record: ReleaseJson, document: BenchJson) -> list[str]:
    """Writes the files made from the measurements, the checksums last; returns the names of all files."""
    document = with_advice(document)
    plots = _plots(request.folder, document)
    for name in set(PLOTS) - {Path(path).stem for path in plots}:
        (request.folder / "plots" / f"{name}.png").unlink(missing_ok=True)  # of an earlier measurement
    contents: dict[str, str | bytes] = {NAME: record_text(record), **plots}
    contents |= fixed_files(next(iter(request.paths.values())))
    if request.license_file:
        contents[LICENSE] = request.license_file.read_bytes()
    else:
        (request.folder / LICENSE).unlink(missing_ok=True)  # of an earlier call with another license
    contents[CARD] = card_text(record, document, [Path(name).stem for name in plots])
    for name, content in contents.items():
        write(request.folder / name, content)
    names = sorted([*contents, BENCH, IMATRIX, *(path.name for path in request.paths.values())])
    write(request.folder / SUMS, sums_text(request.folder, names))
    return [*names, SUMS]


def _plots(folder: Path, document: BenchJson) -> dict[str, bytes]:
    """The plots by name. Keeps those of this measurement, because another matplotlib may draw other bytes."""
    sums = {name: sha256 for name, sha256 in read_sums(folder).items() if (folder / name).is_file()}
    known = {name: sha256 for name, sha256 in sums.items() if name == BENCH or name.startswith("plots/")}
    if (
        len(known) > 1
        and BENCH in known
        and all(file_sha256(folder / name) == sha256 for name, sha256 in known.items())
    ):
        return {name: (folder / name).read_bytes() for name in sorted(known) if name != BENCH}
    return {f"plots/{name}": data for name, data in draw_plots(document).items() if name.endswith(".png")}
