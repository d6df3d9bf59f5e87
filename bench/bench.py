"""The benchmark: every level of one model, side by side."""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dgpt2_quant.bench.data.datasets import load_bench_text
from dgpt2_quant.bench.data.special_tokens import noting_special
from dgpt2_quant.bench.document.environment import describe_environment
from dgpt2_quant.bench.document.levels import Level, read_levels
from dgpt2_quant.bench.document.schema import SCHEMA_VERSION, BenchJson, Result, WrongToken
from dgpt2_quant.bench.quality.compare_files import Quality, compare
from dgpt2_quant.bench.quality.divergence import Divergence, divergence, noise_floor, pairs, resampled, summarize
from dgpt2_quant.bench.quality.per_token import TokenTexts, check_per_token, lines, worst, write_lines
from dgpt2_quant.bench.quality.reference_cache import LIMIT
from dgpt2_quant.bench.quality.windows import LLAMA_CPP, Cut
from dgpt2_quant.bench.report.advice import recommend, with_advice
from dgpt2_quant.bench.speed.disturbance import Watch
from dgpt2_quant.bench.speed.footprint import Footprint, measure_footprint
from dgpt2_quant.bench.speed.grid import USUAL, Grid
from dgpt2_quant.bench.speed.peers import PeerSpec, llama_bench_for, peers_for
from dgpt2_quant.bench.speed.rounds import PATIENCE, Speed, check_patience, measure
from dgpt2_quant.core.cores import threads_or_all
from dgpt2_quant.core.errors import UsageError
from dgpt2_quant.core.gguf_file import require_file
from dgpt2_quant.core.progress import Progress
from dgpt2_quant.core.quant_types import BENCH_TYPES, QuantType, find_type, find_types
from dgpt2_quant.core.text import NamedText
from dgpt2_quant.quantize.checkpoint.resolve import DEFAULT_MODEL, is_gguf_name, resolve
from dgpt2_quant.quantize.store.model_files import model_files
from dgpt2_quant.runtime.model import Model

_BUSY_SECONDS = 0.2  # in which the machine is looked at: 20 ticks of each core


@dataclass(frozen=True)
class Subject:
    """What is measured: a model by name, the hash of its source, the reference's file and the levels'."""

    name: str
    source_sha256: str
    reference: Path
    files: Sequence[Path]


@dataclass(frozen=True)
class Settings:
    """How it is measured. `cut` tells how the text is scored, `cache_bytes` bounds what is kept of the reference's
    logits; `peers` take part in the rounds; disturbed measurements take `patience` seconds in all; `per_token` is a
    file for a line of JSON a scored token."""

    cut: Cut = LLAMA_CPP
    cache_bytes: int = LIMIT
    rounds: int = 5
    threads: int | None = None
    grid: Grid = USUAL
    peers: Sequence[PeerSpec] = ()
    patience: float = PATIENCE
    per_token: Path | None = None
    overwrite: bool = False


