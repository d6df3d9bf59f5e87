"""Running text: bits per byte and per character of any file, and the perplexities of WikiText.

The text is scored in overlapping windows of the model's context (bench/quality/windows.py) after `<|endoftext|>`, so
that its first token has a probability too and every byte counts. An item is a window, because neighbouring tokens are
correlated.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from dgpt2_quant.bench.data.special_text import token_bytes
from dgpt2_quant.bench.quality.compare_files import window_nll
from dgpt2_quant.bench.quality.logit_rows import on_threads
from dgpt2_quant.bench.quality.windows import Windowing
from dgpt2_quant.core.archive import DataFile
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.text import as_text
from dgpt2_quant.runtime.model import Model

from .metrics import Advance, FloatArray, Metric, Scores, Settings, first_token

TEST_BYTES = 5_000_000  # the end of enwik8 and text8, which is the usual test split
_NLL, _TOKENS = 0, 1


Measure = Callable[[FloatArray], FloatArray]
"""Maps positions in a text, in bytes, to the amount of something (such as words) since the previous position."""


def _bits(nats: FloatArray) -> FloatArray:
    return np.asarray(nats / math.log(2))


class BitsPerByte:
    """Columns: negative log-likelihood in nats, tokens, bytes, characters. `tail` takes only the last bytes."""

    metrics: Mapping[str, Metric] = {
        "bits_per_byte": Metric(_NLL, over=2, of=_bits),
        "bits_per_character": Metric(_NLL, over=3, of=_bits),
        "token_perplexity": Metric(_NLL, over=_TOKENS, of=np.exp),
    }

    def __init__(self, file: DataFile, settings: Settings, *, tail: int | None = None) -> None:
        part = DataFile(file.name, end_of(file.content, tail)) if tail else file
        self.text = as_text(part, keep_crlf=settings.keep_crlf).text
        self.settings = settings

    def measure(self, model: Model, advance: Advance) -> Scores:
        return Scores([score_text(model, self.text, [characters(self.text)], self.settings, advance)])


class WikiText:
    """Two parts, the original text and the detokenized one. Columns: negative log-likelihood in nats, tokens, bytes of
    the scored text, bytes of the original, words of the original."""

    metrics: Mapping[str, Metric] = {
        "token_perplexity": Metric(_NLL, over=_TOKENS, of=np.exp),
        "word_perplexity": Metric(_NLL, over=4, of=np.exp),
        "bits_per_byte": Metric(_NLL, over=3, of=_bits),
        "word_perplexity_detokenized": Metric(_NLL, over=4, of=np.exp, part=1),
        "bits_per_byte_detokenized": Metric(_NLL, over=3, of=_bits, part=1),
    }

    def __init__(self, file: DataFile, settings: Settings) -> None:
        self.text = as_text(file, keep_crlf=settings.keep_crlf).text
        self.settings = settings
        if not self.text.split():
            raise UsageError(f"{file.name} has no words", "Use a longer text, or the `task` bpb.")

    def measure(self, model: Model, advance: Advance) -> Scores:
        lines = self.text.splitlines(keepends=True)
        parts = []
        for half, scored in enumerate((lines, [detokenize(line) for line in lines])):
            measures = [_by_line(scored, lines, _bytes), _by_line(scored, lines, lambda line: len(line.split()))]
            report = partial(_half, advance, half)
            parts.append(score_text(model, "".join(scored), measures, self.settings, report))
        return Scores(parts)


def score_text(
    model: Model, text: str, measures: Sequence[Measure], settings: Settings, advance: Advance
) -> FloatArray:
    """One row per window: negative log-likelihood in nats, tokens, bytes, and the values of the measures.

    Raises `UsageError` for an empty text or impossible windows.
    """
    tokens = model.tokenize(text, special=settings.parse_special, add_special=False)
    if not tokens:
        raise UsageError("the text is empty", "Use a longer text.")
    windowing = text_windowing(model, settings)
    windows = windowing.windows([first_token(model), *tokens])[: settings.limit]
    values = np.zeros((len(windows), 3 + len(measures)))
    of = token_bytes(model)
    sizes = {token: len(of(token)) for token in set(tokens)}
    with on_threads(model.threads) as for_blocks:
        for index, window in enumerate(windows):
            values[index, _NLL] = window_nll(model, window, for_blocks).sum()
            values[index, _TOKENS] = len(window.targets)
            values[index, 2] = sum(sizes[int(token)] for token in window.targets)
            advance(index + 1, len(windows))
    ends = np.cumsum(values[:, 2])
    for column, measure in enumerate(measures, 3):
        values[:, column] = measure(ends)
    return values


def text_windowing(model: Model, settings: Settings) -> Windowing:
    """The windows of a text: the model's whole context with a stride of half of it, unless the settings say otherwise.

    Raises `UsageError` for impossible values.
    """
    found = Windowing("strided", settings.context or model.positions, settings.stride).fitted(model.positions)
    if found.stride == found.context:  # the first token of each window would have no predecessor, and no probability
        limit = found.context - 1
        raise UsageError(f"`stride` must be 1-{limit} for a context of {found.context}, not {found.stride}")
    return found


def characters(text: str) -> Measure:
    """Counts the characters of a text by positions in its UTF-8 bytes."""
    data = np.frombuffer(text.encode("utf-8"), np.uint8)

    def between(ends: FloatArray) -> FloatArray:
        parts = (data[start:end] for start, end in pairwise([0, *ends.astype(np.int64)]))
        return np.array(
            [np.count_nonzero((part & 0xC0) != 0x80) for part in parts], np.float64
        )  # not 10xxxxxx, a continuation byte

    return between


def end_of(content: bytes, size: int) -> bytes:
    """At most the last `size` bytes, without a partial first character."""
    tail = content[-size:]
    return tail.lstrip(bytes(range(0x80, 0xC0))) if len(tail) < len(content) else tail


def detokenize(line: str) -> str:
    """Ordinary text from a line of WikiText, whose tokenizer writes ` @-@ ` for a hyphen and ` ,` for a comma."""
    for pattern, replacement in _RULES:
        line = pattern.sub(replacement, line)
    return line


_RULES = [
    (re.compile(r" @([-,.])@ "), r"\1"),  # hyphens, and the separators of numbers
    (re.compile(r" ([.,:;!?)\]])"), r"\1"),
    (re.compile(r"([(\[]) "), r"\1"),
    (re.compile(r'" ([^"]*) "'), r'"\1"'),
    (re.compile(r" ('(?:s|t|m|d|re|ve|ll))\b"), r"\1"),
    (re.compile(r"s ' "), "s' "),
    (re.compile(r"= (?==)"), "="),  # headings of lower levels: = = Title = =
    (re.compile(r"^ | (?=\n)"), ""),
]


def _by_line(scored: Sequence[str], original: Sequence[str], measure: Callable[[str], int]) -> Measure:
    """Measures the original lines by positions in the scored lines, evenly spread within a line."""
    at = np.cumsum([0, *map(_bytes, scored)])
    count = np.cumsum([0, *map(measure, original)])
    return lambda ends: np.diff(np.interp(ends, at, count), prepend=0.0)


def _bytes(line: str) -> int:
    return len(line.encode("utf-8"))


def _half(advance: Advance, half: int, done: int, total: int) -> None:
    advance(half * total + done, 2 * total)
