"""A text to tokens without llama.cpp, which wants a GGUF file for it: with the tokenizers library.

The same tokens as llama.cpp gives (its pre-tokenizer `gpt-2`); a special token's text is text here, as it is there.
"""

from collections.abc import Iterable

from .tokenizer import Tokenizer, TokenType


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """The numbers of the text's tokens, no special ones added."""
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import models, pre_tokenizers

    numbers = {token: number for number, token in enumerate(tokenizer.tokens)}
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in tokenizer.merges)]
    # the library wants the parts and the result of each merge to be tokens; llama.cpp merges, and then spells out what
    # is none
    spelled = {piece for left, right in merges for piece in (left, right, left + right)} - numbers.keys()
    extra = {piece: len(numbers) + index for index, piece in enumerate(sorted(spelled))}
    fast = FastTokenizer(models.BPE({**numbers, **extra}, merges))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = {number: [numbers[letter] for letter in piece if letter in numbers] for piece, number in extra.items()}
    added = {t for t, kind in zip(tokenizer.tokens, tokenizer.types, strict=False) if kind == TokenType.USER_DEFINED}
    ids: list[int] = []
    for part, is_token in _split(text, added):
        if is_token:
            ids.append(numbers[part])
            continue
        for number in fast.encode(part, add_special_tokens=False).ids:
            ids += letters.get(number, [number])
    return ids


def _split(text: str, tokens: Iterable[str]) -> list[tuple[str, bool]]:
    """The text in parts, and which are added tokens: the longest of these is looked for first in all of it."""
    parts = [(text, False)]
    for token in sorted(filter(None, tokens), key=lambda token: len(token.encode()), reverse=True):
        before, parts = parts, []
        for part, is_token in before:
            if is_token:
                parts.append((part, True))
                continue
            for piece in part.split(token):
                parts += [(piece, False), (token, True)]
            parts.pop()  # behind the last piece there is no token
    return parts
