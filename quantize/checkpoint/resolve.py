"""Resolves a MODEL argument to a checkpoint folder: a Hub name (downloaded), a folder, or the bundled `storybook`.

Only Hub names need the network. huggingface_hub handles retries, locks, tokens and mirrors; this module downloads only
the files that a conversion reads, avoids the network when the cache suffices, and explains errors. huggingface_hub
takes half a second to import, so it is imported only before a download.
"""

import importlib.util
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from dgpt2_quant.core.errors import CheckpointError, DgptQuantError, ModelNotFoundError, OutputError, UsageError

BUNDLED = "storybook"
DEFAULT_MODEL = "distilbert/distilgpt2"
SHORT_NAMES = {
    "distilgpt2": DEFAULT_MODEL,
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
}

# the first that is there
_ALL_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_ADAPTER, _ADAPTER_WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")
_SAVED = (".pt", ".pth", ".ckpt")  # files that programs save in training, with everything in one
# files of a training without weights
TRAINING_ONLY = re.compile(r"(optimizer|scheduler|scaler|rng_state|training_args)(_\d+)?\.(pt|pth|bin)")
_GENERIC_NAMES = ("ckpt", "checkpoint", "model", "pytorch_model")
LICENSE_FILES = ["LICENSE", "LICENSE.txt", "LICENSE.md", "COPYING"]  # copied into releases
_SMALL_FILES = ["README.md", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
_SMALL_FILES += ["vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"]
_SMALL_FILES += LICENSE_FILES
_SMALL_FILES += ["additional_chat_templates/*.jinja"]
_log = logging.getLogger(__name__)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_NAME = re.compile(r"\w[\w.-]*/[\w.-]+")
_KINDS = f"`model` is a Hub name (distilgpt2, owner/name), a folder or file (./my-model), or the bundled {BUNDLED}."
_WORKS_OFFLINE = f"The bundled checkpoint works offline: {BUNDLED}."


@dataclass(frozen=True)
class Source:
    """The origin of a checkpoint, and the folder that contains it."""

    name: str  # for messages and file names: "distilgpt2", "storybook", or the folder's name
    folder: Path  # contains config.json, weights and tokenizer
    repository: str | None  # "distilbert/distilgpt2"; None for a folder
    commit: str | None  # the commit, 40 hexadecimal digits; None for a folder
    weights: Path | None = None  # the file that was named, such as nanoGPT's ckpt.pt; None for the folder's
    adapters: tuple[tuple[Path, float], ...] = ()  # folders of LoRA adapters to merge, with their weights


def resolve(model: str, *, revision: str | None = None, offline: bool = False, prefer_cache: bool = False) -> Source:
    """Finds the checkpoint of `model`, and downloads it from the Hub if necessary.

    `revision` is a branch, tag or commit on the Hub (default: main). `offline`, like HF_HUB_OFFLINE=1, disables the
    network. `prefer_cache` uses a cached revision without asking for a newer commit. For a LoRA adapter alone it finds
    the base model. Raises `ModelNotFoundError`, `CheckpointError`, `UsageError` or `OutputError`.
    """
    source = _find(model, revision, offline, prefer_cache)
    if source.weights or not (source.folder / _ADAPTER).is_file():
        return source
    if not _is_adapter_alone(source.folder):
        _log.warning("%s has %s next to a model: the adapter is not merged", source.folder, _ADAPTER)
        return source
    return _with_base(source, offline, prefer_cache)


def with_adapters(source: Source, adapters: Sequence[tuple[Path, float]]) -> Source:
    """The source with further adapters; they are part of its name."""
    from .model_name import folder_name

    names = [source.name, *(folder_name(folder.resolve()) for folder, _ in adapters)]
    return replace(source, name="-".join(names), adapters=(*source.adapters, *adapters))


def _find(model: str, revision: str | None, offline: bool, prefer_cache: bool) -> Source:
    """The folder or file that `model` means, which can be an adapter."""
    path = _local_path(model)
    if path and (other := _also_means(model)):
        if revision is not None and model != BUNDLED:  # a folder has none
            _log.warning("%s is a folder here, but `revision` is given: using %s", model, other)
            path = None
        else:
            _log.warning("%s is a folder here: using it, not %s", model, other)
    if path or model == BUNDLED:
        if revision is not None:
            what = "file" if path and path.is_file() else "folder"
            raise UsageError(f"`revision` needs a Hub name; {model} is a {what}", "Omit `revision`.")
        if path is None:
            return Source(BUNDLED, _bundled_folder(), None, None)
        from .model_name import clean_name, folder_name  # not needed for the bundled checkpoint

        # the name as written, not the target of a symbolic link
        written = path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name
        if path.is_file():
            name = folder_name(written.parent) if path.stem in _GENERIC_NAMES else clean_name(path.stem)
            return Source(name, written.parent, None, None, weights=written)
        return Source(folder_name(written), path.resolve(), None, None)
    if revision == "":  # for example from `--revision "$REV"`
        raise UsageError("`revision` is empty", "Give a branch, tag or commit, or omit `revision`.")
    repository = SHORT_NAMES.get(model, model)
    snapshot = _snapshot(repository, revision, offline, prefer_cache)
    return Source(repository.split("/")[-1], snapshot, repository, snapshot.name)


def find_adapter(folder: Path, *, offline: bool = False) -> Path:
    """The folder of a LoRA adapter, downloaded if `folder` is not one but a name on the Hub (owner/name).

    Raises `ModelNotFoundError`, `CheckpointError` or `OutputError`.
    """
    try:
        if folder.resolve().exists() or not _HUB_NAME.fullmatch(str(folder)):
            return folder
    except (OSError, ValueError) as error:  # a name that is too long, or has a NUL byte
        raise ModelNotFoundError(f"cannot read the adapter {folder}: {error}", "Name its folder.") from error
    try:
        return _snapshot(str(folder), None, offline, adapter=True)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"there is no folder {folder}, and: {error.message}", error.hint) from error


