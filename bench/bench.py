"""The benchmark: every file of one model, compared by size, quality and speed.

The arguments become `Settings`, the files a `Subject`; `measure` measures them; `make_document` builds the result.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dgpt2_quant.bench.data.datasets import load_bench_text
from dgpt2_quant.bench.data.special_text import noting_special
from dgpt2_quant.bench.document.environment import describe_environment
from dgpt2_quant.bench.document.files import read_files
from dgpt2_quant.bench.document.schema import BenchJson
from dgpt2_quant.bench.quality.per_token import check_per_token
from dgpt2_quant.bench.quality.reference_cache import LIMIT
from dgpt2_quant.bench.quality.windows import CONTEXT, Windowing
from dgpt2_quant.bench.speed.disturbance import Watch, load_average
from dgpt2_quant.bench.speed.grid import Grid
from dgpt2_quant.bench.speed.peers import llama_bench_for, peers_for
from dgpt2_quant.bench.speed.rounds import PATIENCE, check_patience
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.gguf_file import require_file
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.quant_types import BENCH_TYPES, QuantType, find_type, find_types
from dgpt2_quant.core.sizes import parse_bytes
from dgpt2_quant.core.text import NamedText
from dgpt2_quant.quantize.checkpoint.resolve import DEFAULT_MODEL, is_gguf_name, resolve
from dgpt2_quant.quantize.store.converted_models import model_files

from .make_document import make_document
from .measure import Settings, Subject, measure

_BUSY_SECONDS = 0.2  # for which the machine is watched: 20 ticks of each core


def bench(
    model: str = DEFAULT_MODEL,
    *,
    type: str | QuantType | Sequence[str | QuantType] | None = None,
    file: Sequence[str | Path] = (),
    text: str | Path | NamedText = "evaluation",
    parse_special: bool = True,
    keep_crlf: bool = False,
    reference: str = "f32",
    ctx_size: int = CONTEXT,
    stride: int | None = None,
    rounds: int = 5,
    prompt_sizes: Sequence[int] | None = None,
    depths: Sequence[int] | None = None,
    batches: Sequence[int] | None = None,
    thread_counts: Sequence[int] | None = None,
    peers: bool = False,
    llama_cpp_bin: str | Path | None = None,
    patience: float = PATIENCE,
    per_token: str | Path | None = None,
    reference_cache: int | str = LIMIT,
    threads: int | None = None,
    revision: str | None = None,
    offline: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> BenchJson:
    """Measures size, load time, memory, perplexity, KL divergence from `reference`, and speed of a model's files.

    `type` defaults to `BENCH_TYPES`. `file` are further GGUF files of the same model, by any recipe or program; with
    files and no types, only the files are measured. Missing files are converted into the cache first. `text` is the
    name of a bundled text or a data set, or an input (`load_text`); with a `stride` it is scored in overlapping
    windows. `prompt_sizes`, `depths`, `batches` and `thread_counts` are the settings at which speed is measured (see
    `Grid`). `peers` also times other installed programs on the same weights, `llama_cpp_bin` the llama-bench in that
    folder. Disturbed measurements are repeated, for at most `patience` seconds in all, and marked. `per_token` is a
    file for one line of JSON per scored token; `reference_cache` (bytes, or "1GB") limits the cached logits.
    `write_report` writes the result to files. Raises `DgptQuantError`.
    """
    if is_gguf_name(model):
        raise UsageError(
            f"`model` must be a checkpoint, not the file {model}",
            f"Name its checkpoint as `model`, and add {model} as `file`.",
        )
    if rounds < 1:
        raise UsageError(f"`rounds` must be 1 or more, not {rounds}")
    check_patience(patience)
    settings = Settings(
        windowing=Windowing("llama.cpp" if stride is None else "strided", ctx_size, stride),
        reference_cache=parse_bytes(reference_cache) if isinstance(reference_cache, str) else reference_cache,
        rounds=rounds,
        threads=threads,
        grid=Grid(prompt_sizes, depths, batches, thread_counts),
        patience=patience,
        per_token=check_per_token(per_token, overwrite=overwrite),
        overwrite=overwrite,
    )
    given = [require_file(Path(path)) for path in file]
    read_files(given)  # reports broken files before the work
    quant_types = find_types(type or (() if given else BENCH_TYPES))
    base = find_type(reference)
    if base.base.is_quantized:
        raise UsageError(f"`reference` must be f32 or f16, not {base}, which is quantized")
    source_text = load_bench_text(
        text, parse_special=parse_special, keep_crlf=keep_crlf, offline=offline, announce=announce
    )
    stored = model_files(
        model,
        types=[*quant_types, base],
        revision=revision,
        offline=offline,
        threads=threads,
        progress=progress,
        announce=announce,
    )
    files = [*(stored.files[quant_type] for quant_type in quant_types), *given]
    others = []
    if peers:
        source = resolve(model, revision=revision, offline=offline, prefer_cache=True)
        if source.weights or source.adapters:
            raise UsageError(f"`peers` needs a checkpoint folder, not {model}", "Leave out `peers`.")
        others += peers_for(source.folder, files)
    if llama_cpp_bin is not None:
        others += llama_bench_for(files, Path(llama_cpp_bin))
    source_text = noting_special(source_text, stored.files[base], announce)
    subject = Subject(stored.name, stored.source_sha256, stored.files[base], files, others)
    return bench_files(subject, source_text, settings, progress=progress, announce=announce)


def bench_files(
    subject: Subject,
    text: NamedText,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> BenchJson:
    """`bench` for files that exist; with the default settings if none are given."""
    settings = settings or Settings()
    if announce:
        with Watch(1) as watch:
            time.sleep(_BUSY_SECONDS)
        if watch.usage.disturbed:
            announce(
                f"Other programs use this machine{load_average()}. Disturbed measurements are repeated, for at most"
                f" {settings.patience:g} s in all, and marked."
            )
    environment = describe_environment(settings.threads)  # before the work, which changes the load
    measured = measure(subject, text, settings, progress)
    return make_document(subject, text, settings, environment, measured)
