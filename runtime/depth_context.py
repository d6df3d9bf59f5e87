"""Sequences whose attention is computed as is fastest at their depth, and whose bits do not depend on threads.

For tokens one at a time, flash attention is fastest at the beginning of a text. Further on its sums in 16 bits cost
more than it saves; and in front of 512 cells (llama.cpp pads them to 256) it splits them by the number of threads
(`ggml_compute_forward_flash_attn_ext_f16` in ggml-cpu/ops.cpp), so that threads would change a text. Without it they
never do. But there llama.cpp keeps the values of a channel side by side, in a row as long as the context, and such rows
are read fastest when they are full. So prompts, and tokens before position `NEAR`, are computed with flash attention in
a context of all positions, the *near* one, and tokens behind without, in a *far* one hardly larger than what is in it.
"""

import struct
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from .decoding import Fed, Logits, State
from .library import CELLS, NativeContext

NEAR = 128  # positions of single tokens with flash attention


class DepthContext:
    """A `NativeContext` made of two."""

    def __init__(self, make: Callable[[int, bool], NativeContext], positions: int) -> None:
        """`make` gives a context of so many positions, with or without flash attention."""
        self.positions = positions
        self._make = make
        self._near = self._last = make(positions, True)
        self._far: NativeContext | None = None  # made when it is first needed
        self._left: dict[int, int] = {}  # the slots that went on in the far context: how many cells the near one has
        self._both: dict[int, int] = {}  # the slots that are back: how many of their cells the far one has, too
        self.slots = self._near.slots
        self.vocabulary = self._near.vocabulary
        self.threads = self._near.threads
        self.paused = False

    def decode(self, tokens: Sequence[int], position: int, slot: int = 0, scored_from: int | None = None) -> None:
        """As `NativeContext.decode`."""
        self._last = self._near
        if slot in self._left or (len(tokens) == 1 and position >= NEAR):
            self._last = self._far_with(slot, position, position + len(tokens))
        self._last.decode(tokens, position, slot, scored_from)

    def decode_each(self, feeds: Sequence[Fed]) -> list[Logits]:
        """As `NativeContext.decode_each`. All are computed in the far context if one of them has to be."""
        self.paused = False
        for feed in feeds:
            if feed.next_position >= NEAR or feed.slot in self._left:
                break
        else:
            return self._near.decode_each(feeds)
        for feed in feeds:
            far = self._far_with(feed.slot, feed.next_position, feed.next_position + 1)
        return far.decode_each(feeds)

    def logits(self, rows: int) -> npt.NDArray[np.float32]:
        """As `NativeContext.logits`, of the last `decode`."""
        return self._last.logits(rows)

    def keep(self, positions: int, slot: int = 0) -> None:
        """As `NativeContext.keep`."""
        self._near.keep(positions, slot)
        if positions <= self._left.get(slot, -1):
            del self._left[slot]
            self._both[slot] = positions
        elif slot in self._both:
            self._both[slot] = min(self._both[slot], positions)
        if self._far is not None:
            self._far.keep(positions, slot)

    def copy(self, source: int, target: int) -> None:
        """As `NativeContext.copy`."""
        self.keep(0, target)
        self._near.copy(source, target)
        if self._far is not None and source in self._left:
            self._far.copy(source, target)
            self._left[target] = self._left[source]

    def set_threads(self, threads: int) -> None:
        """As `NativeContext.set_threads`."""
        self.threads = threads
        for context in (self._near, self._far):
            if context is not None:
                context.set_threads(threads)

    def close(self) -> None:
        """As `NativeContext.close`."""
        for context in (self._near, self._far):
            if context is not None:
                context.close()

    def _far_with(self, slot: int, begin: int, end: int) -> NativeContext:
        """The far context, with a sequence's cells before position `begin`, and room for those before `end`."""
        far = self._far
        if far is None or end > far.positions or not (self._left or self._both.get(slot) == begin):
            far = self._far = self._far_for(end)
        if slot not in self._left:
            if self._both.pop(slot, None) != begin:
                self.paused = True
                far.restore(slot, transpose(self._near.save(slot)))
            self._left[slot] = begin
        return far

    def _far_for(self, end: int) -> NativeContext:
        """The far context as one that is just large enough, with the cells of who is in it."""
        positions = min(-(-end // CELLS) * CELLS, self.positions)
        old = self._far
        if old is not None and old.positions == positions:
            return old
        self.paused = True
        new = self._make(positions, False)
        new.set_threads(self.threads)
        if old is not None:
            for slot in self._left:
                new.restore(slot, old.save(slot))
            self._both.clear()
            old.close()
        return new


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
