"""A loaded model: text to tokens, tokens to text, generation, scores and features, from Python.

from dgpt2_quant.runtime import Model

with Model.load("distilgpt2.Q4_K_M.gguf") as model:
    for piece in model.stream("Once upon a time", max_tokens=64, seed=1):
        print(piece, end="", flush=True)
"""

import io
import os
import reprlib
import threading
import weakref
from collections.abc import Generator, Iterable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn, Protocol, Self, Unpack

from dgpt2_quant.core.errors import RuntimeFailure, UsageError
from dgpt2_quant.core.gguf_file import require_file
from dgpt2_quant.core.workers import require_threads
from dgpt2_quant.runtime.native.batch_token import token_ids
from dgpt2_quant.runtime.native.calls import flush
from dgpt2_quant.runtime.native.depth_context import DepthContext
from dgpt2_quant.runtime.native.model_context import F16, F32, KV_TYPES, NativeContext, NativeModel
from dgpt2_quant.runtime.sampling.settings import whole

from .engine import CHUNK, Engine, Piece
from .generation import Batch, Generation
from .reentry import refuse_within
from .request import (
    Options,
    check_count,
    check_flag,
    check_flash_attention,
    check_seed,
    make_request,
    random_seed,
)
from .scorer import SCORING, Scorer
from .sequence import Completion, Draft
from .threads import check_threads, make_governor
from .validate import check_model_file

PARALLEL = 8  # sequences that decode together, unless the caller says otherwise
_MOST_PARALLEL = 256  # LLAMA_MAX_SEQ

Prompts = str | Sequence[str] | Sequence[Sequence[int]]


def check_parallel(parallel: object) -> int:
    """As Python's number. Raises `UsageError` for more sequences at a time than llama.cpp has, or none."""
    number = whole(parallel)
    if number is None or not 1 <= number <= _MOST_PARALLEL:
        raise UsageError(f"{parallel!r} sequences at a time were asked for; 1 to {_MOST_PARALLEL} are possible")
    return number


class _Closable(Protocol):
    def close(self) -> None: ...