def _snapshot(
    repository: str, revision: str | None, offline: bool, prefer_cache: bool = False, *, adapter: bool = False
) -> Path:
    """The folder of a revision in the Hub cache: of a model or an adapter, or with `adapter` only of an adapter."""
    from huggingface_hub import constants  # cheap, unlike the rest of the library

    wanted = revision or constants.DEFAULT_REVISION
    offline = offline or constants.is_offline_mode()
    cache_will_do = offline or prefer_cache or _COMMIT.fullmatch(wanted)  # a commit never changes
    snapshot = _cached(repository, wanted, adapter) if cache_will_do else None
    if snapshot is None and offline:
        instead = "" if adapter else f"{_WORKS_OFFLINE} Or r"
        raise ModelNotFoundError(
            f"offline, and {repository} (revision {wanted}) is not completely in the Hub cache",
            f"{instead or 'R'}un once without `offline`, `dry_run` and HF_HUB_OFFLINE.",
        )
    return snapshot or _download(repository, wanted, adapter)


def _is_adapter_alone(folder: Path) -> bool:
    return (folder / _ADAPTER).is_file() and not any((folder / name).is_file() for name in _ALL_WEIGHTS)


def _with_base(source: Source, offline: bool, prefer_cache: bool) -> Source:
    """The base model that an adapter names, with the adapter."""
    from .json_file import read_json

    config = read_json(source.folder / _ADAPTER)
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    adapter = f"{source.folder} is a PEFT adapter, without the model that it adapts"
    hint = f"Name its base: `dgpt2-quant convert BASE --lora {source.folder}`. Or save it merged: `merge_and_unload()`."
    if not isinstance(base, str) or not base:
        raise CheckpointError(f"{adapter}; its {_ADAPTER} names none", hint)
    if not isinstance(revision, str) or not revision or Path(base).expanduser().is_dir():
        revision = None
    try:
        found = _find(base, revision, offline, prefer_cache)
    except (ModelNotFoundError, UsageError) as error:
        raise type(error)(f"{adapter}; its {_ADAPTER} names {base!r}: {error.message}", hint) from error
    if _is_adapter_alone(found.folder):
        raise CheckpointError(f"{adapter}; its {_ADAPTER} names {base!r}, which is an adapter too", hint)
    return replace(found, name=source.name, adapters=((source.folder, 1.0),))


def is_gguf_name(name: str) -> bool:
    """Whether the name is that of a GGUF file."""
    return name.lower().endswith(".gguf")


def _bundled_folder() -> Path:
    spec = importlib.util.find_spec("dgpt2_quant.demo")  # finds the folder without running its code
    for location in (spec and spec.submodule_search_locations) or ():
        if Path(location, "config.json").is_file():
            return Path(location)
    what = f"the bundled checkpoint {BUNDLED} is missing from this installation"
    raise ModelNotFoundError(what, "Reinstall dgpt2-quant, or name another model, such as distilgpt2.")


def _also_means(model: str) -> str | None:
    """Another model that a folder's name can mean, with an unambiguous name for it; None if there is none."""
    if model == BUNDLED:
        return f"the bundled checkpoint ({_bundled_folder()})"
    if model in SHORT_NAMES:
        return f"the model on the Hub ({SHORT_NAMES[model]})"
    if model in SHORT_NAMES.values():
        short = next(name for name, repository in SHORT_NAMES.items() if repository == model)
        return f"the model on the Hub ({short})"
    if re.fullmatch(r"[\w.-]*\w[\w.-]*/[\w.-]+", model) and model[0] != ".":
        from huggingface_hub import constants

        if (Path(constants.HF_HUB_CACHE) / f"models--{model.replace('/', '--')}").is_dir():
            return "the model on the Hub (run in another working directory to use it)"
    return None


