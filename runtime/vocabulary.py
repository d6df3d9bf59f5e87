"""Text to tokens and back, by the tokenizer that a file carries: the part of `Model` that needs no decoding."""

import reprlib

from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.runtime.native.batch_token import TokenIds, token_ids
from dgpt2_quant.runtime.native.model import NativeModel

from .lifecycle import Closing


class Vocabulary(Closing):
    """Tokenizes and detokenizes. The model provides its vocabulary."""

    def _open(self) -> NativeModel:
        raise NotImplementedError

    def tokenize(self, text: str, *, special: bool = True, add_special: bool | None = None) -> list[int]:
        """The text's token ids. With `special`, `<|endoftext|>` in it is the control token of that name.

        With `add_special` (default: the value of `special`) the beginning-of-text token comes first and the end-of-text
        token last if the file states so (`add_bos_token`, `add_eos_token`), as in a prompt.
        """
        if not isinstance(text, str):
            raise UsageError(f"`text` must be a str, not {reprlib.repr(text)}", "Decode bytes first.")
        return self._open().tokenize(text, special, special if add_special is None else add_special)

    def detokenize(self, tokens: TokenIds) -> str:
        """The tokens' text. Control tokens have none; bytes that are not UTF-8 become U+FFFD.

        Raises `UsageError` for anything but a list of token ids.
        """
        native = self._open()
        return native.detokenize(token_ids(tokens, native.vocabulary))

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        """The bytes of one token. A control token has none, or with `special` those of its name."""
        native = self._open()
        return native.piece(token)[0] or (native.special_text(token) if special else b"")

    def is_end(self, token: int) -> bool:
        """Whether this token ends a text."""
        return self._open().piece(token)[1]
