"""llama.cpp's C interface in Python's terms: the only file of `runtime` that touches it.

It wraps the low-level bindings of llama-cpp-python (`llama_cpp.llama_*`), not its `Llama` class, which can not batch,
defaults to half the cores, and keeps a matrix of all logits. What llama.cpp logs goes to the logger
`dgpt2_quant.llama_cpp`, which is silent unless the program sets up a handler for it.
"""

import ctypes
import logging
import os
import threading
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.quantize.cores import bounded_spin
from dgpt2_quant.quantize.errors import RuntimeFailure, UsageError

from .closing import Uses
from .decoding import Fed, Logits, State, token_ids
from .huge_pages import LARGE, ask_for_huge_pages
from .making import made, pending

log = logging.getLogger("dgpt2_quant.llama_cpp")
log.addHandler(logging.NullHandler())

# `enum ggml_log_level` (ggml.h); 5 continues the line before
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR, 5: logging.DEBUG}
TOKEN_DATA = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # struct llama_token_data
MAX_BATCH = 512  # tokens that are decoded in one go; the logits of a whole batch are kept, so it bounds memory
CELLS = 256  # llama.cpp rounds a cache up to a multiple
F32, F16 = 0, 1  # enum ggml_type
KV_TYPES = {"f32": F32, "f16": F16, "bf16": 30, "q8_0": 8}
_WITH_VOCABULARY = ("dry", "grammar")  # samplers whose first argument it is
_BYTES = ctypes.POINTER(ctypes.c_uint8)


