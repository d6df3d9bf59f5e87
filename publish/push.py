"""Uploads a release to the Hub, with huggingface_hub."""

import glob
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from dgpt2_quant.core.errors import DgptQuantError, RuntimeFailure, UsageError
from dgpt2_quant.core.versions import tool_version

_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def check_repo(repo: str, what: str = "repo") -> None:
    """Raises `UsageError` unless it is a name on the Hub (owner/name)."""
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo or repo.endswith((".git", ".", "-")):
        raise UsageError(
            f"`{what}` must be a name on the Hub, owner/name, not {repo[:100]!r}", "For example me/my-GGUF."
        )


def upload_command(folder: Path, repo: str) -> str:
    """The `hf` command that uploads the folder."""
    return shlex.join(["hf", "upload", repo, str(folder), "."])


def push(folder: Path, files: Sequence[str], repo: str, *, private: bool = False) -> str:
    """Creates the repository if necessary, uploads these files as one commit, and returns its address.

    Raises `RuntimeFailure` if the Hub refuses or cannot be reached.
    """
    from httpx2 import HTTPError  # the HTTP client of huggingface_hub
    from huggingface_hub import HfApi, constants

    check_repo(repo)
    hub = HfApi(library_name="dgpt2-quant", library_version=tool_version())
    try:
        hub.create_repo(repo, private=private, exist_ok=True)
        found = hub.upload_folder(
            repo_id=repo,
            folder_path=folder,
            allow_patterns=[glob.escape(name) for name in files],
            commit_message=f"GGUF files by dgpt2-quant {tool_version()}",
        )
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise _explained(error, repo, constants.ENDPOINT) from error
    return str(found.commit_url)


def _explained(error: Exception, repo: str, endpoint: str) -> DgptQuantError:
    from huggingface_hub import errors

    hint = f"The folder is complete. Try again, or run `hf upload {repo} FOLDER .`."
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        what = f"the Hub answers {status}: {error.server_message or error.response.reason_phrase}"
        if status in (401, 403):
            hint = f"Log in with a token that may write to {repo}: `hf auth login`, or HF_TOKEN."
    return RuntimeFailure(f"cannot upload to {endpoint}/{repo}: {what}", hint)
