"""A loaded model: text to tokens, tokens to text, generation and logits, from Python.

from dgpt2_quant.runtime import Model

with Model.load("distilgpt2.Q4_K_M.gguf") as model:
    for piece in model.stream("Once upon a time", max_tokens=64, seed=1):
        print(piece, end="", flush=True)
"""

import secrets
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from dgpt2_quant.quantize.cores import usable_cores
from dgpt2_quant.quantize.errors import RuntimeFailure, UsageError
from dgpt2_quant.quantize.gguf_file import require_file

from .generate import Completion, Generation
from .library import NativeContext, NativeModel
from .sampling import Sampling
from .validate import check_model_file

DEFAULT_MAX_TOKENS = 128
_SEEDS = 2**32 - 1  # llama.cpp takes the last number of 32 bits (LLAMA_DEFAULT_SEED) for "draw one yourself"


class Model:
    """A GGUF file in memory with one context. Not for use by several threads at once.

    `positions` is the context's length in tokens, `vocabulary` the number of logits, `threads` what decoding uses,
    `quant_type` the level's name (None where the file does not say).
    """

    def __init__(
        self, path: Path, native: NativeModel, positions: int, threads: int, quant_type: str | None = None
    ) -> None:
        self.path = path
        self.quant_type = quant_type
        self.positions = positions
        self.threads = threads
        self.vocabulary = native.vocabulary
        self._native: NativeModel | None = native
        self._context: NativeContext | None = None
        self._context = NativeContext(native, positions, threads)
        self._bytes: dict[int, bytes] = {}
        self._prompt: tuple[list[int], npt.NDArray[np.float32]] | None = None  # what the KV cache begins with
        self._turn: Generation | None = None

    @classmethod
    def load(cls, path: str | Path, *, ctx_size: int | None = None, threads: int | Literal["auto"] = "auto") -> Self:
        """Loads a GGUF file, checked first (llama.cpp aborts the process on a malformed one).

        `ctx_size` positions at the most (default: the model's own number, which it can not exceed); `threads`
        defaults to the usable cores. Raises `ModelNotFoundError`, `GGUFError`, `UsageError` or `RuntimeFailure`.
        """
        path = require_file(Path(path))
        if ctx_size is not None and ctx_size < 1:
            raise UsageError(f"the context size is {ctx_size}; it is at least 1")
        count = usable_cores() if threads == "auto" else threads
        if not 1 <= count <= 512:
            raise UsageError(f"{count} threads were asked for; 1 to 512 are possible, or auto")
        header = check_model_file(path)
        trained: int = header.metadata["gpt2.context_length"]
        native = NativeModel(path)
        try:
            return cls(path, native, min(ctx_size or trained, trained), count, header.quant_type)
        except BaseException:
            native.close()
            raise

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        ignore_eos: bool = False,
        **sampling: Any,
    ) -> Generation:
        """Starts a generation: iterate over it for pieces of text.

        `sampling` takes the fields of `Sampling` (temperature, top_k, ...). An empty prompt begins a new text. The
        seed fixes the text (default: a random one, found in `.seed`). `ignore_eos` goes on behind an end-of-text
        token, so that a measurement has its full length. Raises `UsageError` for a prompt that does
        not fit the context.
        """
        tokens = self.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
        tokens = tokens or [self._open().bos]
        if len(tokens) > self.positions:
            raise UsageError(
                f"the prompt has {len(tokens)} tokens; this model has {self.positions} positions",
                "Shorten the prompt.",
            )
        self._check_tokens(tokens)
        if max_tokens < 0:
            raise UsageError(f"{max_tokens} tokens were asked for")
        return Generation(
            self,
            tokens,
            max_tokens,
            Sampling(**sampling),
            secrets.randbelow(_SEEDS) if seed is None else seed % _SEEDS,
            [stop] if isinstance(stop, str) else stop,
            ignore_eos,
        )

    def generate(
        self,
        prompts: str | Sequence[str],
        *,
        num_return_sequences: int = 1,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        **sampling: Any,
    ) -> list[list[Completion]]:
        """`num_return_sequences` completions for each prompt; sequence i has the seed `seed + i`."""
        if num_return_sequences < 1:
            raise UsageError(f"{num_return_sequences} sequences were asked for; at least 1 is needed")
        first = secrets.randbelow(_SEEDS) if seed is None else seed
        results = []
        for prompt in [prompts] if isinstance(prompts, str) else prompts:
            completions = []
            for number in range(num_return_sequences):
                generation = self.stream(prompt, max_tokens=max_tokens, seed=first + number, stop=stop, **sampling)
                for _ in generation:
                    pass
                assert generation.completion is not None
                completions.append(generation.completion)
            results.append(completions)
        return results

    def tokenize(self, text: str, *, special: bool = True) -> list[int]:
        """The text's token ids. With `special`, `<|endoftext|>` in it is the control token of that name."""
        try:
            return self._open().tokenize(text, special)
        except UnicodeEncodeError as error:  # a lone surrogate
            raise UsageError(
                f"the text has U+{ord(text[error.start]):04X} at index {error.start}, which is no character"
            ) from error

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The tokens' text; control tokens have none, bytes that are no UTF-8 become U+FFFD."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for."""
        found = self._bytes.get(token)
        if found is None:
            self._check_tokens((token,))
            found = self._bytes[token] = self._open().token_bytes(token)
        return found

    def is_end(self, token: int) -> bool:
        """Whether this token ends a text."""
        self._check_tokens((token,))
        return self._open().is_end(token)

    def logits(self, tokens: Sequence[int], first: int = 0) -> npt.NDArray[np.float32]:
        """Logits for the positions `first` and later of a text of its own, shape (len(tokens) - first, vocabulary).

        Raises `UsageError` for more tokens than `positions`.
        """
        if not 0 < len(tokens) <= self.positions:
            raise UsageError(f"{len(tokens)} tokens; 1 to {self.positions} can be scored at once")
        if not 0 <= first < len(tokens):
            raise UsageError(f"the first row is {first}; it goes from 0 to {len(tokens) - 1}")
        self._check_tokens(tokens)
        context = self._begin(None)
        context.keep(0)
        size = context.batch_size
        parts = []
        for start in range(0, len(tokens), size):
            batch = tokens[start : start + size]
            scored_from = max(0, first - start)
            context.decode(batch, start, min(scored_from, len(batch)))
            if scored_from < len(batch):
                parts.append(context.logits(len(batch) - scored_from).copy())
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def close(self) -> None:
        """Frees the memory; closing twice is fine."""
        context, native = self._context, self._native
        self._context = self._native = self._turn = None
        if context is not None:
            context.close()
        if native is not None:
            native.close()

    def _begin(self, generation: Generation | None) -> NativeContext:
        """Gives the context to a generation (or to nobody, for scoring): whoever had it before has ended."""
        self._open()
        assert self._context is not None
        self._turn = generation
        if generation is None:
            self._prompt = None
        return self._context

    def _check_turn(self, generation: Generation) -> None:
        """Raises `RuntimeFailure` when the model was closed, or another generation has begun."""
        self._open()
        if self._turn is not generation:
            raise RuntimeFailure("another generation of this model has begun, so this one can not go on")

    def _feed(self, tokens: list[int]) -> tuple[npt.NDArray[np.float32], int]:
        """Brings the KV cache to just these tokens; returns the last one's logits, and how many were computed.

        A prompt is always computed in the same way, from its beginning, and its logits are kept: several sequences
        of one prompt compute it once, and each is, bit for bit, the text that it would be on its own.
        """
        self._open()
        assert self._context is not None
        if self._prompt is not None and self._prompt[0] == tokens:
            self._context.keep(len(tokens))
            return self._prompt[1], 0
        self._prompt = None
        self._context.keep(0)
        size = self._context.batch_size
        for start in range(0, len(tokens), size):
            batch = tokens[start : start + size]
            is_last = start + size >= len(tokens)
            self._context.decode(batch, start, scored_from=None if is_last else len(batch))
        self._prompt = tokens, self._context.logits(1)[0].copy()
        return self._prompt[1], len(tokens)

    def _check_tokens(self, tokens: Sequence[int]) -> None:
        """Raises `UsageError` for an id outside of the vocabulary: llama.cpp ends the process on some of them."""
        for token in tokens:
            if not 0 <= token < self.vocabulary:
                raise UsageError(f"there is no token {token}; this vocabulary goes from 0 to {self.vocabulary - 1}")

    def _open(self) -> NativeModel:
        if self._native is None:
            raise RuntimeFailure(f"the model {self.path} is closed", "Load it again.")
        return self._native

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_native", None) is not None:
            self.close()
