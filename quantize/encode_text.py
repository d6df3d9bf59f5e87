"""A text to tokens without llama.cpp, which wants a GGUF file for it: with the tokenizers library.

The same tokens as llama.cpp gives (its pre-tokenizer `gpt-2`); a special token's text is text here, as it is there.
"""

from .tokenizer import Tokenizer, TokenType


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """The numbers of the text's tokens, no special ones added."""
    from tokenizers import AddedToken, models, pre_tokenizers
    from tokenizers import Tokenizer as FastTokenizer

    numbers = {token: number for number, token in enumerate(tokenizer.tokens)}
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in tokenizer.merges)]
    # the library wants each merge's parts and result to be tokens; llama.cpp passes over the others
    merges = [pair for pair in pairs if {*pair, "".join(pair)} <= numbers.keys()]
    fast = FastTokenizer(models.BPE(numbers, merges))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    by_hand = [t for t, kind in zip(tokenizer.tokens, tokenizer.types, strict=False) if kind == TokenType.USER_DEFINED]
    fast.add_tokens([AddedToken(token, normalized=False) for token in by_hand])
    ids: list[int] = fast.encode(text, add_special_tokens=False).ids
    return ids
