"""Tokenizes a text without llama.cpp (which would need a GGUF file), with the tokenizers library.

The tokens are those of llama.cpp's pre-tokenizer `gpt-2`. With `parse_special`, the text of a special token is read as
that token, otherwise as letters.
"""

from collections.abc import Iterable, Sequence

from dgpt2_quant.core.text import NamedText
from dgpt2_quant.quantize.checkpoint.tokenizer import CONTROL_NAMES, Tokenizer, TokenType

_UNKNOWN = 2  # llama.cpp's LLAMA_TOKEN_TYPE_UNKNOWN, which it parses like control tokens
_SHOWN = 5  # special tokens listed in a note


def encode_text(tokenizer: Tokenizer, text: str, *, parse_special: bool = True) -> list[int]:
    """The ids of the text's tokens, with none added."""
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import models, pre_tokenizers

    numbers = {token: number for number, token in enumerate(tokenizer.tokens)}
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in tokenizer.merges)]
    # the library requires that the parts and the result of each merge are tokens; llama.cpp merges first, and then
    # splits a result that is not a token into letters
    spelled = {piece for left, right in merges for piece in (left, right, left + right)} - numbers.keys()
    extra = {piece: len(numbers) + index for index, piece in enumerate(sorted(spelled))}
    fast = FastTokenizer(models.BPE({**numbers, **extra}, merges))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = {number: [numbers[letter] for letter in piece if letter in numbers] for piece, number in extra.items()}
    added = {t for t, kind in zip(tokenizer.tokens, tokenizer.types, strict=False) if kind == TokenType.USER_DEFINED}
    special = {*special_tokens(tokenizer.tokens, tokenizer.types)}
    added = added | special if parse_special else added - special
    ids: list[int] = []
    for part, is_token in _split(text, added):
        if is_token:
            ids.append(numbers[part])
            continue
        for number in fast.encode(part, add_special_tokens=False).ids:
            ids += letters.get(number, [number])
    return ids


def special_tokens(tokens: Sequence[str], types: Sequence[int]) -> list[str]:
    """The tokens of a vocabulary that are recognized in a text only with `parse_special`."""
    kinds = (TokenType.CONTROL, _UNKNOWN)
    return [t for t, kind in zip(tokens, types, strict=False) if kind in kinds or t in CONTROL_NAMES]


def special_note(text: NamedText, tokens: Sequence[str], types: Sequence[int]) -> str | None:
    """A note on the special tokens in a text, and how they are read; None if there are none."""
    counts = {token: count for token in special_tokens(tokens, types) if token and (count := text.text.count(token))}
    if not counts:
        return None
    how = "read as letters, as by llama-perplexity"
    if text.parse_special:
        how = "read as tokens, as by Transformers; llama-perplexity reads them as letters"
    shown = ", ".join(list(counts)[:_SHOWN]) + (", ..." if len(counts) > _SHOWN else "")
    total = sum(counts.values())
    return f"{text.name}: {total:,} special token{'s' * (total > 1)} ({shown}), {how}"


def _split(text: str, tokens: Iterable[str]) -> list[tuple[str, bool]]:
    """Splits the text at added tokens, the longest token first; returns (part, whether it is a token)."""
    parts = [(text, False)]
    for token in sorted(filter(None, tokens), key=lambda token: len(token.encode()), reverse=True):
        before, parts = parts, []
        for part, is_token in before:
            if is_token:
                parts.append((part, True))
                continue
            for piece in part.split(token):
                parts += [(piece, False), (token, True)]
            parts.pop()  # no token after the last piece
    return parts
