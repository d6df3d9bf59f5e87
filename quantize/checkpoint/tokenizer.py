"""GPT-2's byte-level BPE as llama.cpp wants it: a list of tokens, their types, the merges, and the special tokens.

The numbers are those that Transformers gives (tokenizer_files.py reads the files). Encoding and decoding are
llama.cpp's business (`pre = gpt-2`).

A tokenizer need not have as many tokens as the embedding has rows: fine-tuners pad the one, and add tokens to the other
without resizing. Rows without a token get an unused one; tokens without a row, which the model never saw, are left out.
"""

import logging
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

from dgpt2_quant.core.errors import CheckpointError
from dgpt2_quant.core.gpt2_gguf import wrong_texts

from .special_tokens import choose_special_tokens
from .tokenizer_files import TokenizerFiles, byte_letters, read_tokenizer_files

# llama.cpp treats these as control tokens, whatever their type in the file (src/llama-vocab.cpp: the tokens that end a
# text or a turn, and those for "fill in the middle", one of each kind)
_NAMES = """<|endoftext|> <|end_of_text|> <|im_end|> <|eot_id|> <|eom_id|> <|end|> <|return|> <|call|> <|calls|>
<|flush|> <|tool_response> <turn|> <end_of_turn> <end_of_utterance> <eos> </s> <EOT> _<EOT> [EOT] [EOS] [e~[
<|fim_prefix|> <|fim_suffix|> <|fim_middle|> <|fim_pad|> <|fim_repo|> <|file_sep|> <|repo_name|>
<fim_prefix> <fim_suffix> <fim_middle> <fim_pad> <fim-prefix> <fim-suffix> <fim-middle> <fim-pad> <fim-repo> <reponame>
<|code_prefix|> <|code_suffix|> <|code_middle|> <|prefix|> <|suffix|> <|middle|> <PRE> <SUF> <MID> <PAD> <REPO>"""
CONTROL_NAMES = frozenset(_NAMES.split())
_SHOWN = 4  # tokens that a warning names
_log = logging.getLogger(__name__)


