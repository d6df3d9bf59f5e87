"""A context of llama.cpp: decodes batches of tokens in the cells of its cache, and gives logits and hidden states."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import RuntimeFailure

from .batch_token import BatchToken, Logits, State, TokenIds
from .bindings import bindings, own
from .model import NativeModel
from .native_thread import Owned, in_native_thread

MAX_BATCH = 512  # tokens in one decode; the logits of a whole batch are kept, so it bounds memory
CELLS = 256  # llama.cpp rounds the size of a cache up to a multiple
F32, F16 = 0, 1  # enum ggml_type
KV_TYPES = {"f32": F32, "f16": F16, "bf16": 30, "q8_0": 8}
_BYTES = ctypes.POINTER(ctypes.c_uint8)


class NativeContext:
    """The decode state of `slots` sequences, each with a KV cache of `positions` cells.

    One decode computes at most `batch` tokens. docs/runtime.md has the effects of `flash_attention` and `kv_type` (the
    number of a ggml type).
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
        self.vocabulary = model.vocabulary
        self.width = model.width
        self.positions = positions
        self.slots, self.threads = slots, threads
        self.batch_size: int = params.n_batch
        self._decode = lib.llama_decode
        self._make_batch(lib)
        # as an integer, without ctypes' pointer object: creating a view takes ten times as long as finding it again
        self._logits_address = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(
            ctypes.cast(lib.llama_get_logits, ctypes.c_void_p).value or 0
        )
        self._forget_views()
        self._real_vocabulary = model.real_vocabulary
        self._owner: Owned | None = None
        try:
            in_native_thread(lambda: self._make(model, params))
        except BaseException:
            self.close()  # the error's traceback refers to this
            raise
        if self._owner is None:
            what = f"a context of {positions} positions for {slots} sequence{'s' * (slots > 1)}"
            raise RuntimeFailure(f"llama.cpp cannot create {what}", "Free memory, or lower `ctx_size` or `parallel`.")
        self._memory: Any = lib.llama_get_memory(self.owner.pointer)

    def _make(self, model: NativeModel, params: Any) -> None:
        lib, owner = bindings(), model.owner
        self._owner = own(
            lambda: lib.llama_init_from_model(owner.pointer, params),
            lib.llama_free,
            owner,
            huge_pages=model.wants_huge_pages,
        )

    def _make_batch(self, lib: Any) -> None:
        """Allocates the arrays of a `llama_batch` in Python: they cannot be freed while they are written to."""
        size = self.batch_size
        integers = ctypes.c_int32 * size
        self._tokens, self._positions, self._slots = integers(), integers(), integers()
        self._scored = (ctypes.c_int8 * size)()
        of_each = ctypes.POINTER(ctypes.c_int32)
        addresses = (ctypes.addressof(self._slots) + 4 * index for index in range(size))
        self._batch = lib.llama_batch(
            n_tokens=0,
            token=self._tokens,
            pos=self._positions,
            n_seq_id=integers(*[1] * size),
            seq_id=(of_each * size)(*(ctypes.cast(address, of_each) for address in addresses)),
            logits=self._scored,
        )

    def _forget_views(self) -> None:
        self._view: tuple[int, npt.NDArray[np.float32]] = 0, np.empty((0, 0), np.float32)
        self._rows: tuple[int, list[Logits]] = 0, []  # the same row by row, without pad tokens
        self._is_in_place = False  # whether a single row is where the first of them is

    @property
    def owner(self) -> Owned:
        """Keeps the context in memory while a call holds it. Raises `RuntimeFailure` if the context is closed."""
        if self._owner is None:
            raise RuntimeFailure("the model was closed meanwhile", "Load it again.")
        return self._owner

    def decode(self, tokens: TokenIds, position: int, slot: int = 0, scored_from: int | None = None) -> None:
        """Appends at most `batch_size` tokens at `position`. Keeps the logits of the last, or from `scored_from` on."""
        if len(tokens) > self.batch_size:
            raise RuntimeFailure(f"a decode takes at most {self.batch_size} tokens in this context, not {len(tokens)}")
        first_scored = len(tokens) - 1 if scored_from is None else scored_from
        for index, token in enumerate(tokens):
            self._tokens[index] = token
            self._positions[index] = position + index
            self._slots[index] = slot
            self._scored[index] = index >= first_scored
        self._is_in_place = False
        self._run(len(tokens), position + len(tokens) - 1)

    def decode_each(self, tokens: Sequence[BatchToken]) -> list[Logits]:
        """Appends one token to each of several sequences, by ascending slot, or several tokens to one. Returns their
        logits without pad tokens: views until the next decode, perhaps followed by rows of earlier decodes."""
        # a decode evicts Python from the CPU caches: calls and objects here cost several times as much as elsewhere
        last = count = 0
        for token in tokens:
            self._tokens[count] = token.token
            self._positions[count] = position = token.next_position
            self._slots[count] = token.slot
            self._scored[count] = 1
            last = position if position > last else last
            count += 1
        owner = self._run(count, last)
        # on the CPU they are complete now, and a single row stays in place; llama_get_logits sorts several rows
        if count > 1 or not self._is_in_place:
            address = self._logits_address(owner.pointer)
            if self._rows[0] != address or len(self._rows[1]) < count:
                self._rows = address, list(self.logits(count)[:, : self._real_vocabulary])
            self._is_in_place = True
        return self._rows[1]

    def _run(self, count: int, last_position: int) -> Owned:
        if last_position >= self.positions:  # otherwise llama.cpp reads beyond the position table
            raise RuntimeFailure(f"a position must be less than {self.positions} in this context, not {last_position}")
        self._batch.n_tokens = count
        owner = self._owner or self.owner
        status = self._decode(owner.pointer, self._batch)
        if status:
            raise RuntimeFailure(f"llama_decode failed with status {status} at position {last_position}")
        return owner

    def logits(self, rows: int) -> npt.NDArray[np.float32]:
        """The logits of the last decode's `rows` scored tokens, (rows, vocabulary): a view until the next decode."""
        address = self._logits_address(self.owner.pointer)
        if self._view[0] != address or len(self._view[1]) != rows:
            self._view = address, self._array(address, rows, self.vocabulary)
        return self._view[1]

    def embeddings(self, rows: int) -> npt.NDArray[np.float32]:
        """The final norm's output for the last decode's tokens, (rows, width): a view until the next decode."""
        pointer = bindings().llama_get_embeddings(self.owner.pointer)
        return self._array(ctypes.addressof(pointer.contents), rows, self.width)

    def _array(self, address: int, rows: int, columns: int) -> npt.NDArray[np.float32]:
        """Memory of C as an array that keeps this context in memory as long as it exists."""
        return np.asarray(_Numbers(self._owner, address, rows, columns))

    def keep(self, positions: int, slot: int = 0) -> None:
        """Removes all but the first `positions` tokens of a sequence."""
        owner = self._owner
        if owner is not None:
            bindings().llama_memory_seq_rm(self._memory, slot, positions, -1)

    def forget(self) -> None:
        """Empties all sequences."""
        for slot in range(self.slots):
            self.keep(0, slot)

    def copy(self, source: int, target: int) -> None:
        """Copies the sequence in the slot `source` to the slot `target`, cell by cell."""
        self.restore(target, self.save(source))

    def save(self, slot: int) -> State:
        """The cells of a sequence, as llama.cpp serializes them."""
        lib, owner = bindings(), self.owner
        state = np.empty(lib.llama_state_seq_get_size(owner.pointer, slot), np.uint8)
        if lib.llama_state_seq_get_data(owner.pointer, state.ctypes.data_as(_BYTES), len(state), slot) != len(state):
            raise RuntimeFailure(f"llama.cpp cannot save the sequence {slot}")
        return state

    def restore(self, slot: int, state: State) -> None:
        """Replaces the cells of a slot by saved ones."""
        lib, owner = bindings(), self.owner
        lib.llama_memory_seq_rm(self._memory, slot, 0, -1)
        if not lib.llama_state_seq_set_data(owner.pointer, state.ctypes.data_as(_BYTES), len(state), slot):
            raise RuntimeFailure(f"llama.cpp cannot restore the sequence {slot}")

    def set_threads(self, threads: int) -> None:
        """Sets the number of threads from the next decode on."""
        owner = self.owner
        bindings().llama_set_n_threads(owner.pointer, threads, threads)
        self.threads = threads

    def close(self) -> None:
        """Frees it after the calls and arrays that use it are gone. Closing twice is fine."""
        self._owner = None
        self._forget_views()


class _Numbers:
    """Memory of C through NumPy's array interface (https://numpy.org/doc/stable/reference/arrays.interface.html)."""

    def __init__(self, owner: Owned | None, address: int, rows: int, columns: int) -> None:
        self.owner = owner
        self.__array_interface__ = {"version": 3, "shape": (rows, columns), "typestr": "<f4", "data": (address, False)}
