"""One sequence whose bits do not depend on the number of threads, as fast as llama.cpp can be at each depth.

Flash attention makes prompts faster, and tokens at the beginning of a text. But for a single token that
sees 512 cells or more (llama.cpp pads them to 256) it splits the sum over them by the number of threads
(`ggml_compute_forward_flash_attn_ext_f16` in ggml-cpu/ops.cpp), and threads would change a text. Without it they never
do, and at that depth it is not faster any more. So single tokens from position 256 on are computed without, all else
with it. The two caches hold values in different orders; what the second one needs is carried over when it is used.
"""

import struct
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from .decoding import Fed, Logits, State
from .library import NativeContext

NEAR = 256  # positions of single tokens with flash attention


class ExactContext:
    """A `NativeContext` of one slot, made of two."""

    slots = 1

    def __init__(self, make: Callable[[int, bool], NativeContext], positions: int) -> None:
        """`make` gives a context of so many positions with or without flash attention, which the caller owns."""
        self.positions = positions
        self._make = make
        self._near = self._last = make(positions, True)
        self._far: NativeContext | None = None  # made when it is first needed
        self._carried = 0  # cells that the far context has
        self.vocabulary = self._near.vocabulary
        self.threads = self._near.threads

    def decode(self, tokens: Sequence[int], position: int, slot: int = 0, scored_from: int | None = None) -> None:
        """As `NativeContext.decode`."""
        self._last = self._near
        if len(tokens) == 1 and position >= NEAR:
            self._last = self._far_at(position)
        self._last.decode(tokens, position, slot, scored_from)

    def decode_each(self, feeds: Sequence[Fed]) -> list[Logits]:
        """As `NativeContext.decode_each`, of one row."""
        position = feeds[0].next_position
        if position < NEAR:
            return self._near.decode_each(feeds)
        return self._far_at(position).decode_each(feeds)

    def logits(self, rows: int) -> npt.NDArray[np.float32]:
        """As `NativeContext.logits`, of the last `decode`."""
        return self._last.logits(rows)

    def keep(self, positions: int, slot: int = 0) -> None:
        """As `NativeContext.keep`."""
        self._near.keep(positions, slot)
        if self._far is not None and self._carried > positions:
            self._far.keep(positions, slot)
            self._carried = positions

    def set_threads(self, threads: int) -> None:
        self.threads = threads
        for context in (self._near, self._far):
            if context is not None:
                context.set_threads(threads)

    def close(self) -> None:
        for context in (self._near, self._far):
            if context is not None:
                context.close()

    def _far_at(self, position: int) -> NativeContext:
        """The far context, with all cells before a position, and one more as soon as it decodes."""
        if self._far is None:
            self._far = self._make(self.positions, False)
            self._far.set_threads(self.threads)
        if self._carried < position:
            # the near one has them all: single tokens that it has not come behind those that the far one has
            self._far.restore(0, transposed(self._near.save(0)))
        self._carried = position + 1
        return self._far


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