class Model(Scorer):
    """A GGUF file in memory. Its calls may come from several threads; they take turns.

    `positions` is the context's length in tokens, `vocabulary` the number of logits (those of real tokens come first,
    `real_vocabulary` of them; behind are only pad tokens), `width` that of a hidden state, `quant_type` the level's
    name (None where the file does not say), `huge_pages` whether its weights are in memory of its own.
    """

    def __init__(
        self,
        path: Path,
        native: NativeModel | None = None,
        positions: int = 0,
        *,
        threads: int | Literal["auto"] = "auto",
        quant_type: str | None = None,
        flash_attention: bool | Literal["auto"] = "auto",
        kv_type: str = "f16",
    ) -> None:
        if not isinstance(native, NativeModel):
            raise UsageError("Model(...) takes no path", f"Call Model.load({str(path)!r}).")
        self.path = path
        self.quant_type = quant_type
        self.huge_pages = native.huge_pages
        self.positions = positions
        self.vocabulary = native.vocabulary
        self.real_vocabulary = native.real_vocabulary
        self.width = native.width
        self._threads = threads
        self._flash_attention = flash_attention
        self._kv_type = kv_type
        self._native: NativeModel | None = native
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._turn: object = None
        self._scoring: dict[bool, NativeContext] = {}  # by whether they give features
        self._users: weakref.WeakSet[_Closable] = weakref.WeakSet()
        self._single = self.new_engine(1, positions)
        self._several: Engine | None = None

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        ctx_size: int | None = None,
        threads: int | Literal["auto"] = "auto",
        flash_attention: bool | Literal["auto"] = "auto",
        kv_type: str = "f16",
        huge_pages: bool = True,
    ) -> Self:
        """Loads a GGUF file, checked first (llama.cpp aborts the process on a malformed one).

        At most `ctx_size` positions (default, and limit: the model's own number); `threads` is a number, or "auto": the
        cores that other programs leave. `flash_attention` "auto" takes what is
        fastest and keeps the text of a seed the same on every number of threads; `kv_type` (f32, f16, bf16, q8_0) is
        that of the cache (docs/runtime.md tells what they change). `huge_pages` makes decoding faster where Linux has
        them, and a file harmless that is cut short later; without, the file is mapped, and processes share it.
        Raises `ModelNotFoundError`, `GGUFError`, `UsageError` or `RuntimeFailure`.
        """
        if not path or not isinstance(path, str | os.PathLike):
            raise UsageError(f"path is {path!r}, not the path of a GGUF file", "Give a str or a Path.")
        path = require_file(Path(path))
        if ctx_size is not None:
            ctx_size = check_count("the context size", ctx_size, 1)
        if not isinstance(kv_type, str) or kv_type not in KV_TYPES:
            raise UsageError(f"the cache's type is {kv_type!r}; there are {', '.join(KV_TYPES)}")
        if kv_type == "q8_0" and not flash_attention:
            raise UsageError("a cache of q8_0 needs flash attention", "Leave it on, or take f16.")
        flash_attention = check_flash_attention(flash_attention)
        huge_pages = check_flag("huge_pages", huge_pages)
        threads = check_threads(threads)
        require_threads(make_governor(threads).most)  # where OpenMP gets none it ends the process
        header = check_model_file(path)
        trained: int = header.metadata["gpt2.context_length"]
        bos, quant_type = header.metadata.get("tokenizer.ggml.bos_token_id"), header.quant_type
        del header  # with a large vocabulary it takes room that llama.cpp needs now
        native = NativeModel(path, huge_pages=huge_pages)
        # llama.cpp takes token 11, a comma, where a file names none; GPT-2 has one token for both
        native.bos = native.eos if bos is None else bos
        try:
            return cls(
                path,
                native,
                min(ctx_size or trained, trained),
                threads=threads,
                quant_type=quant_type,
                flash_attention=flash_attention,
                kv_type=kv_type,
            )
        except BaseException:
            native.close()
            raise

    @property
    def threads(self) -> int:
        """What decoding uses now; with "auto" it changes."""
        return self._single.governor.threads

    def stream(self, prompt: str | Sequence[int], **options: Unpack[Options]) -> Generation:
        """Starts a generation: iterate over it for pieces of text. `Options` tells what can be said by keyword.

        An empty prompt begins a new text. Raises `UsageError` for a prompt that does not fit the context, or a
        setting out of range.
        """
        drafts = [self.make_draft(prompt, **options)]
        return Generation(drafts[0], self._write(drafts), partial(self._end, drafts))

    def batch(
        self,
        prompts: Prompts,
        *,
        num_return_sequences: int = 1,
        parallel: int = PARALLEL,
        **options: Unpack[Options],
    ) -> Batch:
        """Starts `num_return_sequences` texts for each prompt, `parallel` at a time; iterate for (number, piece).

        Text i of a prompt has the seed `seed + i`. Texts that decode together may differ in a token from the same
        ones alone (docs/runtime.md); `parallel=1` writes one after the other, just as `stream` would.
        """
        num_return_sequences = check_count("num_return_sequences", num_return_sequences, 1)
        seed = check_seed(options.get("seed"))
        first = random_seed() if seed is None else seed
        if not isinstance(prompts, Iterable) or isinstance(prompts, bytes | bytearray | Mapping | Set | io.IOBase):
            raise UsageError(
                f"prompts is {reprlib.repr(prompts)}, not a str or a list of them", "Pass '' to begin a new text."
            )
        drafts = []
        for prompt in [prompts] if isinstance(prompts, str) else prompts:
            for number in range(num_return_sequences):
                options["seed"] = first + number
                drafts.append(self.make_draft(prompt, **options))
        return self.write(drafts, parallel=parallel)

    def write(self, drafts: Sequence[Draft], *, parallel: int = PARALLEL) -> Batch:
        """Starts texts that `make_draft` made, each with settings of its own, `parallel` at a time."""
        return Batch(drafts, self._write(drafts, check_parallel(parallel)), partial(self._end, drafts), self._lock)

    def generate(
        self,
        prompts: Prompts,
        *,
        num_return_sequences: int = 1,
        parallel: int = PARALLEL,
        **options: Unpack[Options],
    ) -> list[list[Completion]]:
        """`num_return_sequences` completions for each prompt; see `batch`, and `Options`."""
        batch = self.batch(prompts, num_return_sequences=num_return_sequences, parallel=parallel, **options)
        found, size = batch.run(), num_return_sequences
        return [found[start : start + size] for start in range(0, len(found), size)]

    def tokenize(self, text: str, *, special: bool = True, add_special: bool | None = None) -> list[int]:
        """The text's token ids. With `special`, `<|endoftext|>` in it is the control token of that name.

        With `add_special` (default: as `special`) the beginning-of-text token comes first, if the file says so
        (`tokenizer.ggml.add_bos_token`), as it does for a prompt. Raises `UsageError` for what is not a str.
        """
        if not isinstance(text, str):
            raise UsageError(f"text is {reprlib.repr(text)}, not a str", "Decode bytes first.")
        return self._open().tokenize(text, special, special if add_special is None else add_special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The tokens' text; control tokens have none, bytes that are not UTF-8 become U+FFFD.

        Raises `UsageError` for what is not a list of token ids.
        """
        native = self._open()
        return native.detokenize(token_ids(tokens, native.vocabulary))

    def token_bytes(self, token: int) -> bytes:
        """The bytes that one token stands for."""
        return self._open().piece(token)[0]

    def is_end(self, token: int) -> bool:
        """Whether this token ends a text."""
        return self._open().piece(token)[1]

    def make_draft(
        self, prompt: str | Sequence[int], positions: int | None = None, **options: Unpack[Options]
    ) -> Draft:
        """What `stream` would write, not begun: for `write`, or an engine of that many positions."""
        native, positions = self._open(), positions or self.positions
        return Draft(native, make_request(native, positions, prompt, **options), positions)

    def new_engine(self, slots: int, positions: int) -> Engine:
        """An engine with a context of its own, of `slots` sequences with so many positions each."""
        governor = make_governor(self._threads)
        # of the native model only: a context that led back to this one would keep it in memory
        make = partial(_new_context, self._open(), positions, slots, governor.threads, KV_TYPES[self._kv_type])
        by_depth = self._flash_attention == "auto" and self._kv_type in ("f32", "f16")
        return Engine(DepthContext(make) if by_depth else make(self._flash_attention is not False), governor)

    def add_user(self, user: _Closable) -> None:
        """Something that is closed before the model is, as long as it exists."""
        self._users.add(user)

    def close(self) -> None:
        """Frees the memory; closing twice is fine. Schedulers of this model are closed first."""
        if self._process != os.getpid():  # in a forked child it is the parent's, and so may be a lock
            self._native = None
            return
        for user in list(self._users):
            user.close()
        with self._lock:
            self._turn = None
            for part in (self._single, self._several, *self._scoring.values()):
                if part is not None:
                    part.close()
            if self._native is not None:
                self._native.close()
            self._several, self._scoring, self._native = None, {}, None
        flush()

    def _write(self, drafts: Sequence[Draft], parallel: int = 1) -> Generator[Piece, None, None]:
        """Writes drafts to their ends, from when it is first asked for a piece; other generations end then."""
        self._open()
        with self._lock:
            self._take(drafts)
            engine = self._engine_for(drafts, parallel)
            for draft in drafts:
                engine.add(draft)
        left = len(drafts)
        # no `finally`: Python drops an interrupt that comes while it ends a generator that nobody reads any more; the
        # next one that takes its turn cancels what is left
        while left:
            if self._process != os.getpid():
                self._open()  # in a forked child the lock may be held for ever
            with self._lock:
                if self._turn is not drafts:
                    self._open()
                    raise RuntimeFailure("another generation of this model has begun, so this one cannot go on")
                pieces = engine.step()
            for piece in pieces:
                if piece[0].completion:
                    left -= 1
                if piece[1]:
                    yield piece

    def _end(self, drafts: Sequence[Draft]) -> None:
        """Ends what `_write` writes, if it is still its turn."""
        if self._process == os.getpid():
            with self._lock:
                if self._turn is drafts and self._native is not None:
                    self._take(None)

    def _take(self, turn: object) -> NativeModel:
        """Makes it someone's turn: whatever was going on in these contexts is over."""
        native = self._open()
        engines = [engine for engine in (self._single, self._several) if engine]
        for engine in engines:
            refuse_within(engine, Engine.step)
        self._turn = turn
        for engine in engines:
            engine.cancel_all()
        return native

    def _context_for(self, *, features: bool = False) -> NativeContext:
        """The context to score in, apart from those that generate."""
        native = self._open()
        refuse_within(self, *SCORING)
        found = self._scoring.get(features)
        if found is None:
            # hidden states are compared with other implementations', which do not round their caches to 16 bits
            found = self._scoring[features] = NativeContext(
                native,
                self.positions,
                threads=self.threads,
                embeddings=features,
                kv_type=F32 if features else F16,
                flash_attention=not features,  # several tokens at once: there it lets no threads into the bits
            )
        if found.threads != self.threads:
            found.set_threads(self.threads)
        return found

    def _engine_for(self, drafts: Sequence[Draft], parallel: int) -> Engine:
        """The one for single sequences, or one with enough slots: the last, or a new one where that is too small."""
        slots = min(parallel, len(drafts))
        if slots <= 1:
            return self._single
        positions = min(max(draft.next_position + draft.room for draft in drafts), self.positions)
        found = self._several
        if found is None or found.context.slots < slots or found.context.positions < positions:
            if found is not None:
                found.close()
                self._several = None  # before the next one is made: there may be no memory for both
                flush()
            found = self._several = self.new_engine(slots, positions)
        return found

    def _open(self) -> NativeModel:
        if self._native is None:
            raise RuntimeFailure(f"the model {self.path} is closed", "Load it again.")
        if self._process != os.getpid():
            raise RuntimeFailure(
                f"the model {self.path} was loaded in process {self._process}; this is a child that it forked",
                "Load it in each process, or start processes by `spawn`.",
            )
        return self._native

    def __reduce__(self) -> NoReturn:
        raise UsageError("a Model can not be copied or pickled", "Load its file again.")


def _new_context(
    native: NativeModel, positions: int, slots: int, threads: int, kv_type: int, flash_attention: bool
) -> NativeContext:
    return NativeContext(
        native,
        positions,
        slots=slots,
        batch=CHUNK,
        threads=threads,
        flash_attention=flash_attention,
        kv_type=kv_type,
    )
