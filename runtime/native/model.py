"""A loaded model of llama.cpp: its vocabulary, tokenizer and sampler steps.

Over the low-level bindings of llama-cpp-python, not its class `Llama`, which cannot batch, defaults to half of the
cores, and keeps all logits.
"""

import ctypes
import os
import threading
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import RuntimeFailure, UsageError

from .batch_token import TokenIds, token_ids
from .bindings import bindings, encoded, own
from .forks import check_fork
from .huge_pages import LARGE
from .native_thread import Owned, in_native_thread

WITH_VOCABULARY = ("dry", "grammar")  # samplers whose first argument is the vocabulary


class NativeModel:
    """A loaded model and its vocabulary. Without `huge_pages` the file is mapped, and processes share its memory.

    `pre_tokenizer` replaces the file's `tokenizer.ggml.pre`.
    """

    def __init__(self, path: Path, *, huge_pages: bool = True, pre_tokenizer: str | None = None) -> None:
        check_fork()
        self.path = path
        self.huge_pages = huge_pages
        self.pre_tokenizer = pre_tokenizer
        self.wants_huge_pages = huge_pages and path.is_file() and path.stat().st_size >= LARGE
        self._lock = threading.Lock()
        self._dry: tuple[tuple[Any, ...], Owned] | None = None
        self._pieces: dict[int, tuple[bytes, bool]] = {}
        self._owner: Owned | None = None
        self._cancelled = False
        try:
            in_native_thread(self._load, self._cancel_loading)
        except BaseException:
            self.close()  # the error's traceback refers to this
            raise
        if self._owner is None:
            raise RuntimeFailure(f"llama.cpp cannot load {path}", "The logger `dgpt2_quant.llama_cpp` has the reason.")
        lib, handle = bindings(), self._owner.pointer
        self.vocab: Any = lib.llama_model_get_vocab(handle)
        self.vocabulary: int = lib.llama_vocab_n_tokens(self.vocab)
        self.positions: int = lib.llama_model_n_ctx_train(handle)
        self.width: int = lib.llama_model_n_embd(handle)
        self.bos: int = lib.llama_vocab_bos(self.vocab)
        self.eos: int = lib.llama_vocab_eos(self.vocab)
        self.adds_bos: bool = lib.llama_vocab_get_add_bos(self.vocab)
        self.adds_eos: bool = lib.llama_vocab_get_add_eos(self.vocab)
        self.real_vocabulary: int = self._without_padding()

    def _load(self) -> None:
        lib = bindings()
        params = lib.llama_model_default_params()
        # CPU only, also if the library was built for other devices (on a Mac always with Metal)
        no_devices = (ctypes.c_void_p * 1)(None)
        params.devices = ctypes.cast(no_devices, ctypes.c_void_p)
        params.n_gpu_layers = 0
        params.load_mode = lib.LLAMA_LOAD_MODE_NONE if self.huge_pages else lib.LLAMA_LOAD_MODE_MMAP
        overrides = (lib.llama_model_kv_override * 2)()  # the last one ends the list
        if self.pre_tokenizer is not None:
            overrides[0].tag, overrides[0].key = lib.LLAMA_KV_OVERRIDE_TYPE_STR, b"tokenizer.ggml.pre"
            overrides[0].value.val_str = self.pre_tokenizer.encode()
            params.kv_overrides = overrides
        params.progress_callback = goes_on = lib.llama_progress_callback(lambda _done, _data: not self._cancelled)
        name, load = os.fsencode(self.path), lib.llama_model_load_from_file
        self._owner = own(lambda: load(name, params), lib.llama_model_free, huge_pages=self.wants_huge_pages)
        del goes_on  # C no longer calls it

    def _cancel_loading(self) -> None:
        self._cancelled = True

    @property
    def owner(self) -> Owned:
        """Keeps the model in memory while a call holds it. Raises `RuntimeFailure` if the model is closed."""
        owner = self._owner
        if owner is None:
            raise RuntimeFailure(f"the model {self.path} is closed", "Load it again.")
        return owner

    def _without_padding(self) -> int:
        """The number of tokens without the padding at the end, which has the type UNUSED."""
        lib, count = bindings(), self.vocabulary
        while count and lib.llama_vocab_get_attr(self.vocab, count - 1) & lib.LLAMA_TOKEN_ATTR_UNUSED:
            count -= 1
        return count or self.vocabulary

    def sampler_step(self, name: str, *arguments: Any) -> Any:
        """The sampler of `llama_sampler_init_NAME` with these arguments; the caller frees it."""
        make = getattr(bindings(), f"llama_sampler_init_{name}")
        if name not in WITH_VOCABULARY:
            return make(*map(encoded, arguments))
        owner = self.owner
        arguments = self.vocab, *arguments
        step = self._dry_step(arguments) if name == "dry" else make(*map(encoded, arguments))
        del owner
        return step

    def _dry_step(self, arguments: tuple[Any, ...]) -> Any:
        # DRY searches all tokens for its breakers, which is slow, so the last sampler is kept and cloned
        lib = bindings()
        with self._lock:
            if self._dry is None or self._dry[0] != arguments:
                made = lib.llama_sampler_init_dry(*map(encoded, arguments))
                self._dry = arguments, Owned(made, lib.llama_sampler_free)
            return lib.llama_sampler_clone(self._dry[1].pointer)

    def tokenize(self, text: str, special: bool, add_special: bool = False) -> list[int]:
        """Token ids. With `special`, texts such as `<|endoftext|>` become the tokens that they name.

        With `add_special` the beginning-of-text token comes first, and the end-of-text token last, if the file states
        so (`add_bos_token`, `add_eos_token`).
        """
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:  # a lone surrogate
            code, where = ord(text[error.start]), f"at index {error.start}"
            if 0xDC80 <= code <= 0xDCFF:  # Python's code for a byte of the command line that is not UTF-8
                raise UsageError(f"the text is not UTF-8: it has the byte 0x{code - 0xDC00:02x} {where}") from error
            raise UsageError(f"the text has U+{code:04X} {where}, which is not a character") from error
        capacity = len(data) + 8  # a token is at least one byte
        tokens = (ctypes.c_int32 * capacity)()
        owner = self.owner
        count = bindings().llama_tokenize(self.vocab, data, len(data), tokens, capacity, False, special)
        del owner
        if count < 0:
            raise RuntimeFailure(f"llama.cpp cannot tokenize a text of {len(data)} bytes")
        # not by C, which takes token 11, a comma, for a file that names no such token
        first = [self.bos] if add_special and self.adds_bos else []
        last = [self.eos] if add_special and self.adds_eos else []
        return [*first, *tokens[:count], *last]

    def detokenize(self, tokens: TokenIds) -> str:
        """The tokens' text. Control tokens have none; bytes that are not UTF-8 become U+FFFD."""
        return b"".join(self.piece(token)[0] for token in tokens).decode("utf-8", "replace")

    def piece(self, token: int) -> tuple[bytes, bool]:
        """The bytes of a token (none for a control token), and whether it ends a text."""
        found = self._pieces.get(token)
        if found is None:
            (token,) = token_ids((token,), self.vocabulary)
            owner = self.owner
            ends = bool(bindings().llama_vocab_is_eog(self.vocab, token))
            found = self._pieces[token] = self._read_token(token), ends
            del owner
        return found

    def special_text(self, token: int) -> bytes:
        """The text of a token; for a control token its name."""
        owner = self.owner
        found = self._read_token(token, special=True)
        del owner
        return found

    def _read_token(
        self, token: int, special: bool = False, buffer: "ctypes.Array[ctypes.c_char] | None" = None
    ) -> bytes:
        buffer = buffer or ctypes.create_string_buffer(256)
        to_piece = bindings().llama_token_to_piece
        while (count := to_piece(self.vocab, token, buffer, len(buffer), 0, special)) < 0:
            buffer = ctypes.create_string_buffer(-count)  # it returns the size that it needs, negated
        return buffer.raw[:count]

    @cached_property
    def sorted_pieces(self) -> tuple[list[bytes], npt.NDArray[np.intp]]:
        """The bytes of the tokens in order, and their ids; without control, pad and white-space tokens."""
        owner, buffer = self.owner, ctypes.create_string_buffer(256)
        pieces = ((self._read_token(token, buffer=buffer), token) for token in range(self.real_vocabulary))
        found = sorted(pair for pair in pieces if pair[0].strip())
        del owner
        return [data for data, _ in found], np.array([token for _, token in found], np.intp)

    @cached_property
    def ends(self) -> list[int]:
        """All tokens that end a text, except pad tokens."""
        owner, is_end = self.owner, bindings().llama_vocab_is_eog
        found = [token for token in range(self.real_vocabulary) if is_end(self.vocab, token)]
        del owner
        return found

    def close(self) -> None:
        """Frees it after its contexts are freed and its calls have ended. Closing twice is fine."""
        self._owner = self._dry = None
