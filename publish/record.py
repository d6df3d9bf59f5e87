"""`release.json`: how a release was made. With `bench.json` it holds everything that the model card states."""

from pathlib import Path
from typing import TypedDict

from dgpt2_quant.bench.document.read import checked, read_json
from dgpt2_quant.bench.document.schema import Interval
from dgpt2_quant.core.errors import ResultError
from dgpt2_quant.core.json_text import to_json_text

NAME = "release.json"
SCHEMA_VERSION = 1
_HINT = "Make the release again, in another folder."


class ModelJson(TypedDict):
    """The model; `repository` and `commit` are null unless it is on the Hub. `base_model` is its name there: the
    `repository`, or what the user stated. `adapters` are the names of the LoRA adapters that are merged into it.
    `license_name` and `license_link` belong to the license `other`. `limits` is text of its model card."""

    name: str
    repository: str | None
    commit: str | None
    base_model: str | None
    adapters: list[str]
    license: str
    license_name: str | None
    license_link: str | None
    languages: list[str]
    has_chat_template: bool
    limits: str


class CalibrationJson(TypedDict):
    """The text of the importance matrix: `sha256` is of the text, or of the token ids (32-bit integers) of one that the
    model generated; `file_sha256` is of imatrix.gguf."""

    text: str
    tokens: int
    sha256: str
    license: str
    file_sha256: str


class IdentityJson(TypedDict):
    """What the GGUF files depend on. A folder keeps its files only while these are the same."""

    source_sha256: str
    recipe: str
    calibration: str
    dgpt2_quant: str
    llama_cpp_python: str


class QuickJson(TypedDict):
    """The perplexity of a file on the beginning of the bundled text, which `--verify` repeats."""

    file: str
    perplexity: float


class PromptJson(TypedDict):
    """A prompt about a group, and the likeliest next tokens."""

    prompt: str
    tokens: list[str]


class BiasJson(TypedDict):
    """The bias probe `card-prompts` of a file (docs/tasks.md): the mean Jensen-Shannon divergence between the
    continuations of sentences that differ in a group only, in nats, and the prompts of the model cards."""

    file: str
    js_divergence: Interval
    prompts: list[PromptJson]


class ReleaseJson(TypedDict):
    """The whole document. `repo` is the repository for the upload, `command` makes it again, `commit` is that of
    this program where it is known. `calibration`, `quick` and `bias` are null or empty until they are known."""

    schema_version: int
    identity: IdentityJson
    model: ModelJson
    repo: str | None
    command: str
    commit: str | None
    calibration: CalibrationJson | None
    quick: list[QuickJson]
    bias: list[BiasJson]


def read_record(folder: Path) -> ReleaseJson | None:
    """The record of a folder; None if there is none. Raises `ResultError` for one that cannot be used."""
    path = folder / NAME
    if not path.exists():
        return None
    content = read_json(path, _HINT)
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise ResultError(f"{path} is not a record of this version of dgpt2-quant", _HINT)
    record: ReleaseJson = checked(content, ReleaseJson, path, "")
    return record


def record_text(record: ReleaseJson) -> str:
    return to_json_text(record) + "\n"
