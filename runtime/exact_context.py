"""One sequence whose bits do not depend on the number of threads, as fast as llama.cpp can be at each depth.

Flash attention makes a token an eighth faster at the beginning of a text. But as soon as it sees 512 cells (llama.cpp
pads them to 256), it splits the sum over a single token's cells by the number of threads
(`ggml_compute_forward_flash_attn_ext_f16` in ggml-cpu/ops.cpp), and threads would change a text. Without it they never
do, and at that depth it is not faster any more. So the first 256 positions are computed with it, the others without.
The two caches hold values in different orders; what the second one needs is carried over once a text is that long.
"""

import struct
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from .library import NativeContext, State

NEAR = 256  # positions with flash attention


class ExactContext:
    """A `NativeContext` of one slot, made of two. `far` is made when it is first needed."""

    slots = 1

    def __init__(self, make: Callable[[int, bool], NativeContext], positions: int) -> None:
        """`make` gives a context of so many positions with or without flash attention, which the caller owns."""
        self.positions = positions
        self._make = make
        self._near = self._last = make(min(positions, NEAR), True)
        self._far: NativeContext | None = None
        self._carried = 0  # positions that the far context has
        self.vocabulary = self._near.vocabulary

    @property
    def threads(self) -> int:
        return self._near.threads

    @property
    def far(self) -> NativeContext:
        """The one without flash attention, of all positions. Who uses it by itself calls `keep(0)` before and after."""
        if self._far is None:
            self._far = self._make(self.positions, False)
            self._far.set_threads(self.threads)
        return self._far

    def decode(self, tokens: Sequence[int], position: int, slot: int = 0, scored_from: int | None = None) -> None:
        """As `NativeContext.decode`; a batch lies on one side of `NEAR`."""
        self._context_at(position).decode(tokens, position, slot, scored_from)
        if position >= NEAR:
            self._carried = position + len(tokens)

    def decode_each(self, rows: Sequence[tuple[int, int, int]]) -> npt.NDArray[np.float32]:
        """As `NativeContext.decode_each`, of one row."""
        position = rows[0][1]
        if position < NEAR:
            return self._near.decode_each(rows)
        logits = self._context_at(position).decode_each(rows)
        self._carried = position + 1
        return logits

    def logits(self, rows: int) -> npt.NDArray[np.float32]:
        """Of the last `decode`."""
        return self._last.logits(rows)

    def keep(self, positions: int, slot: int = 0) -> None:
        self._near.keep(min(positions, NEAR), slot)
        if self._far is not None:
            self._carried = min(self._carried, positions)
            self._far.keep(self._carried if positions > NEAR else 0, slot)
            if positions <= NEAR:
                self._carried = 0

    def set_threads(self, threads: int) -> None:
        for context in (self._near, self._far):
            if context is not None:
                context.set_threads(threads)

    def close(self) -> None:
        for context in (self._near, self._far):
            if context is not None:
                context.close()

    def _context_at(self, position: int) -> NativeContext:
        self._last = self._near
        if position >= NEAR:
            self._last = self.far
            if self._carried < NEAR:
                self.far.restore(0, transposed(self._near.save(0)))
        return self._last


def transposed(state: State) -> State:
    """The saved state of a sequence, its values turned from a row for each cell to a row for each channel.

    That is how llama.cpp keeps them without flash attention. The layout is that of `llama_kv_cache::state_write`
    (src/llama-kv-cache.cpp) in llama-cpp-python 0.3.36, for one stream of float values.
    """
    at = 12  # magic, sequence, number of streams
    (cells,) = struct.unpack_from("<I", state.data, at)
    at += 4 + 12 * cells  # each with its position, and the one sequence that it belongs to
    head = at
    (layers,) = struct.unpack_from("<I", state.data, at + 4)
    at += 8
    for _ in range(layers):  # keys: type, bytes of a row, rows
        (row,) = struct.unpack_from("<Q", state.data, at + 4)
        at += 12 + cells * row
    parts = [state[:head], np.frombuffer(struct.pack("<II", 1, layers), np.uint8), state[head + 8 : at]]
    for _ in range(layers):  # values likewise
        kind, row = struct.unpack_from("<iQ", state.data, at)
        dtype = np.dtype(_VALUES[kind])
        rows = state[at + 12 : at + 12 + cells * row].view(dtype).reshape(cells, -1)
        head_of_values = struct.pack("<iII", kind, dtype.itemsize, rows.shape[1])
        parts += [np.frombuffer(head_of_values, np.uint8), np.ascontiguousarray(rows.T).reshape(-1).view(np.uint8)]
        at += 12 + cells * row
    return np.concatenate(parts)


_VALUES = {0: np.uint32, 1: np.uint16}  # by ggml's type: F32, F16
