"""`Model`: a loaded GGUF file, which tokenizes, generates, scores, classifies and computes features.

from dgpt2_quant.runtime import Model

with Model.from_pretrained("distilgpt2", type="q4_k_m") as model:
    for event in model.stream("Once upon a time", max_tokens=64, seed=1):
        print(event, end="", flush=True)

A token passes five places:

1. here, `stream` and `batch` queue sequences and step the engine; their iterators (generation.py) hand out the events;
2. decode_loop.py collects the last token of each active sequence into one batch;
3. native/ has llama.cpp decode the batch: one row of logits for each sequence;
4. sampling/ picks a token from each row;
5. sequence.py turns the token into text (text_stream.py holds back incomplete characters and stop strings), ends the
   text when it is complete, and makes the event.
"""

import io
import os
import reprlib
import threading
import weakref
from collections import abc
from collections.abc import Generator, Iterable
from functools import partial
from pathlib import Path
from typing import Literal, NoReturn, Protocol, Self, Unpack

from dgpt2_quant.core.errors import RuntimeFailure, UsageError
from dgpt2_quant.core.gguf_file import ALIGNMENT, require_file
from dgpt2_quant.core.head import Head
from dgpt2_quant.core.workers import require_threads
from dgpt2_quant.runtime.native.context import F16, F32, KV_TYPES, NativeContext
from dgpt2_quant.runtime.native.depth_context import DepthContext
from dgpt2_quant.runtime.native.model import NativeModel
from dgpt2_quant.runtime.native.native_thread import flush

from .check_gguf import check_model_file, lacks_pre_tokenizer, read_head
from .classifier import Classifier
from .completion import Completion, Event
from .decode_loop import Engine
from .generation import Batch, Generation
from .lifecycle import refuse_within
from .load_options import LoadOptions, check_load_options
from .request import Options, Prompt, check_count, check_seed, make_request, random_seed
from .scoring import SCORING
from .sequence import Sequence
from .slot import CHUNK
from .threads import check_threads, make_governor

PARALLEL = 8  # default number of sequences that decode together
_MAX_PARALLEL = 256  # LLAMA_MAX_SEQ

Prompts = str | abc.Sequence[Prompt]
_NO_PROMPTS = (bytes, bytearray, abc.Mapping, abc.Set, io.IOBase)


def check_parallel(parallel: object, name: str = "parallel") -> int:
    """Returns a Python integer. Raises `UsageError` for more sequences than llama.cpp decodes together."""
    return check_count(name, parallel, 1, _MAX_PARALLEL)


class _Closable(Protocol):
    def close(self) -> None: ...


