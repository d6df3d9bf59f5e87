"""Reads GPT-2's byte-level BPE for llama.cpp: tokens, token types and merges.

The source is `vocab.json` + `merges.txt`, or else `tokenizer.json`; added tokens come from `added_tokens.json`,
`tokenizer.json` and `tokenizer_config.json`. llama.cpp encodes and decodes (`pre = gpt-2`); a tokenizer that its
pre-tokenizer cannot reproduce is refused.

The number of tokens can differ from the embedding's rows: some fine-tuners pad the embedding, others add tokens without
resizing it. Rows without a token get an unused one; tokens without a row, which the model never saw, are dropped.
"""

import logging
from collections.abc import Container, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.core.gpt2_gguf import wrong_texts

from .folder import read_json

END_OF_TEXT = "<|endoftext|>"
_log = logging.getLogger(__name__)


class TokenType(IntEnum):
    """llama.cpp's `enum llama_token_type`."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


@dataclass(frozen=True)
class Tokenizer:
    """`tokens[i]` is token i in GPT-2's byte-to-Unicode spelling; `merges` are "left right", by priority."""

    tokens: list[str]
    types: list[TokenType]
    merges: list[str]
    bos: int
    eos: int


def read_tokenizer(folder: Path, config: dict[str, Any], vocabulary: int) -> Tokenizer:
    """Reads the tokenizer of a checkpoint folder, one token for each of the `vocabulary` rows of the embedding.

    Raises `CheckpointError` if it is missing or broken.
    """
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    ids, merges, added = _read_files(folder, settings)
    try:
        "".join([*ids, *merges]).encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can contain a lone surrogate, UTF-8 cannot
        raise CheckpointError(f"{folder}: a token is not valid Unicode ({error.reason})") from error
    if beyond := [token for token, number in ids.items() if number >= vocabulary]:
        if letter := next((token for token in beyond if len(token) == 1), None):
            raise CheckpointError(
                f"{folder}: token {letter!r} has the id {ids[letter]}, but the embedding has {vocabulary} rows: texts"
                " would lose this byte",
                "Do tokenizer and model belong to the same checkpoint?",
            )
        some = ", ".join(map(repr, beyond[:4])) + (", ..." if len(beyond) > 4 else "")
        _log.warning(
            "%s: the embedding has %d rows, so %d tokens are dropped (%s)", folder, vocabulary, len(beyond), some
        )
        ids = {token: number for token, number in ids.items() if number < vocabulary}
        merges = [merge for merge in merges if merge.replace(" ", "") in ids]
    if not merges or not any(len(token) == 1 for token in ids):
        what = "tokens for bytes" if merges else "merges"
        raise CheckpointError(
            f"{folder}: its tokenizer has no {what}", "Download or save it again; it may be truncated."
        )
    tokens = _by_number(folder, ids, vocabulary)
    special = {text for text, is_special in added.items() if is_special} | {END_OF_TEXT}
    types = [_type(token, added, special) if token in ids else TokenType.UNUSED for token in tokens]
    if why := wrong_texts(tokens):
        raise CheckpointError(f"{folder}: {why}")
    bos, eos = (_special_id(config, settings, name, ids, vocabulary) for name in ("bos_token", "eos_token"))
    return Tokenizer(tokens, types, merges, bos, eos)


def pad_texts(tokens: Sequence[str], count: int) -> list[str]:
    """Texts for `count` tokens after these: `[PAD8189]` and so on, different from all others."""
    there = set(tokens)
    return [_unused(number, there) for number in range(len(tokens), len(tokens) + count)]


def _read_files(folder: Path, settings: dict[str, Any]) -> tuple[dict[str, int], list[str], dict[str, bool]]:
    """Returns (token -> id, merges, added token -> whether it is special)."""
    if settings.get("add_prefix_space"):
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'} says add_prefix_space: llama.cpp's GPT-2 tokenizer adds no space, so"
            " every prompt would be read differently"
        )
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        ids, merges = read_json(folder / "vocab.json"), _read_merges(folder / "merges.txt")
        extra = read_json(folder / "added_tokens.json") if (folder / "added_tokens.json").is_file() else {}
        added = {text: text == END_OF_TEXT for text in extra}
        if (folder / "tokenizer.json").is_file():  # states the kinds of added tokens, and the pre-tokenizer
            _, _, more, kinds = _read_fast_tokenizer(folder / "tokenizer.json")
            extra, added = {**more, **extra}, {**added, **kinds}
    elif (folder / "tokenizer.json").is_file():
        ids, merges, extra, added = _read_fast_tokenizer(folder / "tokenizer.json")
    else:
        raise CheckpointError(f"{folder} has no tokenizer: neither vocab.json with merges.txt nor tokenizer.json")
    ids = {**ids, **extra}
    try:
        for number, entry in settings.get("added_tokens_decoder", {}).items():
            if not isinstance(entry["content"], str):
                raise TypeError("a token is not a string")
            if int(number) < 0:
                raise ValueError(f"{number} is not a token id")
            ids.setdefault(entry["content"], int(number))
            added[entry["content"]] = bool(entry.get("special"))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'tokenizer_config.json'}: invalid added_tokens_decoder ({error})") from error
    for text, number in ids.items():  # including the empty token
        if type(number) is not int or number < 0:
            raise CheckpointError(f"{folder}: the id of token {text!r} is {number!r}, not an integer from 0 up")
    named = read_json(folder / "special_tokens_map.json") if (folder / "special_tokens_map.json").is_file() else {}
    for text in added.keys() & (_named_tokens(named) | _named_tokens(settings)):
        added[text] = True
    return ids, merges, added


