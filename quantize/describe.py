"""`inspect`: the contents of a GGUF file, for people and scripts."""

from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dgpt2_quant.core.gguf_file import read_header, require_file
from dgpt2_quant.core.head import head_of

from .checkpoint.metadata import ROLE_KEYS, chat_templates


@dataclass(frozen=True)
class DescribedTensor:
    """`shape` is (rows, columns) as in NumPy; `bytes` without padding."""

    name: str
    type: str
    shape: list[int]
    bytes: int


@dataclass(frozen=True)
class DescribedToken:
    """A special token; `text` is None where the file has no such token."""

    id: int
    text: str | None


@dataclass(frozen=True)
class DescribedAdapter:
    """A LoRA adapter that was merged."""

    name: str
    weight: float


@dataclass(frozen=True)
class DescribedHead:
    """A classification head: what it labels (`text`, `token`, `choice`), its labels by id, and Transformers' name for
    how scores follow from logits. The kind is `not sound` for one that is refused, and `problem_type` is the reason."""

    kind: str
    labels: list[str]
    problem_type: str


@dataclass(frozen=True)
class Description:
    """One `inspect --json`. `type`, `recipe`, `context` and `vocabulary` are None where the file does not say.

    `special_tokens` maps roles (`bos`, `eos`, `eot`, ...) to tokens, `added_tokens` has the roles of those that every
    text gets, `chat_templates` their names, and `adapters` those that were merged. `head` is None for a model without a
    classification head.
    """

    path: str
    bytes: int
    architecture: str | None
    parameters: int
    bits_per_weight: float
    type: str | None
    recipe: str | None
    context: int | None
    vocabulary: int | None
    special_tokens: dict[str, DescribedToken]
    added_tokens: list[str]
    chat_templates: list[str]
    adapters: list[DescribedAdapter]
    head: DescribedHead | None
    metadata: dict[str, Any]
    tensors: list[DescribedTensor]

    def counts(self) -> dict[str, int]:
        """The number of tensors of each tensor type, largest first."""
        return dict(Counter(tensor.type for tensor in self.tensors).most_common())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def describe(path: str | Path) -> Description:
    """Reads a file's header. Raises `ModelNotFoundError` or `GGUFError`."""
    path = require_file(Path(path))
    header = read_header(path)
    metadata = header.metadata
    architecture = metadata.get("general.architecture")
    tokens = metadata.get("tokenizer.ggml.tokens")
    tokens = tokens if isinstance(tokens, list) else None
    return Description(
        path=str(path),
        bytes=header.file_bytes,
        architecture=architecture,
        parameters=header.parameters,
        bits_per_weight=round(header.bits_per_weight, 3) if header.parameters else 0.0,
        type=header.quant_type,
        recipe=metadata.get("dgpt2_quant.recipe"),
        context=metadata.get(f"{architecture}.context_length"),
        vocabulary=None if tokens is None else len(tokens),
        special_tokens=_special_tokens(metadata, tokens or []),
        added_tokens=[role for role in ("bos", "eos") if metadata.get(f"tokenizer.ggml.add_{role}_token") is True],
        chat_templates=[*chat_templates(metadata)],
        adapters=_adapters(metadata.get("dgpt2_quant.adapters")),
        head=_head(metadata),
        metadata=metadata,
        tensors=[DescribedTensor(t.name, t.type.name, list(t.shape), t.nbytes) for t in header.tensors.values()],
    )


def _adapters(labels: Any) -> list[DescribedAdapter]:
    """From `Adapter.label`: NAME=WEIGHT, and the hashes of its files."""
    found = []
    for label in labels if isinstance(labels, list) else []:
        name, _, weight = str(label).partition(" sha256:")[0].rpartition("=")
        with suppress(ValueError):
            found.append(DescribedAdapter(name, float(weight)))
    return found


def _head(metadata: dict[str, Any]) -> DescribedHead | None:
    try:
        head = head_of(metadata, metadata.get("gpt2.embedding_length", 0))
    except ValueError as error:  # such a file is described too, and refused when it is loaded
        return DescribedHead("not sound", [], str(error))
    return DescribedHead(head.kind, list(head.labels), head.problem_type) if head else None


def _special_tokens(metadata: dict[str, Any], tokens: list[str]) -> dict[str, DescribedToken]:
    found = {}
    for role, name in {"bos": "bos", "eos": "eos", **ROLE_KEYS}.items():
        number = metadata.get(f"tokenizer.ggml.{name}_token_id")
        if isinstance(number, int):
            found[role] = DescribedToken(number, tokens[number] if 0 <= number < len(tokens) else None)
    return found
