"""A hand-made `bench.json`, for what reads one."""

from typing import Any

from dgpt2_quant.bench.schema import BenchJson, Result


def result(name: str, **changed: Any) -> Result:
    """One level's row; every figure can be changed."""
    row: dict[str, Any] = {
        "type": name,
        "recipe": "stock",
        "path": f"/models/tiny.{name}.gguf",
        "bytes": 1_500_000,
        "bits_per_weight": 4.567,
        "load_ms": 12.4,
        "peak_rss_bytes": 64_000_000,
        "perplexity": 20.5,
        "perplexity_stderr": 0.25,
        "ppl_ratio": 1.005,
        "kld_mean": 0.00123,
        "kld_stderr": 0.0001,
        "kld_median": 0.0009,
        "kld_p99": 0.0456,
        "kld_p999": 0.25,
        "kld_max": 1.75,
        "top1_agreement": 0.987,
        "rms_dp": 0.0123,
        "prompt_tps": {"median": 900.4, "min": 850.0, "max": 950.0, "rounds": 5},
        "decode_tps": {"median": 300.6, "min": 250.0, "max": 320.0, "rounds": 5},
        "first_token_ms": 7.25,
        "disturbed": False,
    }
    row.update(changed)
    return row  # type: ignore[return-value]


def document(*results: Result, smallest: str | None = None, fastest: str | None = None) -> BenchJson:
    """A whole document of these rows."""
    return {
        "schema_version": 1,
        "environment": {
            "cpu": "A Processor 9000",
            "cores": 4,
            "threads": 2,
            "ram_bytes": 8 << 30,
            "os": "Linux-6",
            "python": "3.12.1",
            "llama_cpp_python": "0.3.36",
            "dgpt2_quant": "1.2.3",
            "loadavg": 0.25,
        },
        "model": {"name": "tiny", "source_sha256": "ab" * 32, "parameters": 1_234_567},
        "text": {"name": "tale.txt", "sha256": "cd" * 32, "tokens": 12_345, "context": 512},
        "reference": {"type": "F32", "perplexity": 20.4, "perplexity_stderr": 0.24, "tokens_scored": 6_120},
        "results": list(results),
        "recommended": {"smallest_within_1pct_ppl": smallest, "fastest_within_1pct_ppl": fastest},
    }
