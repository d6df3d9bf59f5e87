"""Perplexity of a model on a text, by llama.cpp's method or the strided one of Transformers' documentation."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from dgpt2_quant.bench.data.datasets import load_bench_text
from dgpt2_quant.bench.data.special_text import noting_special
from dgpt2_quant.bench.document.schema import PerplexityJson
from dgpt2_quant.bench.quality import logit_rows as rows
from dgpt2_quant.bench.quality.compare_files import logits, window_nll
from dgpt2_quant.bench.quality.divergence import summarize
from dgpt2_quant.bench.quality.logit_rows import FloatArray
from dgpt2_quant.bench.quality.per_token import TokenTexts, check_per_token, lines_alone, write_lines
from dgpt2_quant.bench.quality.windows import CONTEXT, Method, Windowing
from dgpt2_quant.core.cores import threads_or_all
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.quant_types import QuantType
from dgpt2_quant.core.text import NamedText
from dgpt2_quant.quantize.checkpoint.resolve import DEFAULT_MODEL
from dgpt2_quant.quantize.store.converted_models import model_file
from dgpt2_quant.runtime.model import Model


def perplexity(
    model: str = DEFAULT_MODEL,
    *,
    type: str | QuantType | None = None,
    text: str | Path | NamedText = "evaluation",
    parse_special: bool = True,
    keep_crlf: bool = False,
    ctx_size: int = CONTEXT,
    method: Method | None = None,
    stride: int | None = None,
    per_token: Path | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> PerplexityJson:
    """Scores a text in windows of `ctx_size` tokens. `text` is a bundled text, a data set, or an input.

    An input is a UTF-8 file, a pipe, or `-` for stdin, plain or compressed. Special tokens in it are parsed unless
    `parse_special` is false (as in llama-perplexity); CRLF becomes LF unless `keep_crlf` is true. `method` is llama.cpp
    or strided, the default with a `stride`, which is half of the context if omitted. `per_token` is a file for one line
    of JSON per scored token. Raises `DgptQuantError`.
    """
    per_token = check_per_token(per_token, overwrite=overwrite)
    windowing = Windowing(method or ("strided" if stride is not None else "llama.cpp"), ctx_size, stride)
    source = load_bench_text(text, parse_special=parse_special, keep_crlf=keep_crlf, offline=offline, announce=announce)
    count = threads_or_all(threads)
    name, path = model_file(
        model, type=type, revision=revision, offline=offline, threads=threads, progress=progress, announce=announce
    )
    source = noting_special(source, path, announce)
    with Model.load(path, ctx_size=windowing.context, threads=count) as loaded, rows.on_threads(count) as for_blocks:
        windowing = windowing.fitted(loaded.positions)
        tokens = loaded.tokenize(source.text, special=source.parse_special, add_special=True)
        windows = windowing.windows(tokens, loaded.first_token)
        loaded.score(windows[0].tokens[:1])  # creates the context, which is not timed
        parts: list[FloatArray] = []
        seconds = 0.0
        for number, window in enumerate(windows):
            started = time.perf_counter()
            parts.append(window_nll(loaded, window, for_blocks))
            seconds += time.perf_counter() - started
            if progress:
                progress(number + 1, len(windows), "perplexity")
        if per_token is not None:
            texts = TokenTexts(loaded, windows)
            tops = (rows.reference_rows(logits(loaded, window), window.targets, for_blocks) for window in windows)
            write_lines(lines_alone(tops, texts), per_token, overwrite=overwrite)
    result = summarize(np.concatenate(parts))
    return {
        "model": name,
        "text": {
            "name": source.name,
            "sha256": source.sha256,
            "tokens": len(tokens),
            "parse_special": source.parse_special,
            "notes": list(source.notes),
        },
        "method": windowing.method,
        "context": windowing.context,
        "stride": windowing.stride,
        "tokens_scored": result.tokens,
        "nll": result.nll,
        "perplexity": result.perplexity,
        "perplexity_stderr": result.stderr,
        "tps": sum(len(window.tokens) for window in windows) / seconds,
        "threads": count,
    }
