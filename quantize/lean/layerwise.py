"""Runs a text through a GPT-2 half a block at a time (attention or MLP), and yields the inputs of each matrix."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.parallel import by_rows
from dgpt2_quant.quantize.calibration.numpy_gpt2 import Reference, attention, gelu

Array = npt.NDArray[np.floating[Any]]
Linear = Callable[[str, Array], Array]
"""Called with a matrix's name, without `.weight`, and inputs of some tokens, shape (tokens, columns); returns outputs.
It is called from several threads."""


class LayerwiseForward:
    """A forward pass over chunks of equal length, each a separate text; states have shape (all tokens, width)."""

    def __init__(self, reference: Reference, chunks: Sequence[Sequence[int]]) -> None:
        self.reference, self.length, self.count = reference, len(chunks[0]), len(chunks)
        self.halves = 2 * reference.sizes.layers
        self._tokens = np.concatenate([np.asarray(chunk) for chunk in chunks])
        self._positions = np.tile(np.arange(self.length), self.count)

    def embed(self, tables: Mapping[str, Array]) -> Array:
        """The first state, from these token and position tables."""
        found: Array = tables["token_embd.weight"][self._tokens] + tables["position_embd.weight"][self._positions]
        return found

    def half_block(self, half: int, x: Array, linear: Linear | None = None) -> Array:
        """The state after a half block: the attention (even) or the MLP (odd) of block `half // 2`."""
        apply = linear or self.reference.linear
        norm, first, second = half_block_names(half)

        def of_chunk(x: Array) -> Array:
            inner = apply(first, self.reference.norm(norm, x))
            y = apply(second, gelu(inner) if half % 2 else attention(inner, self.reference.sizes.heads))
            y += x
            return y

        return by_rows(of_chunk, x, x.shape[1], self.length)

    def inputs(self, x: Array, first_half: int = 0) -> Iterator[Array]:
        """Yields the input of each matrix of the blocks, in order, shape (tokens, columns).

        `x` is the state before `first_half`. It is brought up to date before the first matrix of a half is yielded.
        """
        for half in range(first_half, self.halves):
            norm, first, second = half_block_names(half)
            met = self.norm(norm, x)
            yield met
            met = self.second_input(half, self.linear(first, met))
            yield met
            if half + 1 < self.halves:
                x += self.linear(second, met)

    def norm(self, norm: str, x: Array) -> Array:
        """Applies a layer norm."""
        return by_rows(lambda part: self.reference.norm(norm, part), x, x.shape[1])

    def second_input(self, half: int, inner: Array) -> Array:
        """The input of a half block's second matrix, from the outputs of the first, which are overwritten."""
        if half % 2:
            return by_rows(gelu, inner, inner.shape[1], out=inner)
        heads = self.reference.sizes.heads
        return by_rows(lambda chunk: attention(chunk, heads), inner, inner.shape[1] // 3, self.length)

    def linear(self, name: str, x: Array) -> Array:
        """Applies a matrix and its bias, named without `.weight`."""
        outputs = len(self.reference.weights[f"{name}.bias"])
        return by_rows(lambda part: self.reference.linear(name, part), x, outputs)


def half_block_names(half: int) -> tuple[str, str, str]:
    """The names of a half block's norm and two matrices, without `.weight`."""
    names = ("ffn_norm", "ffn_up", "ffn_down") if half % 2 else ("attn_norm", "attn_qkv", "attn_output")
    norm, first, second = (f"blk.{half // 2}.{name}" for name in names)
    return norm, first, second
