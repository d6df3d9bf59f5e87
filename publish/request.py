"""The arguments of `release`, checked before the work, and what they make of the release's record."""

import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from dgpt2_quant.bench.data.datasets import load_bench_text
from dgpt2_quant.core.errors import OutputError, UsageError
from dgpt2_quant.core.paths import user_path
from dgpt2_quant.core.quant_types import QuantType, find_types
from dgpt2_quant.core.read_input import Announce
from dgpt2_quant.core.text import NamedText
from dgpt2_quant.core.versions import PACKAGE, tool_version
from dgpt2_quant.quantize.calibration.collect import SAMPLED, load_calibration_text
from dgpt2_quant.quantize.checkpoint.model_name import file_name
from dgpt2_quant.quantize.checkpoint.resolve import BUNDLED, Source, resolve
from dgpt2_quant.quantize.checkpoint.source import open_model
from dgpt2_quant.quantize.recipes.tensor_types import has_lean

from .base_model import read_base_model
from .front_matter import UNKNOWN
from .push import check_repo
from .record import SCHEMA_VERSION, ReleaseJson

TYPES = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")
RECIPES = ("stock", "lean")  # not a searched one, which is of one file


@dataclass(frozen=True)
class Request:
    """A release to make. `model` and `revision` are pinned to a commit; `calibration` is None for text that the model
    generates; `record` has what is known before the work."""

    model: str
    revision: str | None
    folder: Path
    paths: dict[QuantType, Path]
    recipe: str
    calibration: NamedText | None
    calibration_license: str
    text: NamedText
    license_file: Path | None
    record: ReleaseJson


def read_request(
    model: str,
    *,
    output: str | Path,
    type: str | QuantType | Sequence[str | QuantType] | None,
    recipe: str,
    calibrate: str | Path | NamedText,
    calibration_license: str | None,
    text: str | Path | NamedText,
    repo: str | None,
    license: str | None,
    base_model: str | None,
    revision: str | None,
    offline: bool,
    announce: Announce | None,
) -> Request:
    """Parameters as for `release`. Raises `DgptQuantError` for a request that cannot succeed."""
    types = list(dict.fromkeys(find_types(type or TYPES)))
    if recipe not in RECIPES:
        raise UsageError(f"`recipe` must be {' or '.join(RECIPES)}, not {str(recipe)[:80]!r}")
    for name, value in {"repo": repo, "base_model": base_model}.items():
        if value is not None:
            check_repo(value, name)
    folder = user_path(output)
    if str(output) == "-" or (folder.exists() and not folder.is_dir()):
        raise OutputError(f"{output} is not a folder", "Name a folder as `output`.")
    scored = load_bench_text(text, offline=offline, announce=announce)
    calibration = load_calibration_text(calibrate, announce=announce)
    source = resolve(model, revision=revision, offline=offline)
    if source.repository and not source.adapters:
        model, revision = source.repository, source.commit
    checkpoint, base = open_model(model, revision=revision, offline=offline), read_base_model(source)
    options = {"--recipe": recipe if recipe != "stock" else None, "--license": license, "--base-model": base_model}
    if calibration:
        options |= {"--calibrate": calibration.name, "--calibration-license": calibration_license}
    if (text_name := text.name if isinstance(text, NamedText) else Path(text).name) != "evaluation":
        options["--text"] = text_name
    record: ReleaseJson = {
        "schema_version": SCHEMA_VERSION,
        "identity": {
            "source_sha256": checkpoint.sha256(),
            "recipe": recipe,
            "calibration": f"{calibration.name} {calibration.sha256}" if calibration else SAMPLED,
            "dgpt2_quant": tool_version(),
            "llama_cpp_python": version(PACKAGE),
        },
        "model": {
            "name": checkpoint.name,
            "repository": source.repository,
            "commit": source.commit,
            "base_model": base_model or source.repository,
            "license": (license or base.license or UNKNOWN).lower(),
            "languages": list(base.languages),
            "limits": base.limits,
        },
        "repo": repo,
        "command": _command(source, types if type else [], options),
        "commit": _commit(),
        "calibration": None,
        "quick": [],
        "bias": [],
    }
    if announce:
        _note_missing(record, announce)
    own = {SAMPLED: "that of the model, which wrote it", "calibration": "CC0-1.0", "evaluation": "CC0-1.0"}
    calibration_name = calibration.name if calibration else SAMPLED
    return Request(
        model=model,
        revision=revision,
        folder=folder,
        paths={t: folder / file_name(checkpoint.name, t, recipe if has_lean(t) else "stock") for t in types},
        recipe=recipe,
        calibration=calibration,
        calibration_license=calibration_license or own.get(calibration_name, "not stated"),
        text=scored,
        license_file=base.license_file,
        record=record,
    )


def _note_missing(record: ReleaseJson, announce: Announce) -> None:
    """What a published card should have, and the checkpoint does not state."""
    model = record["model"]
    if model["license"] == UNKNOWN:
        announce(f"{model['name']} states no license: the card will say so. Set `license` (such as apache-2.0).")
    if not model["base_model"] and model["name"] != BUNDLED:
        announce("The card will name no base model. Set `base_model` if the checkpoint is on the Hub (owner/name).")


def _command(source: Source, types: Sequence[QuantType], options: dict[str, str | None]) -> str:
    """The command that makes the release again; without folders of this machine."""
    model = source.repository or source.name
    words = ["dgpt2-quant", "release", model if source.repository or model == BUNDLED else f"./{model}"]
    if source.commit:
        words += ["--revision", source.commit]
    for quant_type in types:
        words += ["-t", quant_type.name.lower()]
    for flag, value in options.items():
        if value is not None:
            words += [flag, value]
    return shlex.join([*words, "-o", "FOLDER"])


def _commit() -> str | None:
    """The commit of this program, if it runs from a clone."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
