"""The metadata of the files we write: what llama.cpp needs, and what a person or the Hub wants to know.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; ours are under `dgpt2_quant.`.
"""

from collections.abc import Iterable
from typing import Any

from .gguf_file import EncodedValue, encode_value
from .hyperparameters import Hyperparameters
from .importance import ImportanceMatrix
from .quant_types import QuantType
from .resolve import Source
from .tokenizer import Tokenizer

_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION in ggml.h: of the block formats
_LEVEL_KEYS = {f"general.{name}" for name in ("quantized_by", "file_type", "quantization_version")}
_LEVEL_KEYS |= {f"dgpt2_quant.{name}" for name in ("version", "type", "recipe", "tensor_types", "requantized_from")}


def model_metadata(
    source: Source, source_sha256: str, license: str | None, sizes: Hyperparameters, parameters: int
) -> dict[str, Any]:
    """What is the same for every level of a model."""
    metadata: dict[str, Any] = {
        "general.architecture": "gpt2",
        "general.type": "model",
        "general.name": source.name,
        "general.basename": source.name,
        "general.size_label": size_label(parameters),
    }
    if license:
        metadata["general.license"] = license
    if source.repository:
        organization, _, name = source.repository.rpartition("/")
        metadata |= {
            "general.base_model.count": 1,
            "general.base_model.0.name": name,
            "general.base_model.0.organization": organization,
            "general.base_model.0.repo_url": f"https://huggingface.co/{source.repository}",
        }
    metadata |= {"dgpt2_quant.source.sha256": source_sha256}
    if source.commit:
        metadata["dgpt2_quant.source.commit"] = source.commit
    return metadata | sizes.to_metadata()


def level_metadata(
    quant_type: QuantType, recipe: str, overrides: Iterable[str] = (), importance: ImportanceMatrix | None = None
) -> dict[str, Any]:
    """What tells one level's file from another's."""
    metadata: dict[str, Any] = {
        "general.quantized_by": "dgpt2-quant",
        "general.file_type": quant_type.file_type,
        "general.quantization_version": _QUANTIZATION_VERSION,
        "dgpt2_quant.version": tool_version(),
        "dgpt2_quant.type": quant_type.name,
        "dgpt2_quant.recipe": recipe,
    }
    if by_hand := list(overrides):
        metadata["dgpt2_quant.tensor_types"] = by_hand
    if importance:
        metadata |= {
            "dgpt2_quant.imatrix.sha256": importance.sha256,
            # llama-quantize's own; not the path, which is not the same on another machine
            "quantize.imatrix.dataset": ", ".join(importance.datasets),
            "quantize.imatrix.entries_count": len(importance.entries),
            "quantize.imatrix.chunks_count": importance.chunk_count,
        }
    return metadata


def is_of_level(key: str) -> bool:
    """Whether a key of a file is about its level, and says nothing of one that is made from it."""
    return key in _LEVEL_KEYS or key.startswith(("dgpt2_quant.imatrix.", "quantize.imatrix."))


def tokenizer_metadata(tokenizer: Tokenizer) -> dict[str, EncodedValue]:
    """The token tables, encoded once for all levels: 100,000 strings in a GPT-2."""
    values = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokenizer.tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in tokenizer.types],
        "tokenizer.ggml.merges": tokenizer.merges,
        "tokenizer.ggml.bos_token_id": tokenizer.bos,
        "tokenizer.ggml.eos_token_id": tokenizer.eos,
        "tokenizer.ggml.add_bos_token": False,
    }
    return {key: encode_value(value) for key, value in values.items()}


def tool_version() -> str:
    """The installed version of this project."""
    from importlib.metadata import version  # late: it takes as long to import as half of the rest

    return version("dgpt2-quant")


def size_label(parameters: int) -> str:
    """The parameter count as model names have it: 82M, 1.6B."""
    if parameters >= 10**9:
        return f"{parameters / 10**9:.1f}B"
    if parameters >= 10**6:
        return f"{parameters / 10**6:.0f}M"
    return f"{max(1, round(parameters / 10**3))}K"
