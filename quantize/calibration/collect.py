"""Collects an importance matrix: runs a text through GPT-2 in NumPy, and sums up the inputs of each matrix.

llama-imatrix does the same in llama.cpp's graph, but skips a tied embedding, 47 % of DistilGPT2; here the output matrix
is included. As there, each chunk is a separate text. An interrupted run can be resumed: partial sums are saved next to
the output in float64, so the result is the same as of one run.
"""

import hashlib
import io
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from dgpt2_quant.core.atomic_file import output_file, refuse_existing
from dgpt2_quant.core.errors import CheckpointError, UsageError
from dgpt2_quant.core.hyperparameters import matmul_weights
from dgpt2_quant.core.parallel import calculating, in_parallel, pieces
from dgpt2_quant.core.paths import user_path
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.read_input import Announce, input_exists
from dgpt2_quant.core.scratch import Store
from dgpt2_quant.core.text import NamedText, load_text
from dgpt2_quant.quantize.checkpoint.encode_text import encode_text, special_note
from dgpt2_quant.quantize.checkpoint.resolve import DEFAULT_MODEL
from dgpt2_quant.quantize.checkpoint.source import ModelSource, open_model

from .block_weights import BlockWeights
from .imatrix_file import ImportanceMatrix, Statistics, merged, read_importance
from .numpy_gpt2 import Observer, Reference, from_source

CONTEXT = 512
SAMPLED = "sampled"
SAMPLED_TOKENS = 20_000
"""The length of generated text (docs/quantization.md: more tokens gain little)."""
Sums = npt.NDArray[np.float64]
_SAVE_EVERY = 20.0  # seconds
_CHUNKS = 4  # per task, where the weights do not fit in memory and are read for each task
_LARGEST = 1e30  # limit for a chunk's sums: sums over millions of chunks stay within float32


@calculating()
def imatrix(
    model: str = DEFAULT_MODEL,
    *,
    text: str | Path | NamedText | None = None,
    output: str | Path,
    merge: Sequence[str | Path] = (),
    ctx_size: int = CONTEXT,
    chunks: int | None = None,
    parse_special: bool = True,
    keep_crlf: bool = False,
    revision: str | None = None,
    offline: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    announce: Announce | None = None,
) -> ImportanceMatrix:
    """Collects an importance matrix over `text`, adds those of `merge`, and writes it to `output`.

    `model` is as in `convert`; `text` a UTF-8 input (see `load_text`), the name of a bundled text, or `sampled` for
    text that the model generates; without a text, files are only merged. `parse_special` and `keep_crlf` set how the
    text is read. A chunk has `ctx_size` tokens (at most the model's context); the first `chunks` chunks are used.
    An interrupted call leaves `output` with `.partial` appended, from which the same call resumes; except with
    `sampled`, whose sums are complete only at the end.

    Raises `DgptQuantError`.
    """
    if str(output) == "-":
        raise UsageError("an importance matrix cannot be written to stdout (`-`)", "Name a file as `output`.")
    output = user_path(output)
    partial = output.with_name(f"{output.name[:60]}.partial")
    refuse_existing(output, overwrite)
    refuse_existing(partial, overwrite=True)
    others = [read_importance(path) for path in merge]
    if text is None and not others:
        raise UsageError("neither a text nor files to merge are given", "Set `text` or `merge`.")
    if text is not None:
        given = load_calibration_text(text, parse_special=parse_special, keep_crlf=keep_crlf, announce=announce)
        source = open_model(model, revision=revision, offline=offline)
        chunked = cut(source, given, ctx_size, chunks, progress=progress, announce=announce)
        others.insert(0, collect(source, chunked, partial=partial, progress=progress))
    result = merged(others)
    result.write(output, overwrite=overwrite)
    if text is not None:
        partial.unlink(missing_ok=True)
    return result


