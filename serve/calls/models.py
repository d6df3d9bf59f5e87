"""The models that the server has: one `ServedModel` for each quant type, found by the `model` of a request."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.gguf_file import read_header, require_file
from dgpt2_quant.core.versions import tool_version
from dgpt2_quant.runtime import Model, Scheduler

from .errors import HTTPError, unavailable

if TYPE_CHECKING:
    from .figures import Figures

_GRAMMAR_SECONDS = 0.25  # that a grammar may take for a token, while all other texts wait
P = ParamSpec("P")
R = TypeVar("R")
_INLINE = 2000  # characters that are tokenized in the event loop: faster than a switch of threads


@dataclass(frozen=True)
class ModelFile:
    """A GGUF file to serve. `name` and `quant_type` make its id, `aliases` are other names for it."""

    name: str
    quant_type: str
    path: Path
    aliases: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.name}:{self.quant_type}"

    @property
    def names(self) -> set[str]:
        """All names but the id, in lower case."""
        return {name.lower() for name in (self.name, *self.aliases)}


def file_to_serve(path: Path) -> ModelFile:
    """A GGUF file under its own name: `storybook.lean.Q4_0.gguf` is `storybook.lean:Q4_0`. Raises `GGUFError`."""
    quant_type = read_header(require_file(path)).quant_type or "unknown"
    return ModelFile(path.stem.removesuffix(f".{quant_type}"), quant_type, path, (path.stem, path.name))


@dataclass(eq=False)
class ServedModel:
    """A loaded model with its scheduler."""

    file: ModelFile
    model: Model
    scheduler: Scheduler
    chat_template: str | None
    bytes: int
    bits_per_weight: float
    embedding: int = 0  # texts that are embedded or wait for it
    scoring: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "scoring"))
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def id(self) -> str:
        return self.file.id

    @cached_property
    def fingerprint(self) -> str:
        """Changes with the file and the version. Texts in a batch also depend on each other (docs/serving.md)."""
        about = f"{tool_version()} {self.id} {self.bytes}"
        return f"fp_{hashlib.sha256(about.encode()).hexdigest()[:12]}"

    @property
    def start_text(self) -> str:
        """The name of the token that stands for an empty prompt."""
        return self.model.token_bytes(self.model.start_token, special=True).decode("utf-8", "replace")

    @property
    def end_text(self) -> str:
        """The name of the token that ends a text."""
        return self.model.token_bytes(self.model.end_token, special=True).decode("utf-8", "replace")

    @property
    def room(self) -> int:
        """The number of texts that it would take now."""
        stats = self.scheduler.stats
        return self.scheduler.parallel + self.scheduler.queue - stats.waiting - stats.active

    async def tokenize(self, text: str, *, special: bool = False, add_special: bool = True) -> list[int]:
        """Token ids of a text. `special` reads names such as `<|endoftext|>` as special tokens."""
        if len(text) <= _INLINE:
            return self.model.tokenize(text, special=special, add_special=add_special)
        return await asyncio.to_thread(self.model.tokenize, text, special=special, add_special=add_special)

    async def in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls a function in the thread that scores and embeds with this model."""
        return await asyncio.get_running_loop().run_in_executor(self.scoring, partial(function, *args, **kwargs))

    async def features(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The mean of the hidden states of a text."""
        return await self.in_thread(self.model.features, list(tokens), pooling="mean")

    def close(self) -> None:
        self.scoring.shutdown(cancel_futures=True)
        self.scheduler.close()
        self.model.close()


class Models:
    """The served models, in the order in which they were given; the first is the default."""

    def __init__(
        self,
        files: Sequence[ModelFile],
        *,
        parallel: int,
        queue: int,
        ctx_size: int | None = None,
        threads: int | Literal["auto"] = "auto",
    ) -> None:
        """Raises `UsageError` for two files with one id."""
        ids = [file.id for file in files]
        if twice := next((name for name in ids if ids.count(name) > 1), None):
            raise UsageError(f"two files have the id {twice}", "Rename one of them.")
        self.files = list(files)
        self.parallel, self.queue, self.ctx_size, self.threads = parallel, queue, ctx_size, threads
        self.loaded: dict[str, ServedModel] = {}
        self.failure: Exception | None = None
        self.figures: dict[str, Figures] = {}  # by id, where they are known
        self.measuring = False
        self.ending = False  # the server shuts down, and what computes must end
        self.comparisons = 0  # that compute or wait
        self.comparing = asyncio.Lock()  # held for a window of a comparison

    @property
    def ready(self) -> bool:
        return len(self.loaded) == len(self.files)

    def load(self) -> None:
        """Loads all files; called in a thread of its own."""
        for file in self.files:
            self.loaded[file.id] = self._load(file)

    def _load(self, file: ModelFile) -> ServedModel:
        header = read_header(file.path)
        template, bits = header.metadata.get("tokenizer.chat_template"), header.bits_per_weight
        del header  # a large vocabulary takes memory that the model needs now
        model = Model.load(file.path, threads=self.threads, ctx_size=self.ctx_size)
        model.new_sequence("a", token_healing=True)  # sorts the vocabulary, which would delay the first such request
        scheduler = Scheduler(model, parallel=self.parallel, queue=self.queue, grammar_seconds=_GRAMMAR_SECONDS)
        return ServedModel(file, model, scheduler, template, file.path.stat().st_size, bits)

    def find(self, name: str | None) -> ServedModel:
        """The model of that id, name or alias; without a name, the first. Raises `HTTPError` 404 or 503."""
        if not self.ready:
            raise unavailable("the model is loading")
        if name is None:
            return next(iter(self.loaded.values()))
        wanted = name.lower()
        if name in self.loaded:
            return self.loaded[name]
        same_id = [served for served in self.loaded.values() if served.id.lower() == wanted]
        same_name = [served for served in self.loaded.values() if wanted in served.file.names]
        if found := same_id + same_name:
            return found[0]
        known = ", ".join(self.loaded)
        raise HTTPError(
            404,
            f"the model {name[:100]!r} does not exist; the models are {known}",
            param="model",
            code="model_not_found",
        )

    def list(self) -> list[dict[str, Any]]:
        """The entries of `GET /v1/models`."""
        if not self.ready:
            raise unavailable("the model is loading")
        return [self.describe(served) for served in self.loaded.values()]

    def describe(self, served: ServedModel) -> dict[str, Any]:
        return {
            "id": served.id,
            "object": "model",
            "created": served.created,
            "owned_by": "dgpt2-quant",
            "max_model_len": served.scheduler.positions,
            "meta": {
                "quant_type": served.file.quant_type,
                "n_vocab": served.model.real_vocabulary,
                "n_ctx_train": served.model.positions,
                "n_embd": served.model.width,
                "size": served.bytes,
            },
        }

    def end_texts(self) -> None:
        """Cancels all texts, comparisons and measurements: their requests are answered with an error."""
        self.ending = True
        for served in self.loaded.values():
            served.scheduler.close()

    def close(self) -> None:
        for served in self.loaded.values():
            served.close()
