"""The text of special tokens, for which llama.cpp returns no bytes."""

from collections.abc import Callable
from pathlib import Path

from dgpt2_quant.core.gguf_file import read_header
from dgpt2_quant.core.read_input import Announce
from dgpt2_quant.core.text import NamedText
from dgpt2_quant.quantize.checkpoint.encode_text import special_note
from dgpt2_quant.runtime.model import Model

_TOKENS, _TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"


def noting_special(text: NamedText, path: Path, announce: Announce | None = None) -> NamedText:
    """The text with a note on the special tokens of a GGUF file that it contains, if any."""
    metadata = read_header(path).metadata
    return text.noting(special_note(text, metadata[_TOKENS], metadata.get(_TYPES, ())), announce)


def token_bytes(model: Model) -> Callable[[int], bytes]:
    """A function that returns the bytes of a token in a text; those of a special token are its name."""
    names: list[str] = []

    def of(token: int) -> bytes:
        if found := model.token_bytes(token):
            return found
        if not names:
            names.extend(read_header(model.path).metadata[_TOKENS])
        return names[token].encode()

    return of