def bench(
    model: str = DEFAULT_MODEL,
    *,
    type: str | QuantType | Sequence[str | QuantType] | None = None,
    file: Sequence[str | Path] = (),
    text: str | Path | NamedText = "evaluation",
    parse_special: bool = True,
    keep_crlf: bool = False,
    reference: str = "f32",
    cut: Cut = LLAMA_CPP,
    cache_bytes: int = LIMIT,
    rounds: int = 5,
    grid: Grid = USUAL,
    peers: bool = False,
    patience: float = PATIENCE,
    llama_cpp_bin: Path | None = None,
    per_token: Path | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> BenchJson:
    """Measures each type of a checkpoint: size, load, memory, perplexity, KL divergence against `reference`, speed.

    `type` defaults to `BENCH_TYPES`. `file` are GGUF files of the same model, by whatever recipe or program, that are
    measured besides, or alone if no types are given. `text` is a bundled text's name, a data set's, or an input
    (`load_text`), read as `parse_special` and `keep_crlf` say. Missing files are converted into the cache first. With
    `peers`, other programs that are installed run the same weights in the same rounds; with `llama_cpp_bin`,
    llama-bench too. On a busy machine disturbed measurements are repeated, for `patience` seconds in all, and marked.
    `write_report` makes files of the result. Raises `DgptQuantError`.
    """
    if is_gguf_name(model):
        raise UsageError(
            f"{model} is one file; a benchmark compares the types of a checkpoint",
            f"Name its checkpoint, and `--file {model}`.",
        )
    if rounds < 1:
        raise UsageError(f"{rounds} rounds were asked for; at least 1 is needed")
    check_patience(patience)
    per_token = check_per_token(per_token, overwrite=overwrite)
    given = [require_file(Path(path)) for path in file]
    read_levels(given)  # what is no sound file is told before the work
    quant_types = find_types(type or (() if given else BENCH_TYPES))
    base = find_type(reference)
    if base.base.is_quantized:
        raise UsageError(f"{base} can not be the reference: it is quantized itself", "Take f32 or f16.")
    source_text = load_bench_text(
        text, parse_special=parse_special, keep_crlf=keep_crlf, offline=offline, announce=announce
    )  # a wrong name is reported before the work, not after it
    stored = model_files(
        model,
        types=[*quant_types, base],
        revision=revision,
        offline=offline,
        threads=threads,
        progress=progress,
        announce=announce,
    )
    subject = Subject(
        stored.name,
        stored.source_sha256,
        stored.files[base],
        [*(stored.files[quant_type] for quant_type in quant_types), *given],
    )
    source_text = noting_special(source_text, subject.reference, announce)
    others: list[PeerSpec] = []
    if peers:
        folder = resolve(model, revision=revision, offline=offline, prefer_cache=True).folder
        others += peers_for(folder, subject.files)
    if llama_cpp_bin is not None:
        others += llama_bench_for(subject.files, llama_cpp_bin)
    settings = Settings(cut, cache_bytes, rounds, threads, grid, others, patience, per_token, overwrite)
    return measure_levels(subject, source_text, settings, progress=progress, announce=announce)


def measure_levels(
    subject: Subject,
    text: NamedText,
    settings: Settings | None = None,
    *,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> BenchJson:
    """`bench` for files that are here already; the usual settings if none are given."""
    settings = settings or Settings()
    if announce and _is_busy():
        announce(
            f"Other programs use this machine{_load()}: what they disturb is measured again, for at most"
            f" {settings.patience:g} s in all, and marked."
        )
    environment = describe_environment(settings.threads)
    threads, files = settings.threads, subject.files
    (reference,), levels = read_levels([subject.reference]), read_levels(files)
    positions = min(level.header.metadata["gpt2.context_length"] for level in (reference, *levels))
    settings.grid.points(positions, threads_or_all(threads))  # what can not be timed is told before the work
    quality = compare(
        subject.reference,
        files,
        text.text,
        parse_special=text.parse_special,
        cut=settings.cut,
        threads=threads,
        cache_bytes=settings.cache_bytes,
        progress=progress,
    )
    draws = resampled(quality)
    divergences = [divergence(quality, number, draws) for number in range(len(files))]
    names = [level.name for level in levels]
    wrong = _wrong_tokens(subject, quality, names, settings)
    footprints = [_footprint(number, files, threads, progress) for number in range(len(files))]
    speeds = measure(
        subject.reference,
        files,
        rounds=settings.rounds,
        threads=threads,
        grid=settings.grid,
        peers=settings.peers,
        patience=settings.patience,
        progress=progress,
    )
    environment["rounds_asked"] = settings.rounds
    environment["disturbed_seconds"] = round(speeds.disturbed_seconds, 1)
    base = summarize(quality.base.nll)
    results = [_result(*parts) for parts in zip(levels, divergences, wrong, speeds.files, footprints, strict=True)]
    document: BenchJson = {
        "schema_version": SCHEMA_VERSION,
        "environment": environment,
        "runs": [environment],
        "model": {
            "name": subject.name,
            "source_sha256": subject.source_sha256,
            "parameters": reference.header.parameters,
        },
        "text": {
            "name": text.name,
            "sha256": text.sha256,
            "tokens": len(quality.tokens),
            "context": quality.cut.context,
            "method": quality.cut.method,
            "stride": quality.cut.stride,
            "parse_special": text.parse_special,
            "notes": list(text.notes),
        },
        "reference": {
            "type": reference.type,
            "bytes": reference.header.file_bytes,
            "perplexity": base.perplexity,
            "perplexity_stderr": base.stderr,
            "tokens_scored": base.tokens,
            "prompt_tps": speeds.reference.prompt_tps,
            "decode_tps": speeds.reference.decode_tps,
            "disturbed": speeds.reference.disturbed,
        },
        "noise_floor": noise_floor(quality),
        "results": results,
        "pairs": pairs(quality, names, draws),
        "peers": speeds.peers,
        "skipped_peers": speeds.skipped_peers,
        "recommended": recommend(results),
        "advice": [],
    }
    return with_advice(document)


def _footprint(number: int, files: Sequence[Path], threads: int | None, progress: Progress | None) -> Footprint:
    def report(what: str) -> None:
        if progress:
            progress(number, len(files), what)

    report(f"load time and memory, {files[number].name}")
    return measure_footprint(files[number], threads=threads, report=report)


def _is_busy() -> bool:
    """Whether other programs use much of the machine at the moment; False where the system does not tell."""
    with Watch(1) as watch:
        time.sleep(_BUSY_SECONDS)
    return watch.usage.disturbed is True


def _load() -> str:
    """The machine's load of the last minute, where it is known."""
    return f" (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)" if hasattr(os, "getloadavg") else ""


def _wrong_tokens(
    subject: Subject, quality: Quality, names: Sequence[str], settings: Settings
) -> list[list[WrongToken]]:
    """Those of each level; writes all tokens to a file where that was asked for."""
    with Model.load(subject.reference, threads=1) as model:
        texts = TokenTexts(model, quality.windows)
        if settings.per_token is not None:
            write_lines(lines(quality, names, texts), settings.per_token, overwrite=settings.overwrite)
        return [worst(quality, level, texts) for level in quality.levels]


def _result(level: Level, found: Divergence, wrong: list[WrongToken], speed: Speed, footprint: Footprint) -> Result:
    with level.path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "type": level.type,
        "recipe": level.recipe,
        "path": str(level.path),
        "sha256": sha256,
        "run": 0,
        "bytes": level.header.file_bytes,
        "bits_per_weight": round(level.header.bits_per_weight, 3),
        "load_ms": footprint.load_ms,
        "peak_rss_bytes": footprint.peak_rss_bytes,
        "perplexity": found.perplexity.perplexity,
        "perplexity_stderr": found.perplexity.stderr,
        "ppl_ratio": found.ppl_ratio,
        "ppl_ratio_interval": found.ppl_ratio_interval,
        "kld_mean": found.kld_mean,
        "kld_stderr": found.kld_stderr,
        "kld_interval": found.kld_interval,
        "kld_median": found.kld_median,
        "kld_p90": found.kld_p90,
        "kld_p95": found.kld_p95,
        "kld_p99": found.kld_p99,
        "kld_p999": found.kld_p999,
        "kld_max": found.kld_max,
        "top1_agreement": found.top1_agreement,
        "mean_dp": found.mean_dp,
        "rms_dp": found.rms_dp,
        "nll_correlation": found.nll_correlation,
        "by_confidence": found.by_confidence,
        "worst": wrong,
        "prompt_tps": speed.prompt_tps,
        "decode_tps": speed.decode_tps,
        "prompt_ratio": speed.prompt_ratio,
        "decode_ratio": speed.decode_ratio,
        "first_token_ms": footprint.first_token_ms,
        "joules_per_token": speed.joules_per_token,
        "disturbed": speed.disturbed,
        "load_disturbed": footprint.disturbed,
        "speed": speed.points,
    }
