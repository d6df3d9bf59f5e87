"""A context with flash attention at the beginning of a text and plain attention after that, whichever is faster.

Flash attention is faster for prompts and at the beginning of texts, most of all for several sequences together. For
single tokens at depth it is much slower: its 16-bit sums cost more than they save. From 512 cells on it also splits the
sums by the number of threads (`ggml_compute_forward_flash_attn_ext_f16` in ggml-cpu/ops.cpp), so threads would change a
text. Therefore prompts, and tokens before position `FLASH_POSITIONS`, are computed with flash attention in one context,
and the tokens after them without it in a second one, *plain*, to which a sequence's cells are copied. docs/decisions.md
has the cost of each context alone.
"""

import struct
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from .batch_token import BatchToken, Logits, State, TokenIds
from .context import NativeContext

FLASH_POSITIONS = 128


class DepthContext:
    """Two contexts with the interface of a `NativeContext`."""

    def __init__(self, new_context: Callable[..., NativeContext]) -> None:
        """`new_context` takes the keyword `flash_attention`."""
        self._new_context = new_context
        self._flash = self._last = new_context(flash_attention=True)
        self._plain: NativeContext | None = None  # created when first needed, then kept
        self._left: dict[int, int] = {}  # the slots now in the plain context -> the cells that the flash one has
        self._both: dict[int, int] = {}  # the slots that are back in the flash one -> the cells that the plain one has
        self.positions = self._flash.positions
        self.slots = self._flash.slots
        self.vocabulary = self._flash.vocabulary
        self.threads = self._flash.threads

    def decode(self, tokens: TokenIds, position: int, slot: int = 0, scored_from: int | None = None) -> None:
        """As `NativeContext.decode`."""
        self._last = self._flash
        if slot in self._left or (len(tokens) == 1 and position >= FLASH_POSITIONS):
            self._last = self._plain_with(slot, position)
        self._last.decode(tokens, position, slot, scored_from)

    def decode_each(self, tokens: Sequence[BatchToken]) -> list[Logits]:
        """As `NativeContext.decode_each`. If one token needs the plain context, all are computed in it."""
        for token in tokens:
            if token.next_position >= FLASH_POSITIONS or token.slot in self._left:
                break
        else:
            return self._flash.decode_each(tokens)
        for token in tokens:
            plain = self._plain_with(token.slot, token.next_position)
        return plain.decode_each(tokens)

    def logits(self, rows: int) -> npt.NDArray[np.float32]:
        """As `NativeContext.logits`, of the last `decode`."""
        return self._last.logits(rows)

    def keep(self, positions: int, slot: int = 0) -> None:
        """As `NativeContext.keep`."""
        self._flash.keep(positions, slot)
        if positions <= self._left.get(slot, -1):
            del self._left[slot]
            self._both[slot] = positions
        elif slot in self._both:
            self._both[slot] = min(self._both[slot], positions)
        if self._plain is not None:
            self._plain.keep(positions, slot)

    def copy(self, source: int, target: int) -> None:
        """As `NativeContext.copy`."""
        self.keep(0, target)
        self._flash.copy(source, target)
        if self._plain is not None and source in self._left:
            self._plain.copy(source, target)
            self._left[target] = self._left[source]

    def forget(self) -> None:
        """Empties all slots, also after an interrupt or an error."""
        self._left.clear()
        self._both.clear()
        for slot in range(self.slots):
            self.keep(0, slot)

    def set_threads(self, threads: int) -> None:
        """As `NativeContext.set_threads`."""
        self.threads = threads
        for context in (self._flash, self._plain):
            if context is not None:
                context.set_threads(threads)

    def close(self) -> None:
        """As `NativeContext.close`."""
        for context in (self._flash, self._plain):
            if context is not None:
                context.close()

    def _plain_with(self, slot: int, begin: int) -> NativeContext:
        """The plain context, with a sequence's cells before position `begin`."""
        plain = self._plain
        if plain is None:
            plain = self._plain = self._new_context(flash_attention=False)
        if plain.threads != self.threads:
            plain.set_threads(self.threads)
        if slot not in self._left:
            if self._both.pop(slot, None) != begin:
                plain.restore(slot, transpose(self._flash.save(slot)))
            self._left[slot] = begin
        return plain


def transpose(state: State) -> State:
    """Transposes the values in a sequence's saved state in place: from rows of cells to rows of channels.

    llama.cpp keeps them in rows of channels without flash attention. The layout is that of
    `llama_kv_cache::state_write` (src/llama-kv-cache.cpp) in llama-cpp-python 0.3.36, for float values, and for cells
    in one stream of the cache.
    """
    at = 12  # magic, sequence, number of streams; then for each stream its cells
    while not (cells := struct.unpack_from("<I", state.data, at)[0]):
        at += 4
    at += 4 + 12 * cells  # each cell: its position, and its one sequence
    _, layers = struct.unpack_from("<II", state.data, at)
    struct.pack_into("<I", state.data, at, 1)  # values are in rows of channels
    at += 8
    for _ in range(layers):  # keys: type, bytes of a row, rows
        (row,) = struct.unpack_from("<Q", state.data, at + 4)
        at += 12 + cells * row
    for _ in range(layers):  # values likewise; by channels: type, bytes of a value, channels, rows
        kind, row = struct.unpack_from("<iQ", state.data, at)
        dtype = np.dtype(_VALUES[kind])
        channels = row // dtype.itemsize
        struct.pack_into("<iII", state.data, at, kind, dtype.itemsize, channels)
        values = state[at + 12 : at + 12 + cells * row].view(dtype)
        values[:] = values.reshape(cells, channels).T.ravel()
        at += 12 + cells * row
    return state


_VALUES = {0: np.uint32, 1: np.uint16}  # ggml's type -> dtype: F32, F16