def _local_path(model: str) -> Path | None:
    """The checkpoint folder or file of weights at that path; None if `model` is another kind of name."""
    if is_gguf_name(model):
        raise UsageError(f"{model} is a GGUF file, not a checkpoint", f"{_KINDS} Or: `dgpt2-quant inspect {model}`.")
    if not model:
        return None
    if model == "-":
        raise UsageError("a model cannot be read from stdin (`-`)", _KINDS)
    try:
        path = Path(model).expanduser()
        if any((path / name).is_file() for name in ("config.json", _ADAPTER)) or (
            path.is_dir() and any(map(is_saved_in_training, path.iterdir()))
        ):
            return path
        is_file, is_folder = path.is_file(), path.is_dir()
        if path.exists() and not (is_file or is_folder):
            raise CheckpointError(f"{model} is a pipe or a device, not a file or a folder", _KINDS)
    except (OSError, RuntimeError) as error:  # RuntimeError: the ~user has no home
        raise ModelNotFoundError(f"cannot read {model}: {error}", _KINDS) from error
    if model == BUNDLED or model in SHORT_NAMES:
        if is_folder and any(path.glob("*.safetensors")):
            _log.warning("ignoring the folder %s here: it has no config.json", model)
        return None
    if is_file:
        if path.suffix not in (*_SAVED, ".bin", ".safetensors"):
            raise CheckpointError(f"{model} is a file, but not one of weights", f"Try its folder: {path.parent}/")
        if re.search(r"-\d{5}-of-\d{5}$", path.stem):
            raise CheckpointError(f"{model} is one of several shards", f"Name their folder: {path.parent}/")
        if path.stem == "adapter_model":
            raise CheckpointError(f"{model} is a PEFT adapter, not a model", f"Name its folder: {path.parent}/")
        return path
    spelled_as_path = model.startswith((".", "/", "~")) or model.endswith("/")
    if is_folder and (spelled_as_path or "/" not in model):
        raise _no_config(model, path)
    named_as_file = path.suffix in (*_SAVED, ".bin", ".safetensors")
    if spelled_as_path or model.count("/") > 1 or (named_as_file and "/" not in model):
        raise ModelNotFoundError(f"the {'file' if named_as_file else 'folder'} {model} does not exist", _KINDS)
    return None


def _no_config(name: str, folder: Path) -> CheckpointError:
    if any((folder / name).is_file() for name in _ADAPTER_WEIGHTS):
        what = f"{name} has the weights of a PEFT adapter, but no {_ADAPTER}"
        return CheckpointError(what, "Fetch or save the adapter again.")
    hint = "Name the folder that save_pretrained() wrote."
    if inside := sorted(path.parent for path in folder.glob("*/config.json")):
        hint = f"Name a folder in it, such as {inside[-1]}"
    return CheckpointError(f"{name} has no config.json", hint)


def is_saved_in_training(path: Path) -> bool:
    """Whether it is named as a file that programs save in training, such as nanoGPT's `ckpt.pt`."""
    return path.suffix in _SAVED and not TRAINING_ONLY.fullmatch(path.name)