class TokenType(IntEnum):
    """llama.cpp's `enum llama_token_type`."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


@dataclass(frozen=True)
class Tokenizer:
    """`tokens[i]` is token i's text in GPT-2's printable-bytes spelling; `merges` are "left right", best first.

    `others` maps further roles (`eot`, `pad`, ...) to tokens; `add_bos` and `add_eos` are of every text, and so is
    `prefix_space`, a blank before it, which llama.cpp does not add.
    """

    tokens: list[str]
    types: list[TokenType]
    merges: list[str]
    bos: int
    eos: int
    others: Mapping[str, int] = field(default_factory=dict)
    add_bos: bool = False
    add_eos: bool = False
    chat_templates: Mapping[str, str] = field(default_factory=dict)
    prefix_space: bool = False


def read_tokenizer(folder: Path, config: dict[str, Any], vocabulary: int, *, is_classifier: bool = False) -> Tokenizer:
    """The tokenizer of a checkpoint folder, with a token for each of the `vocabulary` rows of the embedding.

    Raises `CheckpointError` when it is missing or broken, or of a kind that llama.cpp's GPT-2 cannot reproduce. A blank
    before each text is possible for a classifier, because `classify` adds it.
    """
    files = read_tokenizer_files(folder, config)
    if files.prefix_space and not is_classifier:
        raise CheckpointError(
            f"{folder}: its tokenizer has add_prefix_space: llama.cpp's GPT-2 tokenizer adds no blank, so every prompt"
            " would be read differently",
            "Set it to false in its files to convert it, and begin prompts with a blank.",
        )
    if files.prefix_space:
        _log.warning("%s: add_prefix_space: `classify` adds the blank before a text; text generation does not", folder)
    ids, special = _numbered(files)
    _check_texts(folder, ids, files.merges)
    _check_bpe(folder, files)
    ids, merges = _with_rows(files, ids, vocabulary)
    if not merges or not any(len(token) == 1 for token in ids):
        what = "tokens for bytes" if merges else "merges"
        raise CheckpointError(
            f"{folder}: its tokenizer has no {what}", "Download or save it again; it may be truncated."
        )
    tokens = _by_number(folder, ids, vocabulary)
    if (rows := vocabulary - len(ids)) > 0:
        _log.warning(
            "%s: %d of the %d rows of the embedding have no token; they get unused ones", folder, rows, vocabulary
        )
    if why := wrong_texts(tokens):
        raise CheckpointError(f"{folder}: {why}")
    _warn_of_differences(files, ids, special)
    types = [_type(token, ids, files, special) for token in tokens]
    chosen = choose_special_tokens(files, config, ids, tokens, special)
    return Tokenizer(
        tokens,
        types,
        merges,
        chosen.bos,
        chosen.eos,
        chosen.others,
        chosen.add_bos,
        chosen.add_eos,
        files.chat_templates,
        files.prefix_space,
    )


def pad_texts(tokens: Sequence[str], count: int) -> list[str]:
    """Texts for `count` tokens after these: `[PAD8189]` and so on, different from all others."""
    there = set(tokens)
    return [_unused(number, there) for number in range(len(tokens), len(tokens) + count)]


def _numbered(files: TokenizerFiles) -> tuple[dict[str, int], set[str]]:
    """(token -> number, the special ones). A token that no file numbers gets the next number, as in Transformers."""
    ids = dict(files.vocabulary)
    for text, number in ids.items():  # the empty one too
        if type(number) is not int or number < 0:
            raise CheckpointError(f"{files.folder}: the id of token {text!r} is {number!r}, not an integer from 0 up")
    following = len(ids)  # the tokenizers library counts, whatever the files state
    renumbered = []
    for added in files.added.values():
        if added.number is None:
            continue
        if ids.get(added.text, added.number) != added.number:
            raise CheckpointError(
                f"{files.folder}: {added.text!r} has two numbers, {ids[added.text]} in the vocabulary and"
                f" {added.number} as an added token",
                "Are all of the tokenizer's files of the same checkpoint?",
            )
        if added.text not in ids:
            if added.number != following:
                renumbered.append(f"{added.text!r} ({added.number}, not {following})")
            following += 1
        ids[added.text] = added.number
    named = [*files.roles.values(), *files.named]
    for text in named:
        if text not in ids:
            ids[text] = max(ids.values(), default=-1) + 1
            if ids[text] != following:
                renumbered.append(f"{text!r} ({ids[text]}, not {following})")
            following += 1
    if renumbered:
        _log.warning(
            "%s: added tokens have the ids that the files state, and not those of Transformers 5, which counts on from"
            " the vocabulary's %d tokens: %s",
            files.folder,
            len(files.vocabulary),
            _some(renumbered),
        )
    return ids, {added.text for added in files.added.values() if added.special} | set(named)


def _check_texts(folder: Path, ids: Mapping[str, int], merges: Sequence[str]) -> None:
    try:
        "".join([*ids, *merges]).encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half a surrogate pair, UTF-8 cannot
        raise CheckpointError(f"{folder}: a token is not valid Unicode ({error.reason})") from error


def _check_bpe(folder: Path, files: TokenizerFiles) -> None:
    """Refuses merges of another alphabet than GPT-2's bytes, and merges of or into texts that are not tokens."""
    letters, results = set(byte_letters()), {merge.replace(" ", "") for merge in files.merges}
    for merge in files.merges:
        for part in merge.split(" "):
            if part not in results and (part.endswith("</w>") or (len(part) == 1 and part not in letters)):
                raise CheckpointError(
                    f"{folder}: its merge {merge!r} is of a BPE of {'words' if '</w>' in part else 'characters'}, and"
                    " GPT-2's is one of bytes",
                    "This model cannot be converted with its own tokenizer.",
                )
        for text in (*merge.split(" "), merge.replace(" ", "")):
            if text not in files.vocabulary:
                raise CheckpointError(
                    f"{folder}: its merge {merge!r} needs the token {text!r}, which its vocabulary lacks",
                    "Are vocab.json and merges.txt of the same tokenizer? Save it again.",
                )


