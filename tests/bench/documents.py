"""A hand-made `bench.json`, for what reads one."""

from typing import Any

from dgpt2_quant.bench.document.schema import BenchJson, Environment, Interval, PeerJson, RateJson, Result


def rate(median: float, rounds: int = 5) -> RateJson:
    return {"median": median, "min": 0.9 * median, "max": 1.1 * median, "rounds": rounds}


def interval(value: float) -> Interval:
    return {"value": value, "low": value - abs(value) / 10, "high": value + abs(value) / 10}


def result(name: str, **changed: Any) -> Result:
    """One level's row; every figure can be changed."""
    row: dict[str, Any] = {
        "type": name,
        "recipe": "stock",
        "path": f"/models/tiny.{name}.gguf",
        "sha256": "ef" * 32,
        "run": 0,
        "bytes": 1_500_000,
        "bits_per_weight": 4.567,
        "load_ms": 12.4,
        "peak_rss_bytes": 64_000_000,
        "perplexity": 20.5,
        "perplexity_stderr": 0.25,
        "ppl_ratio": 1.005,
        "ppl_ratio_interval": interval(1.005),
        "kld_mean": 0.00123,
        "kld_stderr": 0.0001,
        "kld_interval": interval(0.00123),
        "kld_median": 0.0009,
        "kld_p90": 0.002,
        "kld_p95": 0.004,
        "kld_p99": 0.0456,
        "kld_p999": 0.25,
        "kld_max": 1.75,
        "top1_agreement": 0.987,
        "mean_dp": -0.0012,
        "rms_dp": 0.0123,
        "nll_correlation": 0.9987,
        "by_confidence": [
            {"low": 0.0, "high": 0.5, "tokens": 4000, "kld_mean": 0.002, "top1_agreement": 0.97},
            {"low": 0.5, "high": 1.0, "tokens": 0, "kld_mean": None, "top1_agreement": None},
        ],
        "worst": [
            {
                "before": "and then the <big>",
                "token": " wolf",
                "kld": 1.75,
                "reference_top": " wolf",
                "level_top": " fox|hound",
                "reference_p": 0.7,
                "level_p": 0.1,
            }
        ],
        "prompt_tps": {"median": 900.4, "min": 850.0, "max": 950.0, "rounds": 5},
        "decode_tps": {"median": 300.6, "min": 250.0, "max": 320.0, "rounds": 5},
        "prompt_ratio": rate(1.5),
        "decode_ratio": rate(3.0),
        "first_token_ms": 7.25,
        "joules_per_token": None,
        "disturbed": False,
        "speed": [
            {
                "measure": "decode",
                "tokens": 32,
                "depth": 0,
                "batch": batch,
                "threads": 2,
                "tps": rate(300.0 * batch**0.5),
                "joules_per_token": None,
                "disturbed": False,
            }
            for batch in (1, 4, 8)
        ],
    }
    row.update(changed)
    return row  # type: ignore[return-value]


def environment(**changed: Any) -> Environment:
    machine: dict[str, Any] = {
        "cpu": "A Processor 9000",
        "cores": 4,
        "threads": 2,
        "ram_bytes": 8 << 30,
        "os": "Linux-6",
        "python": "3.12.1",
        "llama_cpp_python": "0.3.36",
        "dgpt2_quant": "1.2.3",
        "loadavg": 0.25,
    }
    machine.update(changed)
    return machine  # type: ignore[return-value]


def peer(name: str, **changed: Any) -> PeerJson:
    row: dict[str, Any] = {
        "name": name,
        "version": "5.23.0",
        "precision": "F32",
        "load_ms": 900.0,
        "peak_rss_bytes": 700_000_000,
        "prompt_tps": rate(400.0),
        "decode_tps": rate(80.0),
        "decode_ratio": rate(0.8),
        "sane": True,
        "disturbed": False,
    }
    row.update(changed)
    return row  # type: ignore[return-value]


def document(*results: Result, smallest: str | None = None, fastest: str | None = None, **changed: Any) -> BenchJson:
    """A whole document of these rows; every part can be changed."""
    whole: dict[str, Any] = {
        "schema_version": 1,
        "environment": environment(),
        "runs": [environment()],
        "model": {"name": "tiny", "source_sha256": "ab" * 32, "parameters": 1_234_567},
        "text": {
            "name": "tale.txt",
            "sha256": "cd" * 32,
            "tokens": 12_345,
            "context": 512,
            "method": "llama.cpp",
            "stride": None,
        },
        "reference": {
            "type": "F32",
            "bytes": 6_000_000,
            "perplexity": 20.4,
            "perplexity_stderr": 0.24,
            "tokens_scored": 6_120,
            "prompt_tps": rate(600.0),
            "decode_tps": rate(100.0),
        },
        "noise_floor": {
            "how": "batches of 32 tokens on 1 thread",
            "kld_mean": 1e-9,
            "kld_p99": 5e-9,
            "kld_max": 4e-8,
            "top1_agreement": 1.0,
            "rms_dp": 1e-6,
            "ppl_ratio": 1.0,
        },
        "results": list(results),
        "pairs": [
            {"a": a["type"], "b": b["type"], "kld_difference": interval(0.01), "nll_difference": interval(0.002)}
            for index, a in enumerate(results)
            for b in results[index + 1 :]
        ],
        "peers": [],
        "skipped_peers": [],
        "recommended": {"smallest_within_1pct_ppl": smallest, "fastest_within_1pct_ppl": fastest},
        "advice": [],
    }
    whole.update(changed)
    return whole  # type: ignore[return-value]
