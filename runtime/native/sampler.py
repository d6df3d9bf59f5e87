"""Chains of llama.cpp's samplers, applied to the candidates for the next token."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import RuntimeFailure, UsageError

from .bindings import TOKEN_DATA, bindings
from .model import WITH_VOCABULARY, NativeModel
from .native_thread import Owned


class NativeSampler:
    """A chain of samplers. Each step is the name after `llama_sampler_init_`, and the function's arguments."""

    def __init__(self, model: NativeModel, steps: Sequence[tuple[Any, ...]]) -> None:
        lib = bindings()
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        # the model only if it reads the vocabulary: a text that is never ended must not keep the model in memory
        keeps = [model.owner] if any(name in WITH_VOCABULARY for name, *_ in steps) else []
        self._owner: Owned | None = Owned(chain, lib.llama_sampler_free, *keeps)
        for name, *arguments in steps:
            step = model.sampler_step(name, *arguments)
            if not step:  # only a grammar can be invalid
                self.close()
                raise UsageError(f"llama.cpp cannot read `{name}`", "Its message on stderr names the place.")
            lib.llama_sampler_chain_add(chain, step)
        self._array = lib.llama_token_data_array()
        self._apply = lib.llama_sampler_apply
        self._accept = lib.llama_sampler_accept
        self._reserve(128)

    @property
    def owner(self) -> Owned:
        """Keeps the chain in memory while a call holds it. Raises `RuntimeFailure` if the chain is closed."""
        if self._owner is None:
            raise RuntimeFailure("the text has ended, so no token can be sampled")
        return self._owner

    def apply(self, ids: npt.NDArray[np.intp], logits: npt.NDArray[np.float32]) -> int:
        """Applies the chain to these tokens. The tokens that are left are in `ids`, `logits` and `probabilities`.

        Returns the index of the chosen one, or -1. The three arrays are valid until the next call.
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
        owner = self.owner
        self._apply(owner.pointer, ctypes.byref(array))
        return int(array.selected)

    def _reserve(self, size: int) -> None:
        candidates = np.empty(size, TOKEN_DATA)
        self.ids, self.logits, self.probabilities = (candidates[name] for name in ("id", "logit", "p"))
        self._array.data = candidates.ctypes.data_as(ctypes.POINTER(bindings().llama_token_data))

    def accept(self, token: int) -> None:
        """Reports the chosen token to penalties and grammars."""
        owner = self.owner
        self._accept(owner.pointer, token)

    def close(self) -> None:
        self._owner = None
