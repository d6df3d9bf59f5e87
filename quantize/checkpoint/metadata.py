"""Builds the metadata of GGUF files: the keys that llama.cpp needs, and those for people and the Hub.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; this project's own begin with `dgpt2_quant.`.
"""

import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from dgpt2_quant.core.gguf_file import EncodedValue, decode_value, encode_value
from dgpt2_quant.core.hyperparameters import Hyperparameters
from dgpt2_quant.core.quant_types import QuantType
from dgpt2_quant.core.versions import tool_version

from .resolve import Source
from .tokenizer import Tokenizer, TokenType, pad_texts

_QUANTIZATION_VERSION = 2  # GGML_QNT_VERSION in ggml.h: of the block formats
# the roles of tokens other than bos and eos, by llama.cpp's names (it spells seperator so)
ROLE_KEYS = {
    "eot": "eot",
    "eom": "eom",
    "unk": "unknown",
    "sep": "seperator",
    "pad": "padding",
    "mask": "mask",
}
_CHAT_TEMPLATE = "tokenizer.chat_template"
_SCORES, _VOCABULARY = "tokenizer.ggml.scores", "gpt2.vocab_size"
_QUANT_TYPE_KEYS = {f"general.{name}" for name in ("quantized_by", "file_type", "quantization_version")}
_QUANT_TYPE_PREFIXES = ("dgpt2_quant.imatrix.", "dgpt2_quant.lean.", "dgpt2_quant.padding", "quantize.imatrix.")
_QUANT_TYPE_KEYS |= {
    f"dgpt2_quant.{name}" for name in ("version", "type", "recipe", "tensor_types", "requantized_from")
}


def model_metadata(
    source: Source, source_sha256: str, license: str | None, sizes: Hyperparameters, parameters: int
) -> dict[str, Any]:
    """The metadata that all quant types of a model share."""
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


def quant_type_metadata(
    quant_type: QuantType,
    recipe: str,
    overrides: Iterable[str] = (),
    without: Iterable[str] = (),
    importance: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """The metadata of one quant type; `importance` is `ImportanceMatrix.metadata()`."""
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
    if left_out := list(without):
        metadata["dgpt2_quant.lean.without"] = left_out
    return metadata | dict(importance)


def is_quant_type_key(key: str) -> bool:
    """Whether a key belongs to the quant type, and so does not apply to files converted from this one."""
    return key in _QUANT_TYPE_KEYS or key.startswith(_QUANT_TYPE_PREFIXES)


def tokenizer_metadata(tokenizer: Tokenizer) -> dict[str, EncodedValue]:
    """The token tables, encoded once for all quant types: 100,000 strings in a GPT-2."""
    values: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokenizer.tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in tokenizer.types],
        "tokenizer.ggml.merges": tokenizer.merges,
        "tokenizer.ggml.bos_token_id": tokenizer.bos,
        "tokenizer.ggml.eos_token_id": tokenizer.eos,
        "tokenizer.ggml.add_bos_token": tokenizer.add_bos,
    }
    if tokenizer.add_eos:
        values["tokenizer.ggml.add_eos_token"] = True
    for role, name in ROLE_KEYS.items():
        if role in tokenizer.others:
            values[f"tokenizer.ggml.{name}_token_id"] = tokenizer.others[role]
    # as gguf.GGUFWriter.add_chat_template writes them
    named = {re.sub(r"[^a-zA-Z0-9]", "_", name): text for name, text in tokenizer.chat_templates.items() if name}
    if (default := named.pop("default", None)) is not None:
        values[_CHAT_TEMPLATE] = default
    if named:
        values |= {f"{_CHAT_TEMPLATE}.{name}": text for name, text in named.items()}
        values["tokenizer.chat_templates"] = list(named)
    return {key: encode_value(value) for key, value in values.items()}


def chat_templates(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates of a file by name, the default one first."""
    found = {"default": metadata.get(_CHAT_TEMPLATE)}
    prefix = f"{_CHAT_TEMPLATE}."
    found |= {key.removeprefix(prefix): text for key, text in metadata.items() if key.startswith(prefix)}
    return {name: text for name, text in found.items() if isinstance(text, str)}


def with_pad_tokens(metadata: Mapping[str, Any], count: int) -> dict[str, Any]:
    """Adds `count` unused tokens at the end of the token tables; merges and all other keys are unchanged.

    `metadata` may be encoded or not. A file without token types gets them.
    """
    tokens = _decoded(metadata["tokenizer.ggml.tokens"])
    types = _decoded(metadata.get("tokenizer.ggml.token_type", [int(TokenType.NORMAL)] * len(tokens)))
    found = {
        **metadata,
        "tokenizer.ggml.tokens": encode_value([*tokens, *pad_texts(tokens, count)]),
        "tokenizer.ggml.token_type": encode_value([*types, *[int(TokenType.UNUSED)] * count]),
    }
    if _SCORES in found:  # a BPE does not use them, but llama.cpp needs one per token
        found[_SCORES] = encode_value([*map(float, _decoded(found[_SCORES])), *[0.0] * count])
    if _VOCABULARY in found:
        found[_VOCABULARY] = encode_value(len(tokens) + count)
    return found


def _decoded(value: Any) -> Any:
    return decode_value(value) if isinstance(value, EncodedValue) else value


def size_label(parameters: int) -> str:
    """The parameter count as in model names: 82M, 1.6B."""
    if parameters >= 10**9:
        return f"{parameters / 10**9:.1f}B"
    if parameters >= 10**6:
        return f"{parameters / 10**6:.0f}M"
    return f"{max(1, round(parameters / 10**3))}K"