def _with_rows(files: TokenizerFiles, ids: dict[str, int], vocabulary: int) -> tuple[dict[str, int], list[str]]:
    """The tokens with a row of the embedding, and the merges between them."""
    folder, merges = files.folder, files.merges
    if beyond := [token for token, number in ids.items() if number >= vocabulary]:
        if letter := next((token for token in beyond if len(token) == 1), None):
            raise CheckpointError(
                f"{folder}: token {letter!r} has the id {ids[letter]}, but the embedding has {vocabulary} rows: texts"
                " would lose this byte",
                "Do tokenizer and model belong to the same checkpoint?",
            )
        _log.warning(
            "%s: the embedding has %d rows, so %d tokens are dropped (%s)",
            folder,
            vocabulary,
            len(beyond),
            _some([*map(repr, beyond)]),
        )
        ids = {token: number for token, number in ids.items() if number < vocabulary}
        merges = [merge for merge in merges if merge.replace(" ", "") in ids]
    return ids, merges


def _warn_of_differences(files: TokenizerFiles, ids: Mapping[str, int], special: set[str]) -> None:
    """llama.cpp's GPT-2 looks for added tokens without regard to what stands around them."""
    flagged = [f"{token.text!r} ({', '.join(token.flags)})" for token in files.added.values() if token.flags]
    if flagged:
        _log.warning(
            "%s: llama.cpp ignores these flags of added tokens, next to which texts differ: %s",
            files.folder,
            _some(flagged),
        )
    if forced := [repr(text) for text in ids if text in CONTROL_NAMES and text not in special]:
        _log.warning(
            "%s: llama.cpp reads as special tokens, and Transformers does not: %s", files.folder, _some(forced)
        )
    texts = sorted({text for text in (*files.added, *files.roles.values(), *files.named) if text in ids})
    starts = {text[:length]: text for text in texts for length in range(1, len(text))}
    ends = [(text, starts.get(text[-length:])) for text in texts for length in range(1, len(text))]
    # Transformers looks for special tokens first
    ends += [(other, text) for text in special for other in texts if other not in special and text in other]
    if overlapping := [f"{text!r} with {other!r}" for text, other in ends if other is not None]:
        _log.warning(
            "%s: where added tokens overlap in a text, llama.cpp takes the longer one, Transformers the first: %s",
            files.folder,
            _some(overlapping),
        )


def _some(texts: Sequence[str]) -> str:
    return ", ".join(texts[:_SHOWN]) + (", ..." if len(texts) > _SHOWN else "")


def _by_number(folder: Path, ids: Mapping[str, int], vocabulary: int) -> list[str]:
    tokens: list[str | None] = [None] * vocabulary
    for token, number in ids.items():
        if (other := tokens[number]) is not None:
            raise CheckpointError(f"{folder}: {other!r} and {token!r} both have the id {number}")
        tokens[number] = token
    return [_unused(number, ids) if token is None else token for number, token in enumerate(tokens)]


def _unused(number: int, ids: Container[str]) -> str:
    """A text for a row without a token: llama.cpp aborts if two tokens have the same text."""
    text = f"[PAD{number}]"
    while text in ids:
        text += "_"
    return text


def _type(token: str, ids: Mapping[str, int], files: TokenizerFiles, special: set[str]) -> TokenType:
    if token not in ids:
        return TokenType.UNUSED
    if token in special:
        return TokenType.CONTROL
    return TokenType.USER_DEFINED if token in files.added else TokenType.NORMAL