def _named_tokens(settings: dict[str, Any]) -> set[str]:
    """The texts of `eos_token`, `pad_token` and so on, and of `additional_special_tokens`."""
    values = [value for key, value in settings.items() if key.endswith("_token")]
    more = settings.get("additional_special_tokens")
    values += more if isinstance(more, list) else []
    texts = [value.get("content") if isinstance(value, dict) else value for value in values]
    return {text for text in texts if isinstance(text, str)}


def _read_fast_tokenizer(path: Path) -> tuple[dict[str, int], list[str], dict[str, int], dict[str, bool]]:
    content = read_json(path)
    model, pre = (value if isinstance(value := content.get(key), dict) else {} for key in ("model", "pre_tokenizer"))
    if model.get("type", "BPE") != "BPE" or pre.get("type") != "ByteLevel":
        raise CheckpointError(
            f"{path}: a {model.get('type')} model with a {pre.get('type')} pre-tokenizer;"
            " GPT-2 has a BPE with ByteLevel"
        )
    changing = [
        name
        for name, value in (
            ("normalizer", content.get("normalizer")),
            *((key, model.get(key)) for key in ("end_of_word_suffix", "continuing_subword_prefix")),
        )
        if value
    ]
    if changing:
        raise CheckpointError(
            f"{path} has a {changing[0]}, which llama.cpp's GPT-2 tokenizer lacks: texts would be read differently"
        )
    if pre.get("add_prefix_space") or not pre.get("use_regex", True):
        raise CheckpointError(f"{path}: its pre-tokenizer is not GPT-2's (add_prefix_space, or no splitting)")
    try:
        if not isinstance(model["merges"], list):
            raise TypeError("merges is not a list")
        merges = [_merge(merge) for merge in model["merges"]]
        extra = {entry["content"]: entry["id"] for entry in content.get("added_tokens", [])}
        added = {entry["content"]: bool(entry.get("special")) for entry in content.get("added_tokens", [])}
        ids = dict(model["vocab"])
        if not all(isinstance(text, str) for text in (*ids, *extra)):
            raise TypeError("a token is not a string")
        return ids, merges, extra, added
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a valid tokenizer.json: {error!r}") from error


def _merge(merge: Any) -> str:
    """A merge in the form of merges.txt, from a string or a pair."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(part, str) and part for part in parts):
        raise TypeError(f"{merge!r} is not a merge of two tokens")
    return " ".join(parts)


def _read_merges(path: Path) -> list[str]:
    try:
        lines = path.read_text("utf-8").split("\n")
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not UTF-8: {error}") from error
    merges = [line for line in lines if line and not line.startswith("#version")]
    for line in merges:
        if len(line.split(" ")) != 2:
            raise CheckpointError(f"{path}: {line!r} is not a merge of two tokens")
    return merges


def _by_number(folder: Path, ids: dict[str, int], vocabulary: int) -> list[str]:
    tokens: list[str | None] = [None] * vocabulary
    for token, number in ids.items():
        if (other := tokens[number]) is not None:
            raise CheckpointError(f"{folder}: {other!r} and {token!r} both have the id {number}")
        tokens[number] = token
    return [_unused(number, ids) if token is None else token for number, token in enumerate(tokens)]


def _unused(number: int, ids: Container[str]) -> str:
    """A unique text for a row without a token: llama.cpp aborts if two tokens have the same text."""
    text = f"[PAD{number}]"
    while text in ids:
        text += "_"
    return text


def _type(token: str, added: dict[str, bool], special: set[str]) -> TokenType:
    if token in special:
        return TokenType.CONTROL
    return TokenType.USER_DEFINED if token in added else TokenType.NORMAL


def _special_id(
    config: dict[str, Any], settings: dict[str, Any], name: str, ids: dict[str, int], vocabulary: int
) -> int:
    """The id in the config; else in the tokenizer's settings; else that of `<|endoftext|>`.

    A config's id can be out of range: 50256 is the default for every vocabulary.
    """
    value = config.get(f"{name}_id")
    if isinstance(value, list) and value:
        value = value[0]
    if value is not None and type(value) is not int:
        raise CheckpointError(f"config.json: {name}_id is {value!r}, not a token id")
    if value is not None and 0 <= value < vocabulary:
        return value
    text = settings.get(name)
    text = text.get("content") if isinstance(text, dict) else text
    for candidate in (text, END_OF_TEXT):
        if isinstance(candidate, str) and candidate in ids:
            return ids[candidate]
    raise CheckpointError(
        f"config.json: {name}_id is {value!r}, but the vocabulary has {vocabulary} tokens, and none is {END_OF_TEXT}",
        f"Set {name}_id in config.json to the id of the token that ends a text.",
    )