class Model(Classifier):
    """A GGUF file in memory. Several threads may call it; they take turns.

    `positions` is the length of the context in tokens, `vocabulary` the number of logits (the first `real_vocabulary`
    belong to real tokens, the others to pad tokens), `width` the size of a hidden state, `quant_type` the name of the
    file's quant type or None, `huge_pages` whether the weights are in private memory, `first_token` the token that
    begins each text, or None, `start_token` the one that stands for an empty prompt, `end_token` the one
    that ends a text, and `head` the file's classification head, or None."""

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
        head: Head | None = None,
    ) -> None:
        if not isinstance(native, NativeModel):
            raise UsageError("Model(...) takes no path", f"Call Model.load({str(path)!r}).")
        self.path = path
        self.quant_type = quant_type
        self.head = head
        self.huge_pages = native.huge_pages
        self.positions = positions
        self.vocabulary = native.vocabulary
        self.real_vocabulary = native.real_vocabulary
        self.width = native.width
        self.first_token = native.bos if native.adds_bos else None
        self.start_token, self.end_token = native.bos, native.eos
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
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        type: str | None = None,
        revision: str | None = None,
        offline: bool = False,
        **options: Unpack[LoadOptions],
    ) -> Self:
        """Loads a model by its name on the Hugging Face Hub, a checkpoint folder, or a GGUF file.

        A checkpoint is converted to the quant type `type` (default q4_k_m) and kept in the cache. `revision` is a
        branch, tag or commit on the Hub; `offline` uses only files on this machine. `options` are those of `load`.
        Raises `ModelNotFoundError`, `CheckpointError`, and the errors of `load`.
        """
        from dgpt2_quant.quantize.store.converted_models import model_file

        check_load_options(**options)  # before a download or a conversion
        if not model or not isinstance(model, str | os.PathLike):
            raise UsageError(f"`model` must be a name, a folder or a GGUF file, not {model!r}")
        _, path = model_file(os.fspath(model), type=type, revision=revision, offline=offline)
        return cls.load(path, **options)

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
        """Loads a GGUF file. It is checked first: llama.cpp aborts the process on a malformed one.

        The context has at most `ctx_size` positions (default and limit: the model's own number). `threads` is a number,
        or "auto" for the cores that other programs leave free. `flash_attention` "auto" is fastest, and gives the same
        text for a seed with every number of threads; `kv_type` (f32, f16, bf16, q8_0) is the type of the KV cache
        (docs/runtime.md has their effects). `huge_pages` speeds up decoding where Linux has them, and keeps the model
        usable if the file is truncated later; without it the file is mapped, and processes share the memory.
        Raises `ModelNotFoundError`, `GGUFError`, `UsageError` or `RuntimeFailure`.
        """
        if not path or not isinstance(path, str | os.PathLike):
            raise UsageError(f"`path` must be the path of a GGUF file, not {path!r}", "Give a str or a Path.")
        path = require_file(Path(path))
        options = check_load_options(ctx_size, threads, flash_attention, kv_type, huge_pages)
        require_threads(make_governor(options["threads"]).most)  # OpenMP ends the process if it gets no thread
        header = check_model_file(path)
        trained: int = header.metadata["gpt2.context_length"]
        bos, quant_type = header.metadata.get("tokenizer.ggml.bos_token_id"), header.quant_type
        # llama.cpp aborts on a mapped file with another alignment than its own
        private = options.pop("huge_pages") or any(tensor.start % ALIGNMENT for tensor in header.tensors.values())
        pre_tokenizer = "gpt-2" if lacks_pre_tokenizer(header) else None
        head = read_head(header)
        del header  # a large vocabulary takes memory that llama.cpp needs now
        native = NativeModel(path, huge_pages=private, pre_tokenizer=pre_tokenizer)
        # llama.cpp takes token 11, a comma, if the file names none; GPT-2 has one token for both
        native.bos = native.eos if bos is None else bos
        try:
            positions = min(options.pop("ctx_size") or trained, trained)
            return cls(path, native, positions, quant_type=quant_type, head=head, **options)
        except BaseException:
            native.close()
            raise

    @property
    def threads(self) -> int:
        """The number of threads that decode now; with "auto" it changes."""
        return self._single.governor.threads

    @threads.setter
    def threads(self, threads: int | Literal["auto"]) -> None:
        """Sets it for later calls. Raises `UsageError` as `load` does, `RuntimeFailure` if no thread can be started."""
        threads = check_threads(threads)
        require_threads(make_governor(threads).most)
        with self._lock:
            self._open()
            self._threads = threads
            for engine in (self._single, self._several):
                if engine is not None:
                    engine.governor = make_governor(threads)

    def stream(self, prompt: Prompt, **options: Unpack[Options]) -> Generation:
        """Starts a text: iterate for its events, which are pieces of text. `Options` lists the keyword arguments.

        An empty prompt begins a new text. Raises `UsageError` for a prompt that does not fit the context, or a setting
        out of range.
        """
        sequences = [self.new_sequence(prompt, **options)]
        return Generation(sequences, self._write(sequences), partial(self._end, sequences))

    def batch(
        self,
        prompts: Prompts,
        *,
        num_return_sequences: int = 1,
        parallel: int = PARALLEL,
        **options: Unpack[Options],
    ) -> Batch:
        """Starts `num_return_sequences` texts for each prompt, `parallel` at a time; iterate for their events.

        Text i of a prompt has the seed `seed + i`. Texts that decode together may differ in a token from the same texts
        alone (docs/runtime.md); `parallel=1` writes one after the other, exactly as `stream` does.
        """
        num_return_sequences = check_count("num_return_sequences", num_return_sequences, 1)
        seed = check_seed(options.get("seed"))
        first = random_seed() if seed is None else seed
        if not isinstance(prompts, Iterable) or isinstance(prompts, _NO_PROMPTS):
            raise UsageError(
                f"`prompts` must be a str or a list of prompts, not {reprlib.repr(prompts)}",
                "Pass '' to begin a new text.",
            )
        sequences: list[Sequence] = []
        for prompt in [prompts] if isinstance(prompts, str) else prompts:
            for number in range(num_return_sequences):
                options["seed"] = first + number
                sequences.append(self.new_sequence(prompt, number=len(sequences), **options))
        return self.write(sequences, parallel=parallel)

    def write(self, sequences: abc.Sequence[Sequence], *, parallel: int = PARALLEL) -> Batch:
        """Starts sequences from `new_sequence`, which may differ in their settings, `parallel` at a time."""
        events = self._write(sequences, check_parallel(parallel))
        return Batch(sequences, events, partial(self._end, sequences), self._lock)

    def generate(
        self,
        prompts: Prompts,
        *,
        num_return_sequences: int = 1,
        parallel: int = PARALLEL,
        **options: Unpack[Options],
    ) -> list[list[Completion]]:
        """Returns `num_return_sequences` completions for each prompt; see `batch` and `Options`."""
        batch = self.batch(prompts, num_return_sequences=num_return_sequences, parallel=parallel, **options)
        found, size = batch.run(), num_return_sequences
        return [found[start : start + size] for start in range(0, len(found), size)]

    def new_sequence(
        self, prompt: Prompt, positions: int | None = None, number: int = 0, **options: Unpack[Options]
    ) -> Sequence:
        """A text to start later, with `write` or in an engine of `positions`."""
        native, positions = self._open(), positions or self.positions
        return Sequence(native, make_request(native, positions, prompt, **options), positions, number)

    def new_engine(self, slots: int, positions: int) -> Engine:
        """An engine with its own context, for `slots` sequences of `positions` each."""
        governor = make_governor(self._threads)
        # refers to the native model only: a context that refers to this object would keep it in memory
        new_context = partial(
            NativeContext,
            self._open(),
            positions,
            slots=slots,
            batch=CHUNK,
            threads=governor.threads,
            kv_type=KV_TYPES[self._kv_type],
        )
        if self._flash_attention == "auto" and self._kv_type in ("f32", "f16"):
            return Engine(DepthContext(new_context), governor)
        return Engine(new_context(flash_attention=self._flash_attention is not False), governor)

    def add_user(self, user: _Closable) -> None:
        """Registers an object to close before the model closes, for as long as it exists."""
        self._users.add(user)

    def close(self) -> None:
        """Frees the memory, after closing the schedulers of this model. Closing twice is fine."""
        if self._process != os.getpid():  # in a forked child the memory, and perhaps a lock, are the parent's
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

    def _write(self, sequences: abc.Sequence[Sequence], parallel: int = 1) -> Generator[Event, None, None]:
        """Generates the sequences. The first request for an event starts it, and ends other generations."""
        self._open()
        with self._lock:
            self._take(sequences)
            engine = self._engine_for(sequences, parallel)
            for sequence in sequences:
                engine.add(sequence)
        left = len(sequences)
        # no `finally`: Python drops an interrupt that arrives while it closes a generator without a reader; the next
        # turn cancels the rest
        while left:
            if self._process != os.getpid():
                self._open()  # in a forked child the lock may be held forever
            with self._lock:
                if self._turn is not sequences:
                    self._open()
                    raise RuntimeFailure("a new generation of this model ended this one", "Use a `Scheduler` for both.")
                pieces = engine.step()
            for sequence, text in pieces:
                if sequence.error:
                    raise sequence.error
                if sequence.completion:
                    left -= 1
                if (event := sequence.event(text)) is not None:
                    yield event

    def _end(self, sequences: abc.Sequence[Sequence]) -> None:
        """Ends these sequences, unless another turn has begun."""
        if self._process == os.getpid():
            with self._lock:
                if self._turn is sequences and self._native is not None:
                    self._take(None)

    def _take(self, turn: object) -> None:
        """Starts a turn: ends everything else in these contexts."""
        self._open()
        engines = [engine for engine in (self._single, self._several) if engine]
        for engine in engines:
            refuse_within(engine, Engine.step)
        self._turn = turn
        for engine in engines:
            engine.cancel_all()

    def _context_for(self, *, features: bool = False) -> NativeContext:
        """The context for scoring, separate from those that generate."""
        native = self._open()
        refuse_within(self, *SCORING)
        self._single.governor.look()
        found = self._scoring.get(features)
        if found is None:
            # hidden states are compared with those of other programs, which do not round their caches to 16 bits
            found = self._scoring[features] = NativeContext(
                native,
                self.positions,
                threads=self.threads,
                embeddings=features,
                kv_type=F32 if features else F16,
                flash_attention=not features,  # with several tokens at once its bits do not depend on threads
            )
        if found.threads != self.threads:
            found.set_threads(self.threads)
        return found

    def _engine_for(self, sequences: abc.Sequence[Sequence], parallel: int) -> Engine:
        """The engine for one sequence, or one with enough slots: the existing one, or a larger new one."""
        slots = min(parallel, len(sequences))
        if slots <= 1:
            return self._single
        positions = min(max(sequence.next_position + sequence.room for sequence in sequences), self.positions)
        found = self._several
        if found is None or found.context.slots < slots or found.context.positions < positions:
            if found is not None:
                found.close()
                self._several = None  # first: there may be no memory for both
                flush()
            found = self._several = self.new_engine(slots, positions)
        return found

    def _open(self) -> NativeModel:
        if self._native is None:
            raise RuntimeFailure(f"the model {self.path} is closed", "Load it again.")
        if self._process != os.getpid():
            raise RuntimeFailure(
                f"the model {self.path} was loaded in process {self._process}, which forked this one",
                "Load it in each process, or start processes with the method `spawn`.",
            )
        return self._native

    def __reduce__(self) -> NoReturn:
        raise UsageError("a Model cannot be copied or pickled", "Load its file again.")