@cache
def bindings() -> Any:
    """The bindings, initialised once. Their import is slow, so it waits until a model is loaded."""
    with bounded_spin():
        import llama_cpp

    llama_cpp.llama_log_set(_log_callback(llama_cpp), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


@cache
def _log_callback(llama_cpp: Any) -> Any:
    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def write(level: int, text: bytes, _user_data: object) -> None:
        try:
            ask_for_huge_pages(text)
            log.log(_LEVELS.get(level, logging.INFO), text.decode("utf-8", "replace").rstrip())
        except BaseException as error:
            pending.append(error)  # ctypes would swallow it: it waits for the call's end

    return write  # kept by the cache: C holds a pointer to it


class NativeModel:
    """A loaded model and its vocabulary. Without `huge_pages` its file is mapped, so that processes share it."""

    def __init__(self, path: Path, *, huge_pages: bool = True) -> None:
        self.path = path
        self.huge_pages = huge_pages
        self.wants_huge_pages = huge_pages and path.is_file() and path.stat().st_size >= LARGE
        self._uses = Uses()
        self._lock = threading.Lock()
        self._dry: tuple[tuple[Any, ...], Any] | None = None
        self._pieces: dict[int, tuple[bytes, bool]] = {}
        lib = bindings()
        params = lib.llama_model_default_params()
        # the CPU, even where the library was built with something else (on a Mac always with Metal)
        no_devices = (ctypes.c_void_p * 1)(None)
        params.devices = ctypes.cast(no_devices, ctypes.c_void_p)
        params.n_gpu_layers = 0
        params.load_mode = lib.LLAMA_LOAD_MODE_NONE if huge_pages else lib.LLAMA_LOAD_MODE_MMAP
        load, free = lib.llama_model_load_from_file, lib.llama_model_free
        self.handle = made(lambda: load(os.fsencode(path), params), free, huge_pages=self.wants_huge_pages)
        if not self.handle:
            raise RuntimeFailure(
                f"llama.cpp can not load {path}", "Turn on the logger `dgpt2_quant.llama_cpp` to see its reason."
            )
        self.vocab = lib.llama_model_get_vocab(self.handle)
        self.vocabulary: int = lib.llama_vocab_n_tokens(self.vocab)
        self.positions: int = lib.llama_model_n_ctx_train(self.handle)
        self.width: int = lib.llama_model_n_embd(self.handle)
        self.bos: int = lib.llama_vocab_bos(self.vocab)
        self.eos: int = lib.llama_vocab_eos(self.vocab)
        self.adds_bos: bool = lib.llama_vocab_get_add_bos(self.vocab)
        self.real_vocabulary = self._without_padding()

    def _without_padding(self) -> int:
        """How many tokens there are before those of type UNUSED at the end: the vocabulary is padded with such."""
        lib, count = bindings(), self.vocabulary
        while count and lib.llama_vocab_get_attr(self.vocab, count - 1) & lib.LLAMA_TOKEN_ATTR_UNUSED:
            count -= 1
        return count or self.vocabulary

    def sampler_step(self, name: str, *arguments: Any) -> Any:
        """What `llama_sampler_init_NAME` makes of these arguments, to be freed by the caller."""
        make = getattr(bindings(), f"llama_sampler_init_{name}")
        if name not in _WITH_VOCABULARY:
            return make(*map(_encoded, arguments))
        with self._uses:
            arguments = self._vocab(), *arguments
            return self._dry_step(arguments) if name == "dry" else make(*map(_encoded, arguments))

    def _dry_step(self, arguments: tuple[Any, ...]) -> Any:
        # it looks for its breakers in all tokens, which takes long; the last one is kept to be cloned
        lib = bindings()
        with self._lock:
            if self._dry is None or self._dry[0] != arguments:
                old, self._dry = self._dry, (arguments, lib.llama_sampler_init_dry(*map(_encoded, arguments)))
                if old:
                    lib.llama_sampler_free(old[1])
            return lib.llama_sampler_clone(self._dry[1])

    def tokenize(self, text: str, special: bool, add_special: bool = False) -> list[int]:
        """Token ids; with `special`, texts like `<|endoftext|>` become the tokens that they name.

        With `add_special` the beginning-of-text token comes first, if the file says so (`add_bos_token`).
        """
        try:
            data = text.encode("utf-8")
        except UnicodeEncodeError as error:  # a lone surrogate
            raise UsageError(
                f"the text has U+{ord(text[error.start]):04X} at index {error.start}, which is no character"
            ) from error
        capacity = len(data) + 8  # a token is at least one byte
        tokens = (ctypes.c_int32 * capacity)()
        with self._uses:
            count = bindings().llama_tokenize(self._vocab(), data, len(data), tokens, capacity, False, special)
        if count < 0:
            raise RuntimeFailure(f"llama.cpp can not tokenize a text of {len(data)} bytes")
        # not C's own: for a file that names no such token it would take number 11, a comma
        return [self.bos, *tokens[:count]] if add_special and self.adds_bos else tokens[:count]

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The tokens' text; control tokens have none, bytes that are no UTF-8 become U+FFFD."""
        return b"".join(self.piece(token)[0] for token in tokens).decode("utf-8", "replace")

    def piece(self, token: int) -> tuple[bytes, bool]:
        """The bytes that a token stands for (none for a control token), and whether it ends a text."""
        found = self._pieces.get(token)
        if found is None:
            (token,) = token_ids((token,), self.vocabulary)
            with self._uses:
                ends = bool(bindings().llama_vocab_is_eog(self._vocab(), token))
                found = self._pieces[token] = self._read_token(token), ends
        return found

    def special_text(self, token: int) -> bytes:
        """The text of a token, also of a control token: its name."""
        with self._uses:
            return self._read_token(token, special=True)

    def _read_token(self, token: int, special: bool = False) -> bytes:
        to_piece, size = bindings().llama_token_to_piece, 256
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = to_piece(self._vocab(), token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count  # it says how much it needs

    @cached_property
    def ends(self) -> list[int]:
        """All tokens that end a text, but for pad tokens."""
        with self._uses:
            is_end, vocab = bindings().llama_vocab_is_eog, self._vocab()
            return [token for token in range(self.real_vocabulary) if is_end(vocab, token)]

    def _vocab(self) -> Any:
        if not self.handle:
            raise RuntimeFailure(f"the model {self.path} is closed", "Load it again.")
        return self.vocab

    def close(self) -> None:
        handle, self.handle = self.handle, None
        if handle:
            self._uses.wait()
            if self._dry:
                bindings().llama_sampler_free(self._dry[1])
            bindings().llama_model_free(handle)


class NativeContext:
    """The state of decoding: `slots` sequences, each with a KV cache of its own of `positions` cells.

    At most `batch` tokens are decoded in one go. `paused` is whether the last step did more than to decode.
    `flash_attention` and `kv_type` (a ggml type's number) change sums and memory; see docs/runtime.md.
    """

    def __init__(
        self,
        model: NativeModel,
        positions: int,
        *,
        slots: int = 1,
        batch: int = MAX_BATCH,
        threads: int = 1,
        flash_attention: bool = False,
        kv_type: int = F16,
        embeddings: bool = False,
    ) -> None:
        lib = bindings()
        params = lib.llama_context_default_params()
        params.n_ctx = -(-positions // CELLS) * CELLS * slots  # llama.cpp divides it by the slots and rounds up
        params.n_seq_max = slots
        params.n_batch = params.n_ubatch = max(min(positions, batch), slots)
        params.n_threads = params.n_threads_batch = threads
        name = "ENABLED" if flash_attention else "DISABLED"
        params.flash_attn_type = getattr(lib, f"LLAMA_FLASH_ATTN_TYPE_{name}")
        params.type_k = params.type_v = kv_type
        params.embeddings = embeddings
        params.no_perf = True
        params.offload_kqv = params.op_offload = False
        make, free = lib.llama_init_from_model, lib.llama_free
        self.handle = made(lambda: make(model.handle, params), free, huge_pages=model.wants_huge_pages)
        if not self.handle:
            what = f"a context of {positions} positions for {slots} sequence{'s' * (slots > 1)}"
            raise RuntimeFailure(f"llama.cpp can not set up {what}", "Is there enough memory?")
        self.vocabulary = model.vocabulary
        self.width = model.width
        self.positions = positions
        self.slots, self.threads, self.paused = slots, threads, False
        self.batch_size: int = params.n_batch
        self._decode = lib.llama_decode
        self._memory = lib.llama_get_memory(self.handle)
        self._batch = batch_ = lib.llama_batch_init(self.batch_size, 0, 1)
        self._tokens, self._positions, self._scored = batch_.token, batch_.pos, batch_.logits
        self._slots = [batch_.seq_id[index] for index in range(self.batch_size)]
        for index in range(self.batch_size):
            batch_.n_seq_id[index] = 1
        # as a number, for which no object has to be made; a view takes ten times as long to make as to find again
        self._logits_address = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(
            ctypes.cast(lib.llama_get_logits, ctypes.c_void_p).value or 0
        )
        self._view: tuple[int, npt.NDArray[np.float32]] = 0, np.empty((0, 0), np.float32)
        self._rows: tuple[int, list[Logits]] = 0, []  # likewise, each by itself and without pad tokens
        self._is_in_place = False  # whether a single row would be where the first of them is
        self._real_vocabulary = model.real_vocabulary

    def decode(self, tokens: Sequence[int], position: int, slot: int = 0, scored_from: int | None = None) -> None:
        """Appends at most `batch_size` tokens at `position`; logits are kept of the last, or from an index on."""
        if len(tokens) > self.batch_size:
            raise RuntimeFailure(f"{len(tokens)} tokens at once; this context takes {self.batch_size}")
        first_scored = len(tokens) - 1 if scored_from is None else scored_from
        for index, token in enumerate(tokens):
            self._tokens[index] = token
            self._positions[index] = position + index
            self._slots[index][0] = slot
            self._scored[index] = index >= first_scored
        self._is_in_place = False
        self._run(len(tokens), position + len(tokens) - 1)

    def decode_each(self, feeds: Sequence[Fed]) -> list[Logits]:
        """Appends a token to each of some sequences, by ascending slot, or several to one. Returns their logits,
        without pad tokens: views until the next decode, and perhaps more rows of earlier ones behind them."""
        # a decode empties the caches: what is called or made here costs several times what it seems to
        last = count = 0
        for feed in feeds:
            self._tokens[count] = feed.token
            self._positions[count] = position = feed.next_position
            self._slots[count][0] = feed.slot
            self._scored[count] = 1
            last = position if position > last else last
            count += 1
        self._run(count, last)
        # on the CPU they are there by now, one row where it was; the order of several is mended when they are asked for
        if count > 1 or not self._is_in_place:
            if self._rows[0] != self._logits_address(self.handle) or len(self._rows[1]) < count:
                self._rows = self._logits_address(self.handle), list(self.logits(count)[:, : self._real_vocabulary])
            self._is_in_place = True
        return self._rows[1]

    def _run(self, count: int, last_position: int) -> None:
        if last_position >= self.positions:  # behind them llama.cpp reads beyond the position table
            raise RuntimeFailure(f"position {last_position} is beyond the context of {self.positions}")
        self._batch.n_tokens = count
        status = self._decode(self.handle, self._batch)
        if status:
            raise RuntimeFailure(f"llama_decode failed with status {status} at position {last_position}")
        if pending:
            raise pending.pop()

    def logits(self, rows: int) -> npt.NDArray[np.float32]:
        """The logits of the last decode's `rows` scored tokens, (rows, vocabulary): a view until the next decode."""
        address = self._logits_address(self.handle)
        if self._view[0] != address or len(self._view[1]) != rows:
            pointer = ctypes.cast(address, ctypes.POINTER(ctypes.c_float))
            self._view = address, np.ctypeslib.as_array(pointer, (rows, self.vocabulary))
        return self._view[1]

    def embeddings(self, rows: int) -> npt.NDArray[np.float32]:
        """The final norm's output for the last decode's tokens, (rows, width): a view until the next decode."""
        return np.ctypeslib.as_array(bindings().llama_get_embeddings(self.handle), (rows, self.width))

    def keep(self, positions: int, slot: int = 0) -> None:
        """Forgets all but the first `positions` tokens of a sequence."""
        bindings().llama_memory_seq_rm(self._memory, slot, positions, -1)

    def copy(self, source: int, target: int) -> None:
        """Makes the sequence in the slot `target` the same as the one in `source`, cell by cell."""
        self.restore(target, self.save(source))

    def save(self, slot: int) -> State:
        """A sequence's cells as llama.cpp writes them."""
        lib = bindings()
        state = np.empty(lib.llama_state_seq_get_size(self.handle, slot), np.uint8)
        if lib.llama_state_seq_get_data(self.handle, state.ctypes.data_as(_BYTES), len(state), slot) != len(state):
            raise RuntimeFailure(f"llama.cpp can not save the sequence {slot}")
        return state

    def restore(self, slot: int, state: State) -> None:
        """Puts saved cells into a slot, in place of what is there."""
        lib = bindings()
        lib.llama_memory_seq_rm(self._memory, slot, 0, -1)
        if not lib.llama_state_seq_set_data(self.handle, state.ctypes.data_as(_BYTES), len(state), slot):
            raise RuntimeFailure(f"llama.cpp can not restore the sequence {slot}")

    def set_threads(self, threads: int) -> None:
        """From the next decode on."""
        bindings().llama_set_n_threads(self.handle, threads, threads)
        self.threads = threads

    def close(self) -> None:
        if self.handle:
            bindings().llama_batch_free(self._batch)
            bindings().llama_free(self.handle)
        self.handle = None


class NativeSampler:
    """A chain of samplers; each entry is a function's name behind `llama_sampler_init_`, and its arguments."""

    def __init__(self, model: NativeModel, steps: Sequence[tuple[Any, ...]]) -> None:
        lib = bindings()
        self.handle = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for name, *arguments in steps:
            step = model.sampler_step(name, *arguments)
            if not step:  # only a grammar can be wrong
                self.close()
                raise UsageError(f"llama.cpp can not read the {name}", "It writes to stderr where it is wrong.")
            lib.llama_sampler_chain_add(self.handle, step)
        self._array = lib.llama_token_data_array()
        self._apply = lib.llama_sampler_apply
        self._reserve(128)

    def apply(self, ids: npt.NDArray[np.intp], logits: npt.NDArray[np.float32]) -> int:
        """Hands these tokens to the chain. What it left of them is in `ids`, `logits` and `probabilities`.

        Returns the index of the chosen one there, or -1. The three are valid until the next call.
        """
        size = len(ids)
        if size > len(self.ids):
            self._reserve(size)
        self.ids[:size] = ids
        self.logits[:size] = logits
        array = self._array
        array.size = size
        array.selected = -1
        array.sorted = False
        self._apply(self.handle, ctypes.byref(array))
        return int(array.selected)

    def addresses(self) -> tuple[int | None, int | None]:
        """Of the chain, and of the function that applies one: for likeliest.c."""
        chain, apply = (ctypes.cast(pointer, ctypes.c_void_p) for pointer in (self.handle, self._apply))
        return chain.value, apply.value

    def _reserve(self, size: int) -> None:
        candidates = np.empty(size, TOKEN_DATA)
        self.ids, self.logits, self.probabilities = (candidates[name] for name in ("id", "logit", "p"))
        self._array.data = candidates.ctypes.data_as(ctypes.POINTER(bindings().llama_token_data))

    def accept(self, token: int) -> None:
        """Lets penalties and grammars know what was chosen."""
        bindings().llama_sampler_accept(self.handle, token)

    def close(self) -> None:
        if self.handle:
            bindings().llama_sampler_free(self.handle)
        self.handle = None


def _encoded(argument: Any) -> Any:
    """Texts as C strings, a tuple of them as an array of such."""
    if isinstance(argument, str):
        return argument.encode("utf-8")
    if isinstance(argument, tuple):
        return (ctypes.c_char_p * len(argument))(*(text.encode("utf-8") for text in argument))
    return argument
