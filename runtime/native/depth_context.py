"""Sequences whose attention is computed in the faster way at each depth, and whose bits do not depend on threads.

Flash attention is faster for prompts, and at the beginning of texts, most of all of several together. For single
tokens at depth it is much slower: its sums in 16 bits cost more than they save; and from 512 cells on it splits them by
the number of threads (`ggml_compute_forward_flash_attn_ext_f16` in ggml-cpu/ops.cpp), so that threads would change a
text. So prompts, and tokens before position `FLASH_POSITIONS`, are computed with flash attention in one context, and
the tokens after them without it in another one, *plain*, to which a sequence's cells are copied. docs/decisions.md has
what each of the two would lose by itself.
"""

import struct
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from .batch_token import Fed, Logits, State
from .model_context import NativeContext

FLASH_POSITIONS = 128


class DepthContext:
    """A `NativeContext` made of two."""

    def __init__(self, make: Callable[[bool], NativeContext]) -> None:
        """`make` gives a context with or without flash attention."""
        self._make = make
        self._flash = self._last = make(True)
        self._plain: NativeContext | None = None  # made when it is first needed, and then kept
        self._left: dict[int, int] = {}  # the slots that went on in the plain one: how many cells the flash one has
        self._both: dict[int, int] = {}  # the slots that are back: how many of their cells the plain one has, too
        self.positions = self._flash.positions
        self.slots = self._flash.slots
        self.vocabulary = self._flash.vocabulary
        self.threads = self._flash.threads

    def decode(self, tokens: Sequence[int], position: int, slot: int = 0, scored_from: int | None = None) -> None:
        """As `NativeContext.decode`."""
        self._last = self._flash
        if slot in self._left or (len(tokens) == 1 and position >= FLASH_POSITIONS):
            self._last = self._plain_with(slot, position)
        self._last.decode(tokens, position, slot, scored_from)

    def decode_each(self, feeds: Sequence[Fed]) -> list[Logits]:
        """As `NativeContext.decode_each`. All are computed in the plain context if one of them has to be."""
        for feed in feeds:
            if feed.next_position >= FLASH_POSITIONS or feed.slot in self._left:
                break
        else:
            return self._flash.decode_each(feeds)
        for feed in feeds:
            plain = self._plain_with(feed.slot, feed.next_position)
        return plain.decode_each(feeds)

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
        """Empties all slots, whatever state an interrupt or an error left them in."""
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
            plain = self._plain = self._make(False)
        if plain.threads != self.threads:
            plain.set_threads(self.threads)
        if slot not in self._left:
            if self._both.pop(slot, None) != begin:
                plain.restore(slot, transpose(self._flash.save(slot)))
            self._left[slot] = begin
        return plain


def transpose(state: State) -> State:
    """Turns the values of a sequence's saved state from a row for each cell to a row for each channel, in place.

    That is how llama.cpp keeps them without flash attention. The layout is that of `llama_kv_cache::state_write`
    (src/llama-kv-cache.cpp) in llama-cpp-python 0.3.36, for float values, and for cells in one stream of the cache.
    """
    at = 12  # magic, sequence, number of streams: of each its cells
    while not (cells := struct.unpack_from("<I", state.data, at)[0]):
        at += 4
    at += 4 + 12 * cells  # each with its position, and the one sequence that it belongs to
    _, layers = struct.unpack_from("<II", state.data, at)
    struct.pack_into("<I", state.data, at, 1)  # whether values are by channel
    at += 8
    for _ in range(layers):  # keys: type, bytes of a row, rows
        (row,) = struct.unpack_from("<Q", state.data, at + 4)
        at += 12 + cells * row
    for _ in range(layers):  # values likewise; by channel: type, bytes of a value, channels, all their rows
        kind, row = struct.unpack_from("<iQ", state.data, at)
        dtype = np.dtype(_VALUES[kind])
        channels = row // dtype.itemsize
        struct.pack_into("<iII", state.data, at, kind, dtype.itemsize, channels)
        values = state[at + 12 : at + 12 + cells * row].view(dtype)
        values[:] = values.reshape(cells, channels).T.ravel()
        at += 12 + cells * row
    return state


_VALUES = {0: np.uint32, 1: np.uint16}  # by ggml's type: F32, F16