def _cached(repository: str, revision: str, adapter: bool) -> Path | None:
    """The revision's folder in the Hub cache, if complete: an interrupted download leaves a part.

    Layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    from huggingface_hub import constants

    storage = Path(constants.HF_HUB_CACHE).resolve() / f"models--{repository.replace('/', '--')}"
    try:
        commit = revision if _COMMIT.fullmatch(revision) else (storage / "refs" / revision).read_text()
        snapshot = storage / "snapshots" / commit
        present = {path.name for path in snapshot.iterdir()}
        if adapter or (_ADAPTER in present and present.isdisjoint(_ALL_WEIGHTS)):
            needed = [_ADAPTER, next(name for name in _ADAPTER_WEIGHTS if name in present)]
        else:
            needed = ["config.json"]
            needed += ["tokenizer.json"] if "tokenizer.json" in present else ["vocab.json", "merges.txt"]
            weights = next(name for name in _ALL_WEIGHTS if name in present)
            needed.append(weights)
            if weights.endswith(".json"):
                needed += json.loads((snapshot / weights).read_bytes())["weight_map"].values()
        complete = all((snapshot / name).is_file() for name in needed)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):  # not cached, or a broken index
        return None
    return snapshot if complete and _COMMIT.fullmatch(commit) else None


def _download(repository: str, revision: str, adapter: bool) -> Path:
    """Downloads the revision into the Hub cache, and returns its folder."""
    from importlib.metadata import version

    from httpx2 import HTTPError  # the HTTP client of huggingface_hub
    from huggingface_hub import HfApi, constants, errors

    hub = HfApi(library_name="dgpt2-quant", library_version=version("dgpt2-quant"))
    try:
        # snapshot_download asks again, but without a timeout: it would wait forever for a silent server
        info = hub.model_info(repository, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        files = _wanted_files(repository, {file.rfilename for file in info.siblings or []}, adapter)
        return Path(hub.snapshot_download(repository, revision=revision, allow_patterns=files))
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        answered = isinstance(error, errors.HfHubHTTPError) and error.response.status_code < 500
        if isinstance(error, HTTPError) and not answered and (snapshot := _cached(repository, revision, adapter)):
            _log.warning("%s: the Hub is not reachable, using commit %s from the cache", repository, snapshot.name)
            return snapshot
        raise _explain(error, repository, revision) from error


def _wanted_files(repository: str, files: set[str], adapter: bool) -> list[str]:
    """Selects the files of a checkpoint or an adapter. Raises `CheckpointError` if some are missing."""
    # some repositories have the same weights several times
    weights = next((name for name in _ALL_WEIGHTS if name in files), None)
    of_adapter = next((name for name in _ADAPTER_WEIGHTS if name in files), None)
    if _ADAPTER in files and of_adapter and (adapter or not weights):
        return [_ADAPTER, of_adapter, *(name for name in _SMALL_FILES if name != "config.json")]
    if adapter:
        lost = _ADAPTER if _ADAPTER not in files else _ADAPTER_WEIGHTS[0]
        raise CheckpointError(f"{repository} on the Hub has no {lost}", "Name an adapter that PEFT has saved.")
    if weights and "config.json" in files:
        ending = weights.removesuffix(".index.json").rpartition(".")[2]
        shards = [name for name in files if name.endswith(f".{ending}") and "/" not in name]
        return [*_SMALL_FILES, weights, *(shards if weights.endswith(".json") else [])]
    missing = _ALL_WEIGHTS[0] if "config.json" in files else "config.json"
    other = [name for name in sorted(files) if name.endswith((".bin", ".h5", ".msgpack", ".gguf", ".safetensors"))]
    what = f"{repository} has no {missing}" + (f", only {other[0]}" if other else "")
    raise CheckpointError(what, "Name the original model, or a folder written by `save_pretrained()`.")


def _explain(error: Exception, repository: str, revision: str) -> DgptQuantError:
    """Converts an error of huggingface_hub to one that states cause and next step."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # huggingface_hub reports most Hub failures as "not in the cache"
    page = f"{constants.ENDPOINT}/{repository}"
    what, hint = f"{type(error).__name__}: {error}".splitlines()[0], f"Try again later. {_WORKS_OFFLINE}"
    if isinstance(error, errors.HFValidationError):
        what, hint = f"{repository!r} is neither a folder nor a Hub name", _KINDS
    elif isinstance(error, errors.GatedRepoError):  # a subclass of RepositoryNotFoundError
        what, hint = f"{repository} is gated", f"Accept its terms at {page} and set HF_TOKEN to your token."
    elif isinstance(error, errors.RevisionNotFoundError):
        what, hint = f"{repository} has no revision {revision!r}", f"See {page}/commits."
    elif isinstance(error, errors.HfHubHTTPError):
        status, reason = error.response.status_code, error.server_message or error.response.reason_phrase
        what = f"the Hub answers {status} for {repository}: {reason}"
        if "Invalid credentials" in reason:
            hint = "Renew the token in HF_TOKEN, or unset it: public models need none."
        elif status in (401, 404) and not isinstance(error, errors.EntryNotFoundError):
            what = f"the Hub has no model {repository}, or you have no access (status {status})"
            close = get_close_matches(repository.split("/")[-1], SHORT_NAMES, 1) or ["owner/name"]
            hint = f"Did you mean {close[0]}? A private model needs HF_TOKEN."
    elif isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        what = f"cannot write to the Hub cache {constants.HF_HUB_CACHE}: {error.strerror}"
        return OutputError(what, "Free some space, or set HF_HOME to a writable folder.")
    elif isinstance(error, RuntimeError):  # raised by hf_xet, the Hub's transfer protocol
        what = f"the download of {repository} was interrupted: {what}"
        hint = f"Try again, or use plain HTTP with HF_HUB_DISABLE_XET=1. {_WORKS_OFFLINE}"
    else:
        what = f"cannot download {repository}: {what}"
        hint = f"Check the network, the proxy variables and HF_ENDPOINT. {_WORKS_OFFLINE}"
    return ModelNotFoundError(what, hint)
