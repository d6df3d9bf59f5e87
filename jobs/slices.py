"""Answers a slice of lines: a function of the slice, the model's file, the settings, and nothing else.

Texts that decode together depend on their number (runtime/decode_loop.py). Therefore a slice is decoded by itself, from
an empty cache and in a fixed order: the longest texts first, so that the slots stay full until the end of the slice.
Then its bytes do not depend on the slices before it, or on the process and machine that answers it.
"""

import hashlib
from collections import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dgpt2_quant.core.errors import RuntimeFailure, UsageError
from dgpt2_quant.core.json_text import to_json_line
from dgpt2_quant.runtime import Model
from dgpt2_quant.runtime.decode_loop import Engine
from dgpt2_quant.runtime.sequence import Sequence

from .lines import Line
from .openai_lines import is_openai, openai_answer, openai_error, read_openai
from .plain_lines import plain_answer, plain_error, read_plain
from .requests import BadLineError, Request, explained, read_object

PARALLEL = 16  # texts that decode together: the matrix kernels for AVX-512 take 16 rows at once
SLICE = 256  # lines; with more the slots are fuller, with fewer a kill loses less
_SEEDS = 2**32 - 1  # as in runtime/request.py

Report = Callable[[float, int], None]
"""Called with the share of a slice that is complete, and the number of its generated tokens."""


class Answer(NamedTuple):
    """The answer to a line: JSON without a newline, whether it is an error, and the number of generated tokens."""

    text: str
    is_error: bool
    tokens: int


@dataclass(frozen=True)
class JobSettings:
    """What answers depend on, in addition to the lines and the model's file.

    `options` are the defaults of plain lines. `names` are those of the model; the first is in OpenAI's answers.
    """

    names: tuple[str, ...]
    seed: int = 0
    parallel: int = PARALLEL
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Entry:
    """A line with its request and texts, or the error that it has instead."""

    line: Line
    given: dict[str, Any] = field(default_factory=dict)
    request: Request | None = None
    texts: list[Sequence] = field(default_factory=list)
    error: BadLineError | None = None


class SliceRunner:
    """Answers slices with a loaded model. One thread may use it at a time; `close` frees its context."""

    def __init__(self, model: Model, settings: JobSettings) -> None:
        """Raises `UsageError` for `options` that the model refuses: every line would fail."""
        self.model, self.settings = model, settings
        if settings.options:
            try:
                for prompt, options in read_plain({"prompt": ""}, settings.options).texts(model):
                    model.new_sequence(prompt, **options)
            except BadLineError as error:
                raise UsageError(error.message) from None
        self._engine: Engine | None = None

    def __call__(self, lines: abc.Sequence[Line], report: Report | None = None) -> list[Answer]:
        """An answer for each line, in order. A line that fails has an error as its answer."""
        entries = [self._read(line) for line in lines]
        self._generate([text for entry in entries for text in entry.texts], report)
        return [self._answer(entry) for entry in entries]

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _read(self, line: Line) -> _Entry:
        """The line's request, checked, with texts that can start."""
        entry = _Entry(line)
        try:
            entry.given = given = read_object(line)
            if line.same_id_as:
                message = f"`custom_id` must be unique in a job; line {line.same_id_as} has the same"
                raise BadLineError(message, "duplicate_custom_id", "custom_id")
            if is_openai(given):
                request = read_openai(given, self.settings.names)
            else:
                request = read_plain(given, self.settings.options)
            for number, (prompt, options) in enumerate(request.texts(self.model)):
                if options.get("seed", -1) == -1:
                    options = {**options, "seed": line_seed(self.settings.seed, line.number) + number}
                entry.texts.append(self.model.new_sequence(prompt, **options))
            entry.request = request
        except (MemoryError, OSError):
            raise
        except Exception as error:  # no line may end the job
            entry.error, entry.texts = explained(error), []
        return entry

    def _generate(self, texts: abc.Sequence[Sequence], report: Report | None) -> None:
        """Runs texts to their ends, the longest first; on equal terms, in the order of their lines."""
        if not texts:
            return
        if self._engine is None:
            self._engine = self.model.new_engine(self.settings.parallel, self.model.positions)
        engine = self._engine
        engine.reset()  # a prompt that an earlier slice left in the cache would change the batches
        for text in sorted(texts, key=lambda one: -(len(one.request.prompt) + one.room)):
            engine.add(text)
        done = tokens = 0
        try:
            while not engine.idle:
                for text, _ in engine.step():
                    if text.completion:
                        done, tokens = done + 1, tokens + text.completion.tokens
                if report:
                    report(done / len(texts), tokens)
        except RuntimeFailure as error:  # of llama.cpp: which text it failed for is unknown
            for text in texts:
                if text.completion is None:
                    text.error = RuntimeFailure(error.message, error.hint)

    def _answer(self, entry: _Entry) -> Answer:
        try:
            if entry.error:
                raise entry.error
            assert entry.request
            for text in entry.texts:
                if text.error:
                    raise BadLineError(text.error.message, "generation_failed")
            found = [text.completion for text in entry.texts if text.completion]
            result = entry.request.answer(self.model, found)
            tokens = sum(text.tokens for text in found)
            given, number = entry.given, entry.line.number
            if is_openai(given):
                document = openai_answer(given, number, result, self.settings.names[0])
            else:
                document = plain_answer(given, number, result)
            return Answer(to_json_line(document), False, tokens)
        except (MemoryError, OSError):
            raise
        except Exception as error:
            made = openai_error if is_openai(entry.given) else plain_error
            return Answer(to_json_line(made(entry.given, entry.line.number, explained(error).to_json())), True, 0)


def line_seed(seed: int, line: int) -> int:
    """The seed of a line that has none: a hash, so that neighbours have nothing in common."""
    return int.from_bytes(hashlib.sha256(f"{seed} {line}".encode()).digest()[:4], "little") % _SEEDS
