"""Checks the arguments of `release` before the work, and begins the release's record."""

import os
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from dgpt2_quant.bench.data.datasets import load_bench_text
from dgpt2_quant.bench.document.blocks import visible
from dgpt2_quant.bench.quality.windows import Windowing
from dgpt2_quant.core.errors import OutputError, UsageError
from dgpt2_quant.core.paths import user_path
from dgpt2_quant.core.quant_types import QuantType, find_types
from dgpt2_quant.core.read_input import Announce
from dgpt2_quant.core.text import NamedText, is_bundled
from dgpt2_quant.core.versions import PACKAGE, tool_version
from dgpt2_quant.quantize.calibration.collect import SAMPLED, load_calibration_text
from dgpt2_quant.quantize.checkpoint.encode_text import encode_text
from dgpt2_quant.quantize.checkpoint.model_name import file_name, folder_name
from dgpt2_quant.quantize.checkpoint.resolve import BUNDLED, resolve
from dgpt2_quant.quantize.checkpoint.source import ModelSource, open_model
from dgpt2_quant.quantize.recipes.tensor_types import has_lean

from .base_model import LICENSE_ID, apache_license, read_base_model
from .folder import found_by_type
from .front_matter import UNKNOWN
from .push import check_repo
from .record import SCHEMA_VERSION, ReleaseJson

_SURELY_ENOUGH = 20_000  # characters, for one window
TYPES = ("f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")
ROUNDS = 5  # of the speed measurement, by default
RECIPES = ("stock", "lean")  # not a searched recipe, which is for one file


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
    rounds: int,
    revision: str | None,
    offline: bool,
    announce: Announce | None,
) -> Request:
    """Parameters as for `release`. Raises `DgptQuantError` for a request that cannot succeed."""
    types = list(dict.fromkeys(find_types(type or TYPES)))
    if rounds < 1:
        raise UsageError(f"`rounds` must be 1 or more, not {rounds}")
    if recipe not in RECIPES:
        raise UsageError(f"`recipe` must be {' or '.join(RECIPES)}, not {str(recipe)[:80]!r}")
    for name, value in {"repo": repo, "base_model": base_model}.items():
        if value is not None:
            check_repo(value, name)
    if license is not None and not LICENSE_ID.fullmatch(license.lower()):
        raise UsageError(
            f"`license` must be an identifier of the Hub, not {license[:100]!r}",
            "For example mit or apache-2.0; the list is at https://huggingface.co/docs/hub/repositories-licenses.",
        )
    folder = user_path(output)
    if str(output) in ("", "-") or "\0" in str(output) or (os.path.lexists(folder) and not folder.is_dir()):
        raise OutputError(f"{str(output)!r} is not a folder", "Name a folder as `output`.")
    scored = load_bench_text(text, offline=offline, announce=announce)
    calibration = load_calibration_text(calibrate, announce=announce)
    source = resolve(model, revision=revision, offline=offline)
    if folder.resolve() in {found.resolve() for found in (source.folder, *(path for path, _ in source.adapters))}:
        raise OutputError(f"{output} is the folder of the checkpoint", "Choose another `output`.")
    own_model = model == BUNDLED and source.folder != user_path(model).resolve()
    shown = model if own_model or not user_path(model).exists() else f"./{source.name}"
    if source.repository and not source.adapters:
        model, revision = source.repository, source.commit
        shown = model
    checkpoint, base = open_model(model, revision=revision, offline=offline), read_base_model(source)
    _check_use(checkpoint, scored)
    options = {
        "--revision": revision,
        "--recipe": recipe if recipe != "stock" else None,
        "--license": license,
        "--base-model": base_model,
        "--rounds": str(rounds) if rounds != ROUNDS else None,
    }
    if calibration:
        options |= {
            "--calibrate": "-" if calibration.name == "stdin" else calibration.name,
            "--calibration-license": calibration_license,
        }
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
            "adapters": [folder_name(path.resolve()) for path, _ in source.adapters],
            "license": license.lower() if license else base.license or UNKNOWN,
            "license_name": None if license else base.license_name,
            "license_link": None if license else base.license_link,
            "languages": list(base.languages),
            "has_chat_template": "default" in checkpoint.tokenizer().chat_templates,
            "limits": base.limits,
        },
        "repo": repo,
        "command": _command(shown, types if type else [], options),
        "commit": _commit(),
        "calibration": None,
        "quick": [],
        "bias": [],
    }
    stated = " ".join((calibration_license or "").split())
    if not stated and calibration is None:
        stated = "that of the model, which generated it"
    elif not stated and calibration:
        stated = "CC0-1.0" if is_bundled(calibration.name, calibration.sha256) else "not stated"
    paths = {t: folder / file_name(checkpoint.name, t, recipe if has_lean(t) else "stock") for t in types}
    if announce:
        for note in _notes(record, own_model, paths):
            announce(note)
    return Request(
        model=model,
        revision=revision,
        folder=folder,
        paths=paths,
        recipe=recipe,
        calibration=calibration,
        calibration_license=stated,
        text=scored,
        license_file=base.license_file or (apache_license() if record["model"]["license"] == "apache-2.0" else None),
        record=record,
    )


def _check_use(checkpoint: ModelSource, text: NamedText) -> None:
    """Raises `UsageError` for a model that does not continue texts, and for a text that is too short for `bench`."""
    if "dgpt2_quant.head.kind" in checkpoint.metadata("", {}):
        raise UsageError(
            f"{checkpoint.name} is a classifier, and `release` measures how a model continues texts",
            "Convert it with `dgpt2-quant convert`, and measure it with `dgpt2-quant eval`.",
        )
    windowing = Windowing().fitted(checkpoint.sizes.context)
    if len(text.text) < _SURELY_ENOUGH:
        try:
            windowing.windows(encode_text(checkpoint.tokenizer(), text.text))
        except UsageError as error:
            raise UsageError(f"{text.name}: {error.message}", "Name a longer `text`.") from error


def _notes(record: ReleaseJson, own_model: bool, paths: Mapping[QuantType, Path]) -> Iterator[str]:
    """Warnings: what a card should have and the checkpoint does not state, and files that llama.cpp does not find."""
    model = record["model"]
    if model["license"] == UNKNOWN:
        yield f"{model['name']} states no license: the card will say so. Set `license` (such as apache-2.0)."
    if not model["base_model"] and not own_model:
        yield "The card will name no base model. Set `base_model` if the checkpoint is on the Hub (owner/name)."
    files = {quant_type.name: path.name for quant_type, path in paths.items()}
    for name, file in files.items():
        if (other := found_by_type(files.values(), name)) != file:
            yield (
                f"For `-hf REPO:{name}` llama.cpp takes {other or 'no file'}, not {file}: the card will say so. To"
                " avoid this, leave out a type, or rename the checkpoint's folder."
            )


def _command(model: str, types: Sequence[QuantType], options: dict[str, str | None]) -> str:
    """The command that makes the release again; without folders of this machine."""
    words = ["dgpt2-quant", "release", model, *(word for t in types for word in ("-t", t.name.lower()))]
    words += [word for flag, value in options.items() if value is not None for word in (flag, value)]
    return visible(shlex.join([*words, "-o", "FOLDER"]))


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
