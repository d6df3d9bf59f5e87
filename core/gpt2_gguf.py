"""Checks a GGUF file of a GPT-2: keys, vocabulary and tensors must be consistent.

llama.cpp checks few of these, and a malformed file can abort the process.
"""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import GGUFError
from .gguf_file import EncodedValue, GGUFHeader, ValueType
from .hyperparameters import KEYS, LARGEST, Hyperparameters

# The allowed `gpt2.*` keys: those that `convert` writes, and two that were tested. llama.cpp reads many more
# (expert_count, rope.scaling.type ...) for every architecture, and aborts on inconsistent values.
_KV_HEADS = "gpt2.attention.head_count_kv"
_KNOWN = {*KEYS, _KV_HEADS, "gpt2.vocab_size"}
# other keys that llama.cpp reads of a GPT-2, with the only type that it accepts
_TYPES = {
    **dict.fromkeys(KEYS, ValueType.UINT32),
    "gpt2.attention.layer_norm_epsilon": ValueType.FLOAT32,
    _KV_HEADS: ValueType.UINT32,
    "gpt2.vocab_size": ValueType.UINT32,
    "general.name": ValueType.STRING,
    "general.file_type": ValueType.UINT32,
    "split.count": ValueType.UINT16,
    "tokenizer.ggml.pre": ValueType.STRING,
    "tokenizer.ggml.token_type_count": ValueType.UINT32,
    **{
        f"tokenizer.ggml.{name}": ValueType.BOOL
        for name in (
            "add_bos_token",
            "add_eos_token",
            "add_sep_token",
            "add_space_prefix",
            "remove_extra_whitespaces",
            "normalizer.lowercase",
            "normalizer.strip_accents",
        )
    },
}
# normal, unknown, control, user-defined, unused (`enum llama_token_type`); GPT-2 has no byte tokens
_TOKEN_TYPES = set(range(1, 6))
# The pre-tokenizer names for which llama.cpp splits text as GPT-2 does. Other names select other patterns, most of
# them with std::regex, whose recursion aborts the process on a text of about 100,000 bytes.
SPLIT_AS_GPT2 = {
    *("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "roberta-bpe", "gigachat", "a.x-4.0", "mellum"),
    *("modern-bert", "granite-docling", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de"),
}
# what old converters wrote for GPT-2, and llama.cpp splits in another way or refuses
MEANS_GPT2 = ("", "default", "gpt2")
_LONGEST_TOKEN = 4096  # characters; GPT-2's longest has 128
# (item type, required)
_TABLES = {
    "tokens": (ValueType.STRING, True),
    "merges": (ValueType.STRING, True),
    "token_type": (ValueType.INT32, False),
    "scores": (ValueType.FLOAT32, False),
    "suppress_tokens": (ValueType.INT32, False),
}


def check_gpt2(header: GGUFHeader) -> None:
    """Checks that keys, token tables and tensors are consistent; `check_tokens` checks the tokens' texts.

    Raises `GGUFError` that states what is wrong.
    """
    path, metadata = header.path, header.metadata
    if (architecture := metadata.get("general.architecture")) != "gpt2":
        raise _refused(path, f"its architecture is {architecture!r}, not 'gpt2'")
    if (kind := metadata.get("general.type", "model")) != "model":
        raise _refused(path, f"it is a {kind!r}, not a model")
    for key, field in KEYS.items():
        if field in LARGEST:
            _check_size(path, key, metadata.get(key), LARGEST[field])
    for key in metadata:
        if key.startswith("gpt2.") and key not in _KNOWN:
            raise _refused(path, f"it has the key {key!r}, which GPT-2 lacks")
    epsilon = metadata.get("gpt2.attention.layer_norm_epsilon")
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        raise _refused(path, f"its gpt2.attention.layer_norm_epsilon is {epsilon!r}")
    width, heads = metadata["gpt2.embedding_length"], metadata["gpt2.attention.head_count"]
    if width % heads:
        raise _refused(path, f"its width {width} is not a multiple of its {heads} heads")
    if width == heads:  # llama.cpp confuses rows of one number with columns, and aborts
        raise _refused(path, f"its {heads} heads are 1 wide; llama.cpp needs at least 2")
    if (shared := metadata.get(_KV_HEADS, heads)) != heads:
        raise _refused(path, f"its {_KV_HEADS} is {shared!r}, not {heads} as its attention.head_count")
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        raise _refused(path, f"its tokenizer is {metadata.get('tokenizer.ggml.model')!r}, not 'gpt2'")
    if (parts := metadata.get("split.count", 1)) not in (0, 1):  # llama.cpp would open files that are not checked
        raise _refused(path, f"it is one of {parts!r} parts", "Merge them with `llama-gguf-split --merge`.")
    _check_types(header)
    _check_tables(header)
    _check_tensors(header)


def check_tokens(header: GGUFHeader) -> None:
    """Checks the tokens one by one; the header must have been read with its arrays. Raises `GGUFError`."""
    tokens = header.metadata["tokenizer.ggml.tokens"]
    types = header.metadata.get("tokenizer.ggml.token_type", [])
    if odd := set(types) - _TOKEN_TYPES:
        raise _refused(header.path, f"its tokenizer.ggml.token_type has {min(odd)}, not 1 to {max(_TOKEN_TYPES)}")
    if why := wrong_texts(tokens):
        raise _refused(header.path, why)


def check_begin_and_end(header: GGUFHeader) -> None:
    """Checks the ids of the tokens that begin and end a text. Raises `GGUFError`.

    llama.cpp replaces a missing or too large id by token 11, a comma. Not every file has a `bos_token_id`.
    """
    metadata = header.metadata
    tokens, eos = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.eos_token_id")
    count = tokens if isinstance(tokens, int) else len(tokens)
    for key, number in ("eos_token_id", eos), ("bos_token_id", metadata.get("tokenizer.ggml.bos_token_id", eos)):
        if number is None or number >= count:
            again = "Create it again from its checkpoint with `dgpt2-quant convert`."
            raise _refused(header.path, f"its tokenizer.ggml.{key} is {number}, not 0 to {count - 1}", again)


def wrong_texts(tokens: Sequence[str]) -> str | None:
    """The reason why llama.cpp would abort on these tokens; None if it would not."""
    longest = max(tokens, key=len)
    if len(longest) > _LONGEST_TOKEN:  # llama.cpp's grammars recurse over the characters of a token
        return f"its token {longest[:20]!r}... has {len(longest)} characters; at most {_LONGEST_TOKEN} are possible"
    # llama.cpp reads up to a NUL byte, and names empty tokens itself
    different = {text.partition("\0")[0] or f"[EMPTY_{index}]" for index, text in enumerate(tokens)}
    if len(different) < len(tokens):
        doubled = len(tokens) - len(different)
        return f"{doubled} of its {len(tokens)} tokens have the text of another token (up to a NUL byte)"
    return None


def _check_types(header: GGUFHeader) -> None:
    """Checks the types of single values: llama.cpp ignores a value of another type, with a line in its log only."""
    for key, encoded in header.encoded.items():
        is_token_id = key.startswith("tokenizer.ggml.") and key.endswith("_token_id")
        wanted = ValueType.UINT32 if is_token_id else _TYPES.get(key)
        if wanted is not None and not encoded.startswith(struct.pack("<I", wanted)):
            (found,) = struct.unpack_from("<I", encoded)
            raise _refused(header.path, f"its {key} has the type {ValueType(found).name}, not {wanted.name}")


def _check_tables(header: GGUFHeader) -> None:
    """Checks the token tables, which llama.cpp trusts: it would read beyond their end or abort."""
    count = 0
    for name, (item_type, needed) in _TABLES.items():
        key = f"tokenizer.ggml.{name}"
        if key not in header.encoded and not needed:
            continue
        kind = struct.pack("<II", ValueType.ARRAY, item_type)
        if not header.encoded.get(key, EncodedValue()).startswith(kind):
            raise _refused(header.path, f"its {key} is not a list of {item_type.name}")
        (length,) = struct.unpack_from("<Q", header.encoded[key], len(kind))
        if name == "tokens":
            count = length
            _check_size(header.path, "number of tokens", count, LARGEST["vocabulary"])
        elif name == "merges" and length > LARGEST["vocabulary"]:
            raise _refused(header.path, f"it has {length} merges; at most {LARGEST['vocabulary']} are possible")
        elif name in ("token_type", "scores") and length != count:
            raise _refused(header.path, f"its {key} has {length} entries for {count} tokens")


def _check_tensors(header: GGUFHeader) -> None:
    tied = "output.weight" not in header.tensors
    expected = Hyperparameters.from_metadata(header.metadata).shapes(tied=tied)
    for name, shape in expected.items():
        tensor = header.tensors.get(name)
        if tensor is None:
            raise _refused(header.path, f"it lacks the tensor {name!r}")
        if tensor.shape != shape:
            raise _refused(header.path, f"tensor {name!r} has the shape {list(tensor.shape)}, not {list(shape)}")
    for name in header.tensors:
        if name not in expected:
            raise _refused(header.path, f"it has the tensor {name!r}, which llama.cpp's GPT-2 lacks")


def _check_size(path: Path, key: str, value: Any, largest: int) -> None:
    if type(value) is not int or not 1 <= value <= largest:
        raise _refused(path, f"its {key} is {value!r}, not 1 to {largest}")


def _refused(path: Path, why: str, hint: str = "Create it again with `dgpt2-quant convert`.") -> GGUFError:
    return GGUFError(f"{path} cannot be used: {why}", hint)
