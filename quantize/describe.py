"""`inspect`: the contents of a GGUF file, for people and scripts."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dgpt2_quant.core.gguf_file import read_header, require_file


@dataclass(frozen=True)
class DescribedTensor:
    """`shape` is (rows, columns) as in NumPy; `bytes` without padding."""

    name: str
    type: str
    shape: list[int]
    bytes: int


@dataclass(frozen=True)
class Description:
    """One `inspect --json`. `type`, `recipe`, `context` and `vocabulary` are None where the file does not say."""

    path: str
    bytes: int
    architecture: str | None
    parameters: int
    bits_per_weight: float
    type: str | None
    recipe: str | None
    context: int | None
    vocabulary: int | None
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
    return Description(
        path=str(path),
        bytes=header.file_bytes,
        architecture=architecture,
        parameters=header.parameters,
        bits_per_weight=round(header.bits_per_weight, 3) if header.parameters else 0.0,
        type=header.quant_type,
        recipe=metadata.get("dgpt2_quant.recipe"),
        context=metadata.get(f"{architecture}.context_length"),
        vocabulary=len(tokens) if isinstance(tokens, list) else None,
        metadata=metadata,
        tensors=[DescribedTensor(t.name, t.type.name, list(t.shape), t.nbytes) for t in header.tensors.values()],
    )
