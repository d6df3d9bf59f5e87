"""The benchmark: every level of one model, side by side."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from dgpt2_quant.quantize.errors import UsageError
from dgpt2_quant.quantize.gguf_file import GGUFHeader, read_header
from dgpt2_quant.quantize.progress import Progress
from dgpt2_quant.quantize.quant_types import BENCH_TYPES, QuantType, find_type, find_types
from dgpt2_quant.quantize.resolve import DEFAULT_MODEL, is_gguf_name
from dgpt2_quant.quantize.store import StoredModel, model_files
from dgpt2_quant.quantize.text import NamedText, load_text

from .divergence import Divergence
from .environment import describe_environment
from .footprint import Footprint, measure_footprint
from .quality import compare
from .schema import SCHEMA_VERSION, BenchJson, RateJson, Recommended, Result
from .speed import Rate, Speed, measure

_WITHIN = 1.01  # of the reference's perplexity: what counts as no real loss


def bench(
    model: str = DEFAULT_MODEL,
    *,
    type: str | QuantType | Sequence[str | QuantType] | None = None,
    text: str | Path = "evaluation",
    reference: str = "f32",
    rounds: int = 5,
    threads: int | None = None,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    announce: Callable[[str], None] | None = None,
) -> BenchJson:
    """Measures each type of a checkpoint: size, load, memory, perplexity, KL divergence against `reference`, speed.

    `type` defaults to `BENCH_TYPES`; `text` is a bundled text's name or a file. Missing files are converted into the
    cache first. `write_report` makes files of the result. Raises `DgptQuantError`.
    """
    if is_gguf_name(model):
        raise UsageError(f"{model} is one file; a benchmark compares the types of a checkpoint", "Name its checkpoint.")
    if rounds < 1:
        raise UsageError(f"{rounds} rounds were asked for; at least 1 is needed")
    quant_types = find_types(type or BENCH_TYPES)
    base = find_type(reference)
    if base.base.is_quantized:
        raise UsageError(f"{base} can not be the reference: it is quantized itself", "Take f32 or f16.")
    source = load_text(text)  # a wrong name is told before the work, not after it
    stored = model_files(
        model,
        types=[*quant_types, base],
        revision=revision,
        offline=offline,
        threads=threads,
        progress=progress,
        announce=announce,
    )
    levels = {quant_type: stored.files[quant_type] for quant_type in quant_types}
    return measure_levels(stored, levels, base, source, rounds=rounds, threads=threads, progress=progress)


def measure_levels(
    model: StoredModel,
    levels: Mapping[QuantType, Path],
    reference: QuantType,
    text: NamedText,
    *,
    rounds: int = 5,
    threads: int | None = None,
    progress: Progress | None = None,
) -> BenchJson:
    """`bench` for files that are here already; the reference's is among `model.files`."""
    environment = describe_environment(threads)
    paths = list(levels.values())
    quality = compare(model.files[reference], paths, text.text, threads=threads, progress=progress)
    speeds = measure(paths, rounds=rounds, threads=threads, progress=progress)
    footprints = []
    for number, path in enumerate(paths):
        footprints.append(measure_footprint(path, threads=threads))
        if progress:
            progress(number + 1, len(paths), "load time and memory")
    rows = zip(levels.items(), quality.results, speeds, footprints, strict=True)
    headers = [read_header(path, arrays=False) for path in paths]
    results = [
        _result(quant_type, header, divergence, quality.reference.perplexity, speed, footprint)
        for ((quant_type, _), divergence, speed, footprint), header in zip(rows, headers, strict=True)
    ]
    return {
        "schema_version": SCHEMA_VERSION,
        "environment": environment,
        "model": {
            "name": model.name,
            "source_sha256": model.source_sha256,
            "parameters": headers[0].parameters,
        },
        "text": {
            "name": text.name,
            "sha256": text.sha256,
            "tokens": quality.tokens,
            "context": quality.context,
        },
        "reference": {
            "type": reference.name,
            "perplexity": quality.reference.perplexity,
            "perplexity_stderr": quality.reference.stderr,
            "tokens_scored": quality.reference.tokens,
        },
        "results": results,
        "recommended": recommend(results),
    }


def recommend(results: Sequence[Result]) -> Recommended:
    """Among the levels within 1 % of the reference's perplexity: the smallest file, and the fastest to decode."""
    good = [result for result in results if result["ppl_ratio"] <= _WITHIN]
    smallest = min(good, key=lambda result: result["bytes"], default=None)
    fastest = max(good, key=lambda result: result["decode_tps"]["median"], default=None)
    return {
        "smallest_within_1pct_ppl": smallest["type"] if smallest else None,
        "fastest_within_1pct_ppl": fastest["type"] if fastest else None,
    }


def _result(
    quant_type: QuantType,
    header: GGUFHeader,
    divergence: Divergence,
    reference_perplexity: float,
    speed: Speed,
    footprint: Footprint,
) -> Result:
    return {
        "type": quant_type.name,
        "recipe": header.metadata.get("dgpt2_quant.recipe", "stock"),
        "path": str(header.path),
        "bytes": header.file_bytes,
        "bits_per_weight": round(header.bits_per_weight, 3),
        "load_ms": footprint.load_ms,
        "peak_rss_bytes": footprint.peak_rss_bytes,
        "perplexity": divergence.perplexity.perplexity,
        "perplexity_stderr": divergence.perplexity.stderr,
        "ppl_ratio": divergence.perplexity.perplexity / reference_perplexity,
        "kld_mean": divergence.kld_mean,
        "kld_stderr": divergence.kld_stderr,
        "kld_median": divergence.kld_median,
        "kld_p99": divergence.kld_p99,
        "kld_p999": divergence.kld_p999,
        "kld_max": divergence.kld_max,
        "top1_agreement": divergence.top1,
        "rms_dp": divergence.rms_dp,
        "prompt_tps": _rate(speed.prompt_tps),
        "decode_tps": _rate(speed.decode_tps),
        "first_token_ms": footprint.first_token_ms,
        "disturbed": speed.disturbed,
    }


def _rate(rate: Rate) -> RateJson:
    return {"median": rate.median, "min": rate.min, "max": rate.max, "rounds": rate.rounds}
