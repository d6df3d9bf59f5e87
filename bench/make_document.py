"""Makes the document `bench.json` of what was measured."""

import hashlib

from dgpt2_quant.bench.document.files import BenchedFile
from dgpt2_quant.bench.document.schema import SCHEMA_VERSION, BenchJson, Environment, Result, WrongToken
from dgpt2_quant.bench.quality.divergence import Divergence, divergence, noise_floor, pairs, resampled, summarize
from dgpt2_quant.bench.report.advice import recommend, with_advice
from dgpt2_quant.bench.speed.footprint import Footprint
from dgpt2_quant.bench.speed.rounds import Speed
from dgpt2_quant.core.text import NamedText

from .measure import Measured, Settings, Subject


def make_document(
    subject: Subject, text: NamedText, settings: Settings, environment: Environment, measured: Measured
) -> BenchJson:
    """The whole document, with the advice that follows from its figures."""
    quality, speeds, reference = measured.quality, measured.speeds, measured.reference
    environment = {
        **environment,
        "rounds_asked": settings.rounds,
        "disturbed_seconds": round(speeds.disturbed_seconds, 1),
    }
    draws = resampled(quality)
    divergences = [divergence(quality, number, draws) for number in range(len(quality.files))]
    parts = zip(measured.files, divergences, measured.worst, speeds.files, measured.footprints, strict=True)
    results = [_result(*part) for part in parts]
    base = summarize(quality.base.nll)
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
            "context": quality.windowing.context,
            "method": quality.windowing.method,
            "stride": quality.windowing.stride,
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
        "pairs": pairs(quality, [file.name for file in measured.files], draws),
        "peers": speeds.peers,
        "skipped_peers": speeds.skipped_peers,
        "recommended": recommend(results),
        "advice": [],
    }
    return with_advice(document)


def _result(
    file: BenchedFile, found: Divergence, worst: list[WrongToken], speed: Speed, footprint: Footprint
) -> Result:
    with file.path.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
    return {
        "type": file.type,
        "recipe": file.recipe,
        "path": str(file.path),
        "sha256": sha256,
        "run": 0,
        "bytes": file.header.file_bytes,
        "bits_per_weight": round(file.header.bits_per_weight, 3),
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
        "worst": worst,
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
