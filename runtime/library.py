"""llama.cpp's C interface in Python's terms: the only file of `runtime` that touches ctypes.

It wraps the low-level bindings of llama-cpp-python (`llama_cpp.llama_*`), not its `Llama` class, which can not batch,
defaults to half the cores, and keeps a matrix of all logits. What llama.cpp logs goes to the logger
`dgpt2_quant.llama_cpp`, which is silent unless the program sets up a handler for it.
"""

import ctypes
import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.quantize.errors import RuntimeFailure

log = logging.getLogger("dgpt2_quant.llama_cpp")
log.addHandler(logging.NullHandler())

# `enum ggml_log_level` (ggml.h); 5 continues the line before
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR, 5: logging.DEBUG}
_TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # struct llama_token_data
_MAX_BATCH = 512  # tokens that are decoded in one go; the logits of a whole batch are kept, so it bounds memory


_pending: list[BaseException] = []  # what was raised in a callback from C


@cache
def bindings() -> Any:
    """The bindings, initialised once. Their import is slow, so it waits until a model is loaded."""
    import llama_cpp

    llama_cpp.llama_log_set(_log_callback(llama_cpp), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


@cache
def _log_callback(llama_cpp: Any) -> Any:
    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def write(level: int, text: bytes, _user_data: object) -> None:
        try:
            log.log(_LEVELS.get(level, logging.INFO), text.decode("utf-8", "replace").rstrip())
        except BaseException as error:
            # a Ctrl-C while C works arrives here, where ctypes would swallow it: it waits for `_raise_pending`
            _pending.append(error)

    return write  # kept by the cache: C holds a pointer to it


def _raise_pending() -> None:
    if _pending:
        raise _pending.pop()


class NativeModel:
    """A loaded model and its vocabulary."""

    def __init__(self, path: Path) -> None:
        lib = bindings()
        params = lib.llama_model_default_params()
        # the CPU, even where the library was built with something else (on a Mac always with Metal)
        no_devices = (ctypes.c_void_p * 1)(None)
        params.devices = ctypes.cast(no_devices, ctypes.c_void_p)
        params.n_gpu_layers = 0
        self.handle = lib.llama_model_load_from_file(os.fsencode(path), params)
        if _pending:
            self.close()
            _raise_pending()
        if not self.handle:
            raise RuntimeFailure(
                f"llama.cpp can not load {path}",
                "Turn on the logger `dgpt2_quant.llama_cpp` to see its reason.",
            )
        self.vocab = lib.llama_model_get_vocab(self.handle)
        self.vocabulary: int = lib.llama_vocab_n_tokens(self.vocab)
        self.positions: int = lib.llama_model_n_ctx_train(self.handle)
        self.bos: int = lib.llama_vocab_bos(self.vocab)

    def tokenize(self, text: str, special: bool) -> list[int]:
        """Token ids; with `special`, texts like `<|endoftext|>` become the tokens that they name."""
        data = text.encode("utf-8")
        capacity = len(data) + 8  # a token is at least one byte
        tokens = (ctypes.c_int32 * capacity)()
        count = bindings().llama_tokenize(self.vocab, data, len(data), tokens, capacity, False, special)
        if count < 0:
            raise RuntimeFailure(f"llama.cpp can not tokenize a text of {len(data)} bytes")
        return tokens[:count]

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for; none for a control token."""
        buffer = ctypes.create_string_buffer(256)
        count = bindings().llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        if count < 0:  # it says how much it needs
            buffer = ctypes.create_string_buffer(-count)
            count = bindings().llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[:count]

    def is_end(self, token: int) -> bool:
        """Whether the token ends a generation."""
        return bool(bindings().llama_vocab_is_eog(self.vocab, token))

    def close(self) -> None:
        if self.handle:
            bindings().llama_model_free(self.handle)
        self.handle = None


class NativeContext:
    """The state of decoding: one sequence in a KV cache of `positions`."""

    def __init__(self, model: NativeModel, positions: int, threads: int) -> None:
        lib = bindings()
        params = lib.llama_context_default_params()
        params.n_ctx = positions
        params.n_batch = params.n_ubatch = min(positions, _MAX_BATCH)
        params.n_threads = params.n_threads_batch = threads
        # its sums over the cache are split by the thread count, so that threads would change the text
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.no_perf = True
        params.offload_kqv = params.op_offload = False
        self.handle = lib.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise RuntimeFailure(
                f"llama.cpp can not set up a context of {positions} positions", "Is there enough memory?"
            )
        self.vocabulary = model.vocabulary
        self.batch_size = params.n_batch
        self._memory = lib.llama_get_memory(self.handle)
        self._batch = lib.llama_batch_init(self.batch_size, 0, 1)
        for index in range(self.batch_size):
            self._batch.n_seq_id[index] = 1
            self._batch.seq_id[index][0] = 0
        if _pending:
            self.close()
            _raise_pending()

    def decode(self, tokens: Sequence[int], position: int, scored_from: int | None = None) -> None:
        """Appends at most `batch_size` tokens at `position`; logits are kept of the last, or from an index on."""
        batch = self._batch
        last = len(tokens) - 1
        first_scored = last if scored_from is None else scored_from
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = position + index
            batch.logits[index] = index >= first_scored
        status = bindings().llama_decode(self.handle, batch)
        if status:
            raise RuntimeFailure(f"llama_decode failed with status {status} at position {position}")
        _raise_pending()

    def logits(self, rows: int) -> npt.NDArray[np.float32]:
        """The logits of the last decode's `rows` scored tokens, (rows, vocabulary): a view until the next decode."""
        pointer = bindings().llama_get_logits(self.handle)
        return np.ctypeslib.as_array(pointer, (rows, self.vocabulary))

    def keep(self, positions: int) -> None:
        """Forgets all but the first `positions` tokens."""
        bindings().llama_memory_seq_rm(self._memory, 0, positions, -1)

    def close(self) -> None:
        if self.handle:
            bindings().llama_batch_free(self._batch)
            bindings().llama_free(self.handle)
        self.handle = None


class NativeSampler:
    """A chain of samplers; each entry is a function's name behind `llama_sampler_init_`, and its arguments."""

    def __init__(self, steps: Sequence[tuple[Any, ...]]) -> None:
        lib = bindings()
        self.handle = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for name, *arguments in steps:
            lib.llama_sampler_chain_add(self.handle, getattr(lib, f"llama_sampler_init_{name}")(*arguments))

    def sample(self, context: NativeContext) -> int:
        """Chooses a token by the logits of the last decoded one, and remembers it."""
        return int(bindings().llama_sampler_sample(self.handle, context.handle, -1))

    def sample_from(self, logits: npt.NDArray[np.float32]) -> int:
        """The same by logits that were kept, shape (vocabulary,)."""
        lib = bindings()
        candidates = np.zeros(len(logits), _TOKEN_DATA)
        candidates["id"] = np.arange(len(logits))
        candidates["logit"] = logits
        pointer = candidates.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
        array = lib.llama_token_data_array(pointer, len(logits), -1, False)
        lib.llama_sampler_apply(self.handle, ctypes.byref(array))
        token = int(array.data[array.selected].id)
        self.accept(token)
        return token

    def accept(self, token: int) -> None:
        """Lets the penalties know of a token that was not sampled."""
        bindings().llama_sampler_accept(self.handle, token)

    def close(self) -> None:
        if self.handle:
            bindings().llama_sampler_free(self.handle)
        self.handle = None