def load_calibration_text(
    text: str | Path | NamedText,
    *,
    parse_special: bool = True,
    keep_crlf: bool = False,
    announce: Announce | None = None,
) -> NamedText | None:
    """Loads a text before a model is opened; None for `sampled`, text that the model generates.

    Raises as `load_text`.
    """
    if not isinstance(text, NamedText) and str(text) == SAMPLED and not input_exists(text):
        return None
    return load_text(text, parse_special=parse_special, keep_crlf=keep_crlf, announce=announce)


@dataclass(frozen=True)
class ChunkedText:
    """A tokenized calibration text in chunks of `size` tokens, each a separate text.

    `sums` has the sums of inputs if they were collected while the text was generated.
    """

    name: str
    size: int
    tokens: Sequence[int]
    sums: Mapping[str, Sums] | None = None

    @property
    def count(self) -> int:
        return len(self.tokens) // self.size


def cut(
    source: ModelSource,
    text: NamedText | None,
    ctx_size: int = CONTEXT,
    chunks: int | None = None,
    *,
    store: Store | None = None,
    progress: Progress | None = None,
    announce: Announce | None = None,
) -> ChunkedText:
    """Tokenizes a text, and returns its first `chunks` chunks (default: all); for None, generates a text.

    The batches of a generated text are kept in `store`, from which an interrupted call continues. Raises `UsageError`
    for a text shorter than a chunk.
    """
    if ctx_size < 1 or (chunks is not None and chunks < 1):
        raise UsageError(f"`ctx_size` and `chunks` must be at least 1, not {ctx_size} and {chunks}")
    size = min(ctx_size, source.sizes.context)
    if text is None:
        return _sampled(source, size, chunks or -(-SAMPLED_TOKENS // size), {} if store is None else store, progress)
    tokenizer = source.tokenizer()
    text = text.noting(special_note(text, tokenizer.tokens, tokenizer.types), announce)
    tokens = encode_text(tokenizer, text.text, parse_special=text.parse_special)
    if tokenizer.add_bos:  # as in llama-imatrix, before the text, and then in place of each chunk's first token
        tokens = [tokenizer.bos, *tokens]
        tokens[::size] = [tokenizer.bos] * len(tokens[::size])
    count = min(len(tokens) // size, chunks or len(tokens))
    if not count:
        raise UsageError(
            f"the text {text.name} has {len(tokens)} tokens, less than one chunk of {size}",
            "Use a longer text, or a smaller `ctx_size` (`dgpt2-quant imatrix`).",
        )
    return ChunkedText(text.name, size, tokens[: count * size])


def _sampled(source: ModelSource, size: int, count: int, store: Store, progress: Progress | None) -> ChunkedText:
    """A generated text of `count` chunks, and the sums of inputs."""
    from .sample_text import batches, sample_batch

    columns = {tensor.name: tensor.shape[-1] for tensor in source.tensors}
    names = matmul_weights({tensor.name: tensor.shape for tensor in source.tensors})
    reference: Reference | None = None
    tokens: list[int] = []
    sums = []
    for batch in batches(source.sizes, count, size):
        kept = f"sums.{batch.start}", f"tokens.{batch.start}"
        if kept[1] not in store:
            reference = reference or from_source(source)
            groups: list[dict[str, Sums]] = []

            def observer(groups: list[dict[str, Sums]] = groups) -> Observer:
                groups.append({})
                return _add_to(groups[-1])

            first = source.tokenizer().bos
            found = sample_batch(reference, first, batch, count, size, observers=observer, progress=progress)
            store[kept[0]] = np.stack([np.concatenate([group[name] for name in names], axis=1) for group in groups])
            store[kept[1]] = np.asarray(found)
        sums.append(store[kept[0]])
        tokens += store[kept[1]].tolist()
    ends = np.cumsum([columns[name] for name in names])[:-1]
    whole = np.split(np.concatenate(sums).sum(axis=0), ends, axis=1)
    return ChunkedText(SAMPLED, size, tokens, dict(zip(names, whole, strict=True)))


def collect(
    source: ModelSource, text: ChunkedText, *, partial: Path | None = None, progress: Progress | None = None
) -> ImportanceMatrix:
    """Collects the importance matrix of a model over a text; `partial` is a file to resume from and to save to."""
    size, count, tokens = text.size, text.count, text.tokens
    if text.sums is not None:
        return _Collected("", count, text.sums).result(text.name, size, tokens)
    weights = BlockWeights(source)
    reference = Reference(source.sizes, weights)
    collected = _Collected("", 0, {})
    if partial:
        tokens_sha256 = hashlib.sha256(np.asarray(tokens, np.int32).tobytes()).hexdigest()
        collected = _resume(partial, [source.sha256(), tokens_sha256, size, count])
    saved = time.monotonic()

    def of_some(some: slice) -> list[dict[str, Sums]]:
        inputs: list[dict[str, Sums]] = [{} for _ in left[some]]
        with np.errstate(all="ignore"):  # the observer refuses values that are not finite
            reference.hidden_of(left[some], list(map(_add_to, inputs)))
        return inputs

    left = [tokens[chunk * size : (chunk + 1) * size] for chunk in range(collected.chunks, count)]
    try:
        for inputs in chain.from_iterable(in_parallel(of_some, pieces(len(left), 1 if weights.fit else _CHUNKS))):
            collected = collected.plus(inputs)
            if progress:
                progress(collected.chunks, count, f"importance of {collected.chunks * size} tokens")
            if partial and time.monotonic() - saved > _SAVE_EVERY:
                collected.save(partial)
                saved = time.monotonic()
    except KeyboardInterrupt:
        if partial:
            collected.save(partial)
        raise
    return collected.result(text.name, size, tokens)


def _add_to(sums: dict[str, Sums]) -> Observer:
    """An observer that adds the sums of x² and x of each matrix's input, shape (tokens, columns)."""

    def observe(name: str, x: npt.NDArray[np.floating[Any]]) -> None:
        both = np.stack([np.square(x).sum(axis=0, dtype=np.float64), x.sum(axis=0, dtype=np.float64)])
        if not (np.abs(both) < _LARGEST).all():
            raise CheckpointError(
                f"the input of {name} is not finite, or close to the limit of float32",
                "The weights before it are damaged: does the model generate sensible text?",
            )
        sums[name] = sums.get(name, 0.0) + both

    return observe


@dataclass(frozen=True)
class _Collected:
    """Partial sums of x² and x, shape (2, columns) per matrix.

    `key` identifies model, text and chunks: sums with another key are not resumed.
    """

    key: str
    chunks: int
    sums: Mapping[str, Sums]

    def plus(self, chunk: dict[str, Sums]) -> "_Collected":
        """A new object, so that an interrupt never leaves the sums of half a chunk."""
        return _Collected(self.key, self.chunks + 1, {n: self.sums.get(n, 0.0) + both for n, both in chunk.items()})

    def result(self, dataset: str, size: int, tokens: Sequence[int]) -> ImportanceMatrix:
        entries = {}
        for name, both in self.sums.items():
            squares, values = both.astype(np.float32)
            entries[name] = Statistics(squares, values, float(self.chunks * size))
        return ImportanceMatrix(entries, [dataset], self.chunks, size, tokens)

    def save(self, partial: Path) -> None:
        """Saves atomically: a kill leaves the previous or the new file."""
        data = io.BytesIO()
        arrays: dict[str, Any] = {"key": np.array(self.key), "chunks": np.array(self.chunks), **self.sums}
        np.savez(data, **arrays)
        with output_file(partial, overwrite=True) as file:
            file.write(data.getvalue())


def _resume(partial: Path, parts: Iterable[object]) -> _Collected:
    """Loads the file if it belongs to the same model, text and chunks; else starts empty."""
    key = hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()
    if partial.is_file():
        # any other file of this name is overwritten
        with suppress(Exception), np.load(io.BytesIO(partial.read_bytes()), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
            if str(arrays.pop("key")) == key:
                return _Collected(key, int(arrays.pop("chunks")), arrays)
    return _Collected(key, 0, {})
