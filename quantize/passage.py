"""A text's way through a model, half a block at a time, with any half computed in another way."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .reference import Reference, attend, gelu

Array = npt.NDArray[np.floating[Any]]
Linear = Callable[[str, Array], Array]
"""Called with a matrix's name, without `.weight`, and its inputs, shape (tokens, columns), for its outputs."""


class Passage:
    """Chunks of tokens, all of one length, each a text of its own; states have the shape (all tokens, width)."""

    def __init__(self, reference: Reference, chunks: Sequence[Sequence[int]]) -> None:
        self.reference, self.length, self.count = reference, len(chunks[0]), len(chunks)
        self.halves = 2 * reference.sizes.layers
        self._tokens = np.concatenate([np.asarray(chunk) for chunk in chunks])
        self._positions = np.tile(np.arange(self.length), self.count)

    def looked_up(self, tables: Mapping[str, Array]) -> Array:
        """The first state, by these tables for tokens and positions."""
        found: Array = tables["token_embd.weight"][self._tokens] + tables["position_embd.weight"][self._positions]
        return found

    def after(self, half: int, x: Array, linear: Linear | None = None) -> Array:
        """The state behind a half block: the attention (even) or the MLP (odd) of block `half // 2`."""
        reference = self.reference
        apply, name = linear or reference.linear, f"blk.{half // 2}"
        if half % 2:
            return x + apply(f"{name}.ffn_down", gelu(apply(f"{name}.ffn_up", reference.norm(f"{name}.ffn_norm", x))))
        fused = apply(f"{name}.attn_qkv", reference.norm(f"{name}.attn_norm", x))
        return x + apply(f"{name}.attn_output", self.attend(fused))

    def attend(self, fused: Array) -> Array:
        """Attention within each chunk."""
        heads = self.reference.sizes.heads
        return np.concatenate([attend(part, heads) for part in np.split(fused, self.count)])
