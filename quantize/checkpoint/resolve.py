"""Resolves a MODEL argument to a checkpoint folder: a Hub name (downloaded), a folder, or the bundled `storybook`.

Only Hub names need the network. huggingface_hub handles retries, locks, tokens and mirrors; this module downloads only
the files that a conversion reads, avoids the network when the cache suffices, and explains errors. huggingface_hub
takes half a second to import, so it is imported only before a download.
"""

import importlib.util
import json
import logging
import re
from dataclasses import dataclass
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

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SMALL_FILES = ["README.md", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
_SMALL_FILES += ["vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json"]
_log = logging.getLogger(__name__)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_KINDS = f"`model` is a Hub name (distilgpt2, owner/name), a folder (./my-model), or the bundled {BUNDLED}."
_WORKS_OFFLINE = f"The bundled checkpoint works offline: {BUNDLED}."


@dataclass(frozen=True)
class Source:
    """The origin of a checkpoint, and the folder that contains it."""

    name: str  # for messages and file names: "distilgpt2", "storybook", or the folder's name
    folder: Path  # contains config.json, weights and tokenizer
    repository: str | None  # "distilbert/distilgpt2"; None for a folder
    commit: str | None  # the commit, 40 hexadecimal digits; None for a folder


def resolve(model: str, *, revision: str | None = None, offline: bool = False, prefer_cache: bool = False) -> Source:
    """Finds the checkpoint of `model`, and downloads it from the Hub if necessary.

    `revision` is a branch, tag or commit on the Hub (default: main). `offline`, like HF_HUB_OFFLINE=1, disables the
    network. `prefer_cache` uses a cached revision without asking for a newer commit. Raises `ModelNotFoundError`,
    `CheckpointError`, `UsageError` or `OutputError`.
    """
    path = _local_folder(model)
    if path and (other := _also_means(model)):
        if revision is not None and model != BUNDLED:  # a folder has none
            _log.warning("%s is a folder here, but `revision` is given: using %s", model, other)
            path = None
        else:
            _log.warning("%s is a folder here: using it, not %s", model, other)
    if path or model == BUNDLED:
        if revision is not None:
            raise UsageError(f"`revision` needs a Hub name; {model} is a folder", "Leave out `revision`.")
        if path is None:
            return Source(BUNDLED, _bundled_folder(), None, None)
        from .model_name import folder_name  # not needed for the bundled checkpoint

        # the name as written, not the target of a symbolic link
        written = path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name
        return Source(folder_name(written), path.resolve(), None, None)
    if revision == "":  # for example from `--revision "$REV"`
        raise UsageError("`revision` is empty", "Give a branch, tag or commit, or leave out `revision`.")

    from huggingface_hub import constants  # cheap, unlike the rest of the library

    repository, wanted = SHORT_NAMES.get(model, model), revision or constants.DEFAULT_REVISION
    offline = offline or constants.is_offline_mode()
    cache_will_do = offline or prefer_cache or _COMMIT.fullmatch(wanted)  # a commit never changes
    snapshot = _cached(repository, wanted) if cache_will_do else None
    if snapshot is None and offline:
        raise ModelNotFoundError(
            f"offline, and {repository} (revision {wanted}) is not completely in the Hub cache",
            f"{_WORKS_OFFLINE} Or run once without `offline`, `dry_run` and HF_HUB_OFFLINE.",
        )
    snapshot = snapshot or _download(repository, wanted)
    return Source(repository.split("/")[-1], snapshot, repository, snapshot.name)


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


def _local_folder(model: str) -> Path | None:
    """The checkpoint folder of that path; None if `model` is another kind of name."""
    if is_gguf_name(model):
        raise UsageError(f"{model} is a GGUF file, not a checkpoint", f"{_KINDS} Or: `dgpt2-quant inspect {model}`.")
    if not model:
        return None
    if model == "-":
        raise UsageError("a model cannot be read from stdin (`-`)", _KINDS)
    try:
        path = Path(model).expanduser()
        if (path / "config.json").is_file():
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
        raise CheckpointError(f"{model} is a file, not a folder", f"Try its folder: {path.parent}/")
    spelled_as_path = model.startswith((".", "/", "~")) or model.endswith("/")
    if is_folder and (spelled_as_path or "/" not in model):
        raise CheckpointError(f"{model} has no config.json", "Name the folder that save_pretrained() wrote.")
    if spelled_as_path or model.count("/") > 1:
        raise ModelNotFoundError(f"the folder {model} does not exist", _KINDS)
    return None


def _cached(repository: str, revision: str) -> Path | None:
    """The revision's folder in the Hub cache, if complete: an interrupted download leaves a part.

    Layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    from huggingface_hub import constants

    storage = Path(constants.HF_HUB_CACHE).resolve() / f"models--{repository.replace('/', '--')}"
    try:
        commit = revision if _COMMIT.fullmatch(revision) else (storage / "refs" / revision).read_text()
        snapshot = storage / "snapshots" / commit
        needed = ["config.json", _WEIGHTS, "tokenizer.json"]
        if not (snapshot / "tokenizer.json").is_file():
            needed[2:] = ["vocab.json", "merges.txt"]
        if not (snapshot / _WEIGHTS).is_file():
            needed[1:2] = json.loads((snapshot / _INDEX).read_bytes())["weight_map"].values()
        complete = all((snapshot / name).is_file() for name in needed)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # not cached, or a broken index
        return None
    return snapshot if complete and _COMMIT.fullmatch(commit) else None


def _download(repository: str, revision: str) -> Path:
    """Downloads the revision into the Hub cache, and returns its folder."""
    from importlib.metadata import version

    from httpx2 import HTTPError  # the HTTP client of huggingface_hub
    from huggingface_hub import HfApi, constants, errors

    hub = HfApi(library_name="dgpt2-quant", library_version=version("dgpt2-quant"))
    try:
        # snapshot_download asks again, but without a timeout: it would wait for ever for a silent server
        info = hub.model_info(repository, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        files = _wanted_files(repository, {file.rfilename for file in info.siblings or []})
        return Path(hub.snapshot_download(repository, revision=revision, allow_patterns=files))
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        answered = isinstance(error, errors.HfHubHTTPError) and error.response.status_code < 500
        if isinstance(error, HTTPError) and not answered and (snapshot := _cached(repository, revision)):
            _log.warning("%s: the Hub is not reachable, using commit %s from the cache", repository, snapshot.name)
            return snapshot
        raise _explain(error, repository, revision) from error


def _wanted_files(repository: str, files: set[str]) -> list[str]:
    """Selects the files of a checkpoint. Raises `CheckpointError` if some are missing."""
    weights = [_WEIGHTS]  # some repositories also have the same weights in shards
    if _WEIGHTS not in files:
        weights = [_INDEX, *(name for name in files if name.endswith(".safetensors") and "/" not in name)]
    if {"config.json", weights[0]} <= files:
        return _SMALL_FILES + weights
    missing = _WEIGHTS if "config.json" in files else "config.json"
    other = [name for name in sorted(files) if name.endswith((".bin", ".h5", ".gguf", ".safetensors"))]
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
